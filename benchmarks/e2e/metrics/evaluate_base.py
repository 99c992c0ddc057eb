"""What the ``evaluate`` modules in ``e2e_*/`` share. They only describe a metric; the numbers come from ``scoring.py``.

``evaluate`` copies a module's file elsewhere before it runs it, so that the file imports this package by its full name:
the repository has to be installed (``pip install -e .``), and no hub is asked for anything.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import datasets
import evaluate

from benchmarks.e2e.metrics import score
from harness.errors import UserError

E2E_CITATION = """\
@inproceedings{dusek-etal-2018-findings,
  title = {Findings of the {E2E} {NLG} Challenge},
  author = {Du\\v{s}ek, Ond\\v{r}ej and Novikova, Jekaterina and Rieser, Verena},
  booktitle = {Proceedings of the 11th International Conference on Natural Language Generation},
  year = {2018}
}
"""

_INPUTS = """\
Args:
    predictions (list of str): one output for each distinct meaning representation.
    references (list of list of str): for each output, all its references; their number may vary.
"""


class E2EMetric(evaluate.Metric):
    """An ``evaluate`` module that calls :func:`benchmarks.e2e.metrics.score`.

    Attributes:
        about: what the metric is, in a sentence or two.
        arguments: a line for each argument of ``compute`` beside predictions and references.
        returns: a line for each key of the result.
        citation: BibTeX of the paper that proposed the metric.
    """

    about: ClassVar[str]
    arguments: ClassVar[str] = ""
    returns: ClassVar[str]
    citation: ClassVar[str] = E2E_CITATION

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.citation,
            inputs_description=f"{_INPUTS}{self.arguments}Returns:\n{self.returns}",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
            codebase_urls=["https://github.com/tuetschek/e2e-metrics"],
        )

    @abstractmethod
    def _compute(self, predictions: list[str], references: list[list[str]], **options: Any) -> dict[str, Any]: ...


def score_one(
    name: str,
    predictions: list[str],
    references: list[list[str]],
    variant: str | None = None,
    columns: Mapping[str | None, str] | None = None,
) -> dict[str, Any]:
    """Returns ``{name: score, name_signature: how it was computed}``, so that modules can be combined.

    Args:
        name: the key of the result.
        predictions: see :func:`benchmarks.e2e.metrics.score`.
        references: see there.
        variant: which of the metric's variants to compute.
        columns: variant -> the metric's name in :func:`benchmarks.e2e.metrics.score`; ``name`` itself if None.

    Raises:
        UserError: if there is no such variant, or the metric is not to be had on this machine (with the reason).
    """
    columns = columns or {None: name}
    if variant not in columns:
        raise UserError(f"unknown variant {variant!r} of {name}: choose one of {', '.join(map(str, columns))}")
    column = columns[variant]
    found = score(predictions, references, metrics=[column])
    if column not in found.metrics:
        raise UserError(f"{name} is unavailable: {found.unavailable[column]}")
    return {name: found.metrics[column], f"{name}_signature": found.signatures[column]}
