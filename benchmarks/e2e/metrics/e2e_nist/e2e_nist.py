"""NIST as the official E2E script computes it."""

from __future__ import annotations

from benchmarks.e2e.metrics import evaluate_base


class E2eNist(evaluate_base.E2EMetric):
    """NIST as the official E2E script computes it."""

    about = (
        "Corpus NIST (information-weighted 5-grams) of mteval-v13a in lower case, as the official script of the E2E "
        "NLG challenge (tuetschek/e2e-metrics) computes it. nltk's NIST is another number."
    )
    arguments = "    variant (str): 'mteval-p', the official script's -p as in the papers (default), or 'mteval'.\n"
    returns = "    nist (float): NIST, 0 or more.\n    nist_signature (str): how it was computed.\n"
    citation = """\
@inproceedings{doddington-2002-nist,
  title = {Automatic Evaluation of Machine Translation Quality Using N-gram Co-occurrence Statistics},
  author = {Doddington, George},
  booktitle = {Proceedings of HLT},
  year = {2002}
}
"""

    def _compute(self, predictions: list[str], references: list[list[str]], variant: str = "mteval-p") -> dict:
        columns = {"mteval-p": "nist", "mteval": "nist_mteval"}
        return evaluate_base.score_one("nist", predictions, references, variant, columns)
