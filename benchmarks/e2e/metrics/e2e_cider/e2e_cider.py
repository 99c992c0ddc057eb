"""CIDEr as the official E2E script computes it."""

from __future__ import annotations

from benchmarks.e2e.metrics import evaluate_base


class E2eCider(evaluate_base.E2EMetric):
    """CIDEr as the official E2E script computes it."""

    about = (
        "CIDEr (tf-idf weighted 4-grams, document frequencies of the references given) on Penn Treebank tokens, by "
        "pycocoevalcap's code, as the official script of the E2E NLG challenge has it."
    )
    returns = "    cider (float): CIDEr between 0 and 10.\n    cider_signature (str): how it was computed.\n"
    citation = """\
@inproceedings{vedantam-etal-2015-cider,
  title = {{CIDEr}: Consensus-based Image Description Evaluation},
  author = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {Proceedings of CVPR},
  year = {2015}
}
"""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict:
        return evaluate_base.score_one("cider", predictions, references)
