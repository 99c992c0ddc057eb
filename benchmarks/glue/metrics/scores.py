"""The metrics of GLUE (Wang et al., ICLR 2019, arXiv 1804.07461), as fractions of 1 where papers print 100 times that.

With the confusion matrix of classes 0 and 1, true and false positives and negatives TP, FP, TN and FN:

* ``accuracy`` = share of the examples whose prediction is the reference;
* ``f1`` of class 1 = 2 TP / (2 TP + FP + FN), and 0 where that is 0 / 0;
* ``matthews_correlation`` = (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), and 0 where that is 0 / 0:
  all predictions, or all references, are one class;
* ``pearson`` = cov(x, y) / (std(x) std(y)), NaN where x or y is constant;
* ``spearmanr`` = ``pearson`` of the ranks, where equal values share the average of their ranks.

These are the keys of Hugging Face's ``glue`` metric, and its numbers, with three exceptions. It correlates in single
precision, here it is double; Pearson's differs by about 1e-7. Where F1 meets a class beside 0 and 1 it fails; here any
other prediction is merely wrong. And it scores references that are no class of the task; here they are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy
import scipy
import sklearn
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from harness.errors import UserError

REGRESSION = "stsb"
"""The one task whose predictions are scores rather than classes."""

METRICS: Mapping[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    REGRESSION: ("pearson", "spearmanr"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
"""Task -> the keys of its result, in their order."""

_FORMULAS: Mapping[str, Callable[[NDArray, NDArray], float]] = {
    "accuracy": lambda predictions, references: (predictions == references).mean(),
    # Comparing first makes any class but 1 a negative; scikit-learn refuses a third class.
    "f1": lambda predictions, references: f1_score(references == 1, predictions == 1),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": lambda predictions, references: pearsonr(predictions, references)[0],
    "spearmanr": lambda predictions, references: spearmanr(predictions, references)[0],
}
_SIGNATURES: Mapping[str, str] = {
    "accuracy": f"numpy:{numpy.__version__}",
    "f1": f"class:1|undefined:0|sklearn:{sklearn.__version__}",
    "matthews_correlation": f"undefined:0|sklearn:{sklearn.__version__}",
    "pearson": f"dtype:float64|undefined:nan|scipy:{scipy.__version__}",
    "spearmanr": f"ties:average|dtype:float64|undefined:nan|scipy:{scipy.__version__}",
}


def compute(name: str, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Scores predictions against references.

    Undefined scores are silent and as in the module's docstring: 0 for a classification, NaN for a correlation.

    Args:
        name: one of :data:`METRICS`.
        predictions: ``(examples,)``; a class's number, or STS-B's score. A class that the task does not have is wrong.
        references: ``(examples,)``; likewise, in the same order.

    Returns:
        The keys of ``METRICS[name]``, in this order.

    Raises:
        UserError: if there is no such task, the counts differ, there is nothing to score, or a single example for a
            correlation; if anything is not a number, not whole where it stands for a class, or NaN or beyond the
            single precision in which models compute where it is a score; if a reference is no class of the task, such
            as the -1 of test splits.
    """
    keys = _keys(name)
    found, wanted = _numbers("predictions", predictions), _numbers("references", references)
    if len(found) != len(wanted):
        raise UserError(
            f"{len(found)} predictions for {len(wanted)} references of {name}: give one prediction for each example, "
            "in the order of the references"
        )
    if not len(found):
        raise UserError(f"there are no predictions of {name} to score")
    if name == REGRESSION:
        found = _scores(
            found, f"prediction of {name}", "a correlation needs finite numbers, see whether training diverged"
        )
        wanted = _scores(wanted, f"reference of {name}", "a correlation needs finite numbers")
        if len(found) < 2:
            raise UserError(f"1 example of {name} has no correlation: score at least 2")
    else:
        found, wanted = _classes(found, f"prediction of {name}"), _classes(wanted, f"reference of {name}")
        last = 2 if name.startswith("mnli") else 1
        _refuse(
            (wanted < 0) | (wanted > last),
            wanted,
            f"reference of {name}",
            f"its classes are 0 to {last}, so score a split that has labels, and under its own name",
        )
    with warnings.catch_warnings():
        # Of undefined scores, of p-values that nobody asked for, and of more classes than the task has.
        for category in (RuntimeWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        return {key: float(_FORMULAS[key](found, wanted)) for key in keys}


def signature(name: str) -> dict[str, str]:
    """Says how :func:`compute` computed each score of the task ``name``: key -> ``key|choices|library:version``.

    Raises:
        UserError: if there is no such task.
    """
    return {key: f"{key}|{_SIGNATURES[key]}" for key in _keys(name)}


def _keys(name: str) -> tuple[str, ...]:
    if name not in METRICS:
        raise UserError(f"unknown task {name!r} of GLUE: choose one of {', '.join(METRICS)}")
    return METRICS[name]


def _numbers(what: str, values: ArrayLike) -> NDArray:
    try:
        array = numpy.asarray(values)
    except ValueError as error:
        raise UserError(f"the {what} are nested unevenly: give one number for each example") from error
    if array.ndim != 1:
        raise UserError(f"the {what} have the shape {array.shape}: give one number for each example")
    if array.dtype.kind not in "biuf":
        kind = array.dtype.type.__name__
        raise UserError(f"NumPy reads the {what} as {kind}, which is no number: give one number for each example")
    return array


def _classes(values: NDArray, what: str) -> NDArray[numpy.int64]:
    if values.dtype.kind == "f":
        whole = (values == numpy.floor(values)) & (numpy.abs(values) < 2.0**63)
        _refuse(~whole, values, what, "give the number of a class, such as the argmax of its logits")
    return values.astype(numpy.int64)


def _scores(values: NDArray, what: str, advice: str) -> NDArray[numpy.float64]:
    values = values.astype(numpy.float64)
    # Not isfinite: 1e39 is finite here but infinite in float32, in which the evaluate module keeps it.
    usable = numpy.abs(values) <= numpy.finfo(numpy.float32).max
    _refuse(~usable, values, what, advice)
    return values


def _refuse(bad: NDArray[numpy.bool_], values: NDArray, what: str, advice: str) -> None:
    """Raises a :class:`UserError` that names the first value that is ``bad``, if any is; counts from 1."""
    if bad.any():
        position = int(bad.argmax())
        raise UserError(f"{what} number {position + 1} of {len(values)} is {values[position]}: {advice}")
