"""BLEU as the official E2E script computes it."""

from __future__ import annotations

from benchmarks.e2e.metrics import evaluate_base


class E2eBleu(evaluate_base.E2EMetric):
    """BLEU as the official E2E script computes it."""

    about = (
        "Corpus BLEU (4-grams, closest reference length) of NIST's mteval-v13a in lower case, as the official script "
        "of the E2E NLG challenge (tuetschek/e2e-metrics) computes it."
    )
    arguments = "    variant (str): 'mteval', the official script's default (default), or 'mteval-p', with its -p.\n"
    returns = "    bleu (float): BLEU between 0 and 1.\n    bleu_signature (str): how it was computed.\n"
    citation = """\
@inproceedings{papineni-etal-2002-bleu,
  title = {{BLEU}: a Method for Automatic Evaluation of Machine Translation},
  author = {Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
  booktitle = {Proceedings of ACL},
  year = {2002}
}
"""

    def _compute(self, predictions: list[str], references: list[list[str]], variant: str = "mteval") -> dict:
        columns = {"mteval": "bleu", "mteval-p": "bleu_mteval_p"}
        return evaluate_base.score_one("bleu", predictions, references, variant, columns)
