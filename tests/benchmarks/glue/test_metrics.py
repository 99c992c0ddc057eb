"""GLUE's scores against their formulas, written out here, and the ``evaluate`` module against the function."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import scipy
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.glue.metrics
from benchmarks.glue.metrics import METRICS, REGRESSION, compute, signature
from harness.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")

ROUNDING = 1e-12  # float64, with room for sums of a few thousand terms
SIZES = (2, 3, 17, 256, 2049)
POSITIVE_SHARES = (0.02, 0.5, 0.9)
NAN = math.nan


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    return sum(ours == gold for ours, gold in zip(predictions, references, strict=True)) / len(references)


def confusion(predictions: Sequence[int], references: Sequence[int]) -> tuple[int, int, int, int]:
    """Returns how many are true positives, false positives, false negatives and true negatives of class 1."""
    pairs = [(ours == 1, gold == 1) for ours, gold in zip(predictions, references, strict=True)]
    return tuple(pairs.count(pair) for pair in [(True, True), (True, False), (False, True), (False, False)])


def f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    both, ours_only, gold_only, _ = confusion(predictions, references)
    if not both:
        return 0.0
    precision, recall = both / (both + ours_only), both / (both + gold_only)
    return 2 * precision * recall / (precision + recall)


def matthews(predictions: Sequence[int], references: Sequence[int]) -> float:
    both, ours_only, gold_only, neither = confusion(predictions, references)
    product = (both + ours_only) * (both + gold_only) * (neither + ours_only) * (neither + gold_only)
    return (both * neither - ours_only * gold_only) / math.sqrt(product) if product else 0.0


def pearson(predictions: Sequence[float], references: Sequence[float]) -> float:
    if min(len(set(predictions)), len(set(references))) == 1:
        return NAN
    ours_mean, gold_mean = math.fsum(predictions) / len(predictions), math.fsum(references) / len(references)
    ours, gold = [value - ours_mean for value in predictions], [value - gold_mean for value in references]
    covariance = math.fsum(a * b for a, b in zip(ours, gold, strict=True))
    return covariance / math.sqrt(math.fsum(a * a for a in ours)) / math.sqrt(math.fsum(b * b for b in gold))


def average_ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: index for index, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    return pearson(average_ranks(predictions), average_ranks(references))


ORACLES = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearson": pearson,
    "spearmanr": spearman,
}


def oracle(name: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    return {key: ORACLES[key](list(predictions), list(references)) for key in METRICS[name]}


def about(scores: dict[str, float]):
    return pytest.approx(scores, abs=ROUNDING, rel=ROUNDING, nan_ok=True)


def random_case(name: str, size: int, share: float, seed: int) -> tuple[list[float], list[float]]:
    """Returns predictions and references; a ``share`` of the references are of class 1, most predictions are right.

    STS-B's references are multiples of 0.2 as in the dataset, so that there are ties, and some predictions tie too. All
    of them are float32 numbers.
    """
    draw = numpy.random.default_rng([size, int(100 * share), seed])
    if name == REGRESSION:
        references = draw.integers(0, 26, size) / 5
        predictions = references + draw.normal(0, 4 * share, size)
        predictions = numpy.where(draw.random(size) < 0.3, predictions.round(), predictions)
        return predictions.astype(numpy.float32).tolist(), references.astype(numpy.float32).tolist()
    classes = 3 if name.startswith("mnli") else 2
    references = numpy.where(draw.random(size) < share, 1, 2 * draw.integers(0, classes - 1, size))
    predictions = numpy.where(draw.random(size) < 0.2, draw.integers(0, classes, size), references)
    return predictions.tolist(), references.tolist()


@pytest.mark.parametrize("share", POSITIVE_SHARES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", METRICS)
def test_the_formulas(name, size, share):
    for seed in range(3):
        predictions, references = random_case(name, size, share, seed)
        assert compute(name, predictions, references) == about(oracle(name, predictions, references))


@pytest.mark.parametrize("name", METRICS)
def test_the_keys_are_in_the_order_of_the_table_and_floats(name):
    scores = compute(name, [0, 1, 1], [0, 1, 0])
    assert tuple(scores) == METRICS[name]
    assert {type(value) for value in scores.values()} == {float}


def test_the_tasks():
    expected = {
        "cola": ("matthews_correlation",),
        **dict.fromkeys(("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli"), ("accuracy",)),
        **dict.fromkeys(("mrpc", "qqp"), ("accuracy", "f1")),
        "stsb": ("pearson", "spearmanr"),
    }
    assert expected == METRICS


EDGES = [
    ("cola", [1, 1, 1], [0, 1, 0], {"matthews_correlation": 0.0}),
    ("cola", [0, 1, 0], [1, 1, 1], {"matthews_correlation": 0.0}),
    ("cola", [0, 0], [0, 0], {"matthews_correlation": 0.0}),
    ("cola", [1], [1], {"matthews_correlation": 0.0}),
    ("cola", [1, 0], [1, 0], {"matthews_correlation": 1.0}),
    ("cola", [0, 1], [1, 0], {"matthews_correlation": -1.0}),
    ("mrpc", [0, 0, 0], [0, 1, 0], {"accuracy": 2 / 3, "f1": 0.0}),
    ("mrpc", [0, 1, 0], [0, 0, 0], {"accuracy": 2 / 3, "f1": 0.0}),
    ("mrpc", [0, 0], [0, 0], {"accuracy": 1.0, "f1": 0.0}),
    ("qqp", [1, 1], [1, 1], {"accuracy": 1.0, "f1": 1.0}),
    ("qqp", [1], [1], {"accuracy": 1.0, "f1": 1.0}),
    ("qqp", [1], [0], {"accuracy": 0.0, "f1": 0.0}),
    ("rte", [1], [0], {"accuracy": 0.0}),
    ("mnli", [2, 2], [2, 0], {"accuracy": 0.5}),
    ("stsb", [2.5, 2.5, 2.5], [0.0, 1.0, 5.0], {"pearson": NAN, "spearmanr": NAN}),
    ("stsb", [0.0, 1.0, 5.0], [2.5, 2.5, 2.5], {"pearson": NAN, "spearmanr": NAN}),
    ("stsb", [1.0, 2.0], [0.0, 5.0], {"pearson": 1.0, "spearmanr": 1.0}),
    ("stsb", [1.0, 2.0], [5.0, 0.0], {"pearson": -1.0, "spearmanr": -1.0}),
    ("stsb", [1.0, 1.0], [5.0, 0.0], {"pearson": NAN, "spearmanr": NAN}),
    ("stsb", [0.0, 0.0, 3.0, 3.0], [1.0, 2.0, 2.0, 1.0], {"pearson": 0.0, "spearmanr": 0.0}),
]


@pytest.mark.parametrize(("name", "predictions", "references", "expected"), EDGES)
def test_edges_are_silent(name, predictions, references, expected, capfd):
    assert compute(name, predictions, references) == about(expected)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [-1, 2, 99])
def test_a_class_that_the_task_does_not_have_is_wrong(wrong):
    assert compute("sst2", [wrong, 1], [0, 1]) == {"accuracy": 0.5}
    assert compute("mrpc", [wrong, 1, 1], [1, 1, 0]) == about({"accuracy": 1 / 3, "f1": 0.5})
    assert compute("cola", [wrong, 1, 0], [1, 1, 0])["matthews_correlation"] < 1


def test_many_different_predictions_are_silent():
    assert compute("cola", list(range(100)), [0, 1] * 50)["matthews_correlation"] < 0.1


def test_correlations_are_in_double_precision():
    predictions, references = random_case("stsb", 2049, 0.5, 0)
    single = numpy.array(predictions, numpy.float32), numpy.array(references, numpy.float32)
    assert compute("stsb", *single) == about(oracle("stsb", predictions, references))
    # Numbers that float32 rounds to 1.
    close = [1 + 1e-8 * value for value in range(4)]
    assert compute("stsb", close, range(4))["pearson"] == pytest.approx(1)


def test_predictions_that_hardly_differ_are_silent():
    next_to_one = math.nextafter(1, 2)
    assert compute("stsb", [1.0, next_to_one, 1.0], [0.0, 5.0, 0.0])["spearmanr"] == pytest.approx(1, abs=ROUNDING)


def test_a_single_precision_input_of_great_values_does_not_overflow():
    values = [-3e38, 1.0, 3e38, 2e38]
    ranks = [0.0, 1.0, 5.0, 3.0]
    assert compute("stsb", values, ranks)["spearmanr"] == pytest.approx(1, abs=ROUNDING)
    scaled = [value / 1e38 for value in values]
    assert compute("stsb", values, ranks) == about(compute("stsb", scaled, ranks))


@pytest.mark.parametrize(
    "kind", [list, tuple, numpy.array, lambda x: numpy.array(x, numpy.uint8), lambda x: numpy.array(x, numpy.float32)]
)
@pytest.mark.parametrize("name", METRICS)
def test_kinds_of_input(name, kind):
    predictions, references = [0, 1, 1, 0, 1], [0, 1, 0, 0, 1]
    assert compute(name, kind(predictions), references) == compute(name, predictions, kind(references))
    assert compute(name, kind(predictions), kind(references)) == about(oracle(name, predictions, references))


def test_booleans_are_classes():
    assert compute("mrpc", [True, False], numpy.array([True, True])) == compute("mrpc", [1, 0], [1, 1])


def pairs(values: st.SearchStrategy, least: int = 1) -> st.SearchStrategy:
    """Returns lists of (prediction, reference)."""
    return st.lists(st.tuples(values, values), min_size=least, max_size=40)


properties = settings(deadline=None, derandomize=True, max_examples=60)
binary = pairs(st.integers(0, 1))
scores = pairs(st.integers(-50, 50).map(float), least=2)


def split(examples: list[tuple]) -> tuple[list, list]:
    predictions, references = zip(*examples, strict=True)
    return list(predictions), list(references)


@properties
@given(binary)
def test_matthews_is_symmetric_and_does_not_care_for_the_names_of_classes(examples):
    predictions, references = split(examples)
    score = compute("cola", predictions, references)
    assert score == about(compute("cola", references, predictions))
    flipped, flipped_references = [1 - value for value in predictions], [1 - value for value in references]
    assert score == about(compute("cola", flipped, flipped_references))
    negated = -score["matthews_correlation"]
    assert compute("cola", flipped, references) == about({"matthews_correlation": negated})
    assert abs(negated) <= 1 + ROUNDING


@properties
@given(binary)
def test_f1_is_symmetric(examples):
    predictions, references = split(examples)
    assert compute("qqp", predictions, references) == about(compute("qqp", references, predictions))


@properties
@given(pairs(st.integers(0, 2)), st.permutations(range(3)))
def test_accuracy_does_not_care_for_the_names_of_classes(examples, names):
    predictions, references = split(examples)
    renamed = [names[value] for value in predictions], [names[value] for value in references]
    assert compute("mnli", *renamed) == compute("mnli", predictions, references)


@properties
@given(st.sampled_from(sorted(METRICS)), st.randoms(use_true_random=False), st.integers(2, 40))
def test_the_order_of_examples_does_not_matter(name, random, size):
    examples = list(zip(*random_case(name, size, 0.5, 0), strict=True))
    shuffled = random.sample(examples, size)
    assert compute(name, *split(shuffled)) == about(compute(name, *split(examples)))


@properties
@given(st.sampled_from(sorted(METRICS)), st.lists(st.integers(0, 1), min_size=2, max_size=40))
def test_perfect_predictions(name, references):
    absent = {"f1": 1 in references, "matthews_correlation": len(set(references)) == 2}
    undefined = {"pearson": NAN, "spearmanr": NAN} if len(set(references)) == 1 else {}
    expected = {key: undefined.get(key, float(absent.get(key, True))) for key in METRICS[name]}
    assert compute(name, references, references) == about(expected)


@properties
@given(scores)
def test_correlations_are_symmetric_and_bounded(examples):
    predictions, references = split(examples)
    found = compute("stsb", predictions, references)
    assert found == about(compute("stsb", references, predictions))
    assert found == about(oracle("stsb", predictions, references))
    assert all(not abs(value) > 1 + ROUNDING for value in found.values())


@properties
@given(scores)
def test_spearman_does_not_change_under_a_rising_map(examples):
    predictions, references = split(examples)
    cubes = [value**3 for value in predictions]  # whole and below 2**53, so equal only where the values are
    expected = compute("stsb", predictions, references)["spearmanr"]
    assert compute("stsb", cubes, references)["spearmanr"] == pytest.approx(expected, abs=ROUNDING, nan_ok=True)


@properties
@given(scores, st.integers(1, 9), st.integers(-9, 9))
def test_pearson_does_not_change_under_a_rising_line_and_turns_with_a_falling_one(examples, slope, shift):
    predictions, references = split(examples)
    expected = compute("stsb", predictions, references)
    rising = [slope * value + shift for value in predictions]
    falling = [-value for value in rising]
    assert compute("stsb", rising, references) == about(expected)
    assert compute("stsb", falling, references) == about({key: -value for key, value in expected.items()})


REFUSED = [
    (
        "cola2",
        [0],
        [0],
        "unknown task 'cola2' of GLUE: choose one of cola, sst2, mrpc, stsb, qqp, mnli, mnli_matched, ",
    ),
    ("rte", [0, 1], [0], "2 predictions for 1 references of rte: give one prediction for each example"),
    ("stsb", [0.0], [], "1 predictions for 0 references of stsb"),
    ("rte", [], [], "there are no predictions of rte to score"),
    ("stsb", [], [], "there are no predictions of stsb to score"),
    ("stsb", [1.0], [2.0], "1 example of stsb has no correlation: score at least 2"),
    (
        "mrpc",
        [1, 0.5],
        [1, 0],
        "prediction of mrpc number 2 of 2 is 0.5: give the number of a class, such as the argmax",
    ),
    ("cola", [NAN, 1], [1, 0], "prediction of cola number 1 of 2 is nan: give the number of a class"),
    ("mnli", [1e300], [0], "prediction of mnli number 1 of 1 is 1e+300: give the number of a class"),
    ("sst2", [1], [0.5], "reference of sst2 number 1 of 1 is 0.5: give the number of a class"),
    ("wnli", [1, 1, 0], [0, 1, -1], "reference of wnli number 3 of 3 is -1: its classes are 0 to 1, so score a split "),
    ("qnli", [1], [2], "reference of qnli number 1 of 1 is 2: its classes are 0 to 1"),
    ("mnli_matched", [1], [3], "reference of mnli_matched number 1 of 1 is 3: its classes are 0 to 2"),
    (
        "stsb",
        [1.0, NAN],
        [0.0, 1.0],
        "prediction of stsb number 2 of 2 is nan: a correlation needs finite numbers, see ",
    ),
    ("stsb", [-math.inf, 1.0], [0.0, 1.0], "prediction of stsb number 1 of 2 is -inf: a correlation needs finite"),
    ("stsb", [1e39, 1.0], [0.0, 1.0], "prediction of stsb number 1 of 2 is 1e+39: a correlation needs finite"),
    ("stsb", [1.0, 2.0], [0.0, NAN], "reference of stsb number 2 of 2 is nan: a correlation needs finite numbers"),
    ("rte", [[0.1, 0.9]], [1], "the predictions have the shape (1, 2): give one number for each example"),
    ("stsb", [1.0, 2.0], [[1.0], [2.0]], "the references have the shape (2, 1): give one number for each example"),
    ("rte", [[0.1, 0.9], [0.1]], [1, 0], "the predictions are nested unevenly: give one number for each example"),
    ("rte", ["yes"], [1], "NumPy reads the predictions as str_, which is no number: give one number for each example"),
    ("rte", [None], [1], "NumPy reads the predictions as object_, which is no number"),
]


@pytest.mark.parametrize(("name", "predictions", "references", "message"), REFUSED)
def test_what_cannot_be_scored_is_refused_in_one_sentence(name, predictions, references, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}[^\n]*$"):
        compute(name, predictions, references)


def test_signatures_say_which_library():
    assert signature("mrpc") == {
        "accuracy": f"accuracy|numpy:{numpy.__version__}",
        "f1": f"f1|class:1|undefined:0|sklearn:{sklearn.__version__}",
    }
    assert signature("stsb") == {
        "pearson": f"pearson|dtype:float64|undefined:nan|scipy:{scipy.__version__}",
        "spearmanr": f"spearmanr|ties:average|dtype:float64|undefined:nan|scipy:{scipy.__version__}",
    }
    for name in METRICS:
        assert tuple(signature(name)) == METRICS[name]
    with pytest.raises(UserError, match=r"^unknown task 'glue' of GLUE"):
        signature("glue")


MODULE = Path(benchmarks.glue.metrics.__file__).parent / "glue_scores"
PROGRAM = """
import json, socket, sys, warnings

def refuse(*arguments):
    raise AssertionError("network")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

def message(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

path, cases = sys.argv[1], json.load(sys.stdin)
results = []
warnings.simplefilter("error")
for name, predictions, references in cases:
    module = evaluate.load(path, name)
    at_once = module.compute(predictions=predictions, references=references)
    batches = []
    for size in (1, 7):
        for start in range(0, len(predictions), size):
            part = slice(start, start + size)
            module.add_batch(predictions=predictions[part], references=references[part])
        batches.append(module.compute())
    for prediction, reference in zip(predictions, references):
        module.add(prediction=prediction, reference=reference)
    batches.append(module.compute())
    dtypes = sorted({feature.dtype for feature in module.features.values()})
    results.append([module.name, dtypes, at_once, batches])
assert module.description and "@inproceedings" in module.citation and "spearmanr" in module.inputs_description
rte = evaluate.load(path, "rte")
refused = [
    message(evaluate.load, path),
    message(evaluate.load, path, "ax"),
    message(rte.compute, predictions=[0], references=[-1]),
    message(rte.compute, predictions=[], references=[]),
]
after = rte.compute(predictions=[0], references=[0])
print(json.dumps([results, refused, after]))
"""
CASES = [
    *((name, *random_case(name, size, 0.5, 0)) for name in METRICS for size in (2, 40)),
    *((name, predictions, references) for name, predictions, references, _ in EDGES),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What the module says of ``CASES`` in a process that cannot reach any network, what it refuses, a score after."""
    home = tmp_path_factory.mktemp("home")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(MODULE)],
        cwd=home,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)},
        input=json.dumps(CASES),
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    return json.loads(run.stdout)


def test_the_module_says_what_the_function_says(loaded):
    results, _, _ = loaded
    assert len(results) == len(CASES)
    for (name, predictions, references), (module, dtypes, at_once, batches) in zip(CASES, results, strict=True):
        # As text, in which a NaN is equal to another; the numbers are to be the same to the last bit.
        expected = repr(compute(name, predictions, references))
        assert module == "glue_scores"
        assert dtypes == ["float32" if name == REGRESSION else "int64"]
        assert [repr(scores) for scores in (at_once, *batches)] == [expected] * 4


def test_the_module_refuses_and_goes_on(loaded):
    _, refused, after = loaded
    without_name, unknown, hidden, empty = refused
    assert without_name.startswith("UserError: glue_scores has no configuration 'default': name a task, such as ")
    assert unknown.startswith("UserError: glue_scores has no configuration 'ax'")
    assert unknown.endswith("out of cola, sst2, mrpc, stsb, qqp, mnli, mnli_matched, mnli_mismatched, qnli, rte, wnli")
    assert hidden.startswith("UserError: reference of rte number 1 of 1 is -1")
    assert empty == "UserError: there are no predictions of rte to score"
    assert after == {"accuracy": 1.0}
