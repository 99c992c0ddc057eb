"""The scores of a GLUE task as an ``evaluate`` module, in place of the hub's ``glue``.

``evaluate`` copies this file elsewhere before it runs it, so that it imports this package by its full name: the
repository has to be installed (``pip install -e .``), and no hub is asked for anything.
"""

from __future__ import annotations

import datasets
import evaluate
from numpy.typing import NDArray

from benchmarks.glue.metrics import METRICS, REGRESSION, compute
from harness.errors import UserError

_DESCRIPTION = """\
The metrics of GLUE, the General Language Understanding Evaluation benchmark (https://gluebenchmark.com), with the keys
and the numbers of the hub's module "glue"; correlations are computed in double precision.
"""
_CITATION = """\
@inproceedings{wang-etal-2019-glue,
  title = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}
"""
_INPUTS = """\
Args:
    predictions (list of int, of float for stsb): the number of a class, or the score, for each example.
        The fraction of a class, as of 0.7, is cut off without notice, as by that module.
    references (list of int, of float for stsb): likewise, in the same order.
Returns:
    accuracy (float): for sst2, mrpc, qqp, mnli, mnli_matched, mnli_mismatched, qnli, rte, wnli.
    f1 (float): of class 1, for mrpc and qqp.
    matthews_correlation (float): for cola.
    pearson (float), spearmanr (float): for stsb.
"""


class GlueScores(evaluate.Metric):
    """The scores of the GLUE task that the configuration names."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise UserError(
                f"glue_scores has no configuration {self.config_name!r}: name a task, such as "
                f'evaluate.load(<path>, "cola"), out of {", ".join(METRICS)}'
            )
        number = datasets.Value("float32" if self.config_name == REGRESSION else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            format="numpy",
        )

    def _compute(self, predictions: NDArray, references: NDArray) -> dict[str, float]:
        return compute(self.config_name, predictions, references)
