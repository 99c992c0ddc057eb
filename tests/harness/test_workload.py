"""A measurement belongs to an example: how the examples are cut into batches changes no metric."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from harness import models, registry
from harness.config import DataConfig
from harness.order import by_length
from harness.workload import Workload, collate, in_order, lengths, measure

TASKS = {"toy": "AutoModelForCausalLM", "toy-classes": "AutoModelForSequenceClassification"}
# fp32 sums over other widths of padding
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=TASKS)
def workload(request, tiny_model):
    """A task's workload and the tiny model for it."""
    task = registry.load("task", request.param)().load(DataConfig(train_limit=8, eval_limit=20), 0)
    base = models.find(str(tiny_model), TASKS[request.param], 0, say=print)
    base.model_kwargs = task.model_kwargs(None)
    tokenizer = base.tokenizer()
    measured = {"validation": task.encode(tokenizer, "validation")}
    return Workload(task, tokenizer, task.encode(tokenizer, "train"), measured), base.fresh()


def rows_of(workload, model, size):
    """Each example's row, in batches of like length of one size."""
    features = workload.measured["validation"]
    batches = by_length(lengths(features), size)
    parts = list(measure(model, workload.task, workload.tokenizer, features, batches, torch.device("cpu")))
    return in_order(parts, len(features))


@pytest.mark.parametrize("size", [2, 7, 20, 100])
def test_rows_do_not_depend_on_the_batch_size(size, workload):
    alone = rows_of(*workload, size=1)
    assert alone.dtype == torch.float64
    assert len(alone) == 20
    assert len(alone.unique(dim=0)) > 5  # texts differ, so a wrong order would show
    torch.testing.assert_close(rows_of(*workload, size=size), alone, **TOLERANCE)


def test_rows_stand_in_the_order_of_the_split(workload):
    work, model = workload
    features = work.measured["validation"]
    rows = rows_of(work, model, size=7)
    for example in (0, 11, 19):
        batch = collate(work.task, work.tokenizer, [features[example]], torch.device("cpu"))
        expected = work.task.measure(model.eval(), batch).detach().double()
        torch.testing.assert_close(rows[example : example + 1], expected, **TOLERANCE)


@pytest.mark.parametrize("size", [1, 7])
def test_metrics_do_not_depend_on_the_batch_size(size, workload):
    AcceleratorState._reset_state(reset_partial_state=True)
    work, model = workload
    expected = work.task.summarise("validation", rows_of(work, model, size=3))
    assert work.measure(model, "validation", size, Accelerator(cpu=True)) == pytest.approx(expected, rel=1e-5)


def test_measuring_switches_dropout_off_and_keeps_no_gradient(workload):
    work, model = workload
    model.train()
    first, second = rows_of(work, model, size=4), rows_of(work, model.train(), size=4)
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_a_batch_holds_the_examples_that_were_asked_for(workload):
    work, _ = workload
    batch = work.batch([5, 2], torch.device("cpu"))
    for row, example in zip(batch["input_ids"].tolist(), (5, 2), strict=True):
        ids = work.train[example]["input_ids"]
        assert row[: len(ids)] == ids


def test_in_order_restores_the_order_of_the_split():
    rows = torch.arange(12.0).reshape(6, 2)
    batches = [[4, 0], [3], [1, 5, 2]]
    assert torch.equal(in_order([(batch, rows[batch]) for batch in batches], 6), rows)


@pytest.mark.parametrize("batches", [[[0, 1], [3]], [[0, 1], [1, 2], [3]], [[0, 1], [2, 3, 4]]])
def test_an_example_that_is_missing_or_twice_is_noticed(batches):
    with pytest.raises(AssertionError, match="measured once"):
        in_order([(batch, torch.zeros(len(batch), 2)) for batch in batches], 4)
