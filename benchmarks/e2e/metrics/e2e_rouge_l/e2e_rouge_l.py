"""ROUGE-L as the official E2E script computes it."""

from __future__ import annotations

from benchmarks.e2e.metrics import evaluate_base


class E2eRougeL(evaluate_base.E2EMetric):
    """ROUGE-L as the official E2E script computes it."""

    about = (
        "ROUGE-L (longest common subsequence, F-measure with beta 1.2, best reference) on Penn Treebank tokens, by "
        "pycocoevalcap's code, as the official script of the E2E NLG challenge has it."
    )
    returns = "    rouge_l (float): ROUGE-L between 0 and 1.\n    rouge_l_signature (str): how it was computed.\n"
    citation = """\
@inproceedings{lin-2004-rouge,
  title = {{ROUGE}: A Package for Automatic Evaluation of Summaries},
  author = {Lin, Chin-Yew},
  booktitle = {Text Summarization Branches Out},
  year = {2004}
}
"""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict:
        return evaluate_base.score_one("rouge_l", predictions, references)
