"""Which parameters are scored: those that a task's rules select, whatever happened to the run in between."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harness.checkpoint import CheckpointStore, History
from harness.protocols import Rule
from harness.training import select
from harness.workload import Workload

OUT = Path("out")
NAN, INF = math.nan, math.inf
CLASSES = ("--task", "toy-classes")
WEIGHTS = "adapter_model.safetensors"


def step_selected(values, higher_is_better):
    """The step that a rule selects, from 1, and the value that is noted."""
    history = History()
    for step, value in enumerate(values, start=1):
        history.step = step
        rule = Rule("validation", "score", higher_is_better, "in words")
        select({"rule": rule}, {"validation": {"score": value}}, history)
    assert [entry["step"] for entry in history.measurements] == list(range(1, len(values) + 1))
    return history.best["rule"]["step"], history.best["rule"]["value"]


class TestRules:
    @pytest.mark.parametrize(
        ("values", "highest", "lowest"),
        [
            ([1.0, 3.0, 2.0], 2, 1),
            ([3.0, 1.0, 2.0], 1, 2),
            ([0.0, -1.0, 1.0], 3, 2),
            ([2.0, 2.0, 2.0], 1, 1),
            ([1.0, 2.0, 2.0, 1.0], 2, 1),
            ([0.0, 0.0, NAN], 1, 1),
            ([NAN, 0.0, 1.0], 3, 2),
            ([NAN, NAN, 0.0], 3, 3),
            ([1.0, NAN, 2.0, NAN], 3, 1),
            ([INF, 1.0, -INF, 2.0], 4, 2),
        ],
        ids=str,
    )
    def test_the_best_number_is_selected_and_the_earliest_of_equals(self, values, highest, lowest):
        assert step_selected(values, True) == (highest, values[highest - 1])
        assert step_selected(values, False) == (lowest, values[lowest - 1])

    @pytest.mark.parametrize("higher_is_better", [True, False])
    def test_without_any_number_it_is_the_first(self, higher_is_better):
        assert step_selected([NAN, INF, NAN], higher_is_better) == (1, None)

    def test_each_rule_looks_at_its_own_split_and_metric(self):
        rules = {
            "highest": Rule("held_out", "accuracy", True, "a"),
            "lowest": Rule("validation", "loss", False, "b"),
        }
        history = History()
        for step, accuracy, loss in [(2, 0.5, 1.0), (4, 0.9, 3.0), (6, 0.1, 0.5)]:
            history.step = step
            found = {"held_out": {"accuracy": accuracy, "loss": -loss}, "validation": {"accuracy": 1.0, "loss": loss}}
            select(rules, found, history)
        assert history.best == {"highest": {"step": 4, "value": 0.9}, "lowest": {"step": 6, "value": 0.5}}


@pytest.fixture
def measured(monkeypatch):
    """Makes the measurements of a run the given accuracies, in turn for each split."""

    def use(**accuracies: list[float]) -> None:
        queues = {split: list(values) for split, values in accuracies.items()}
        monkeypatch.setattr(
            Workload, "measure", lambda self, model, split, *_: {"loss": 1.0, "accuracy": queues[split].pop(0)}
        )

    return use


# steps 2, 4, 6 and 8
APART = {"held_out": [0.9, 0.5, 0.5, 0.5], "validation": [0.1, 0.3, 0.8, 0.2]}


def run_json(run_here, argv):
    code, out, err = run_here(argv)
    assert code == 0, err
    return json.loads(out)


def steps_of(result):
    return {which: entry["step"] for which, entry in result["evaluations"].items()}


def test_two_rules_select_apart(run_here, arguments, measured, monkeypatch):
    """What no rule selects any more is deleted while the run goes on."""
    after_each_step = {}
    save = CheckpointStore.save

    def watched(store, model, optimizer, history, of_method):
        save(store, model, optimizer, history, of_method)
        after_each_step[history.step] = {int(path.stem[5:]) for path in store.folder.glob("best-*.safetensors")}
        assert len(list(store.folder.iterdir())) == 1 + len(after_each_step[history.step])

    monkeypatch.setattr(CheckpointStore, "save", watched)
    measured(**APART)
    result = run_json(run_here, arguments(*CLASSES, "--json"))
    assert after_each_step == {1: set(), 2: {2}, 3: {2}, 4: {2, 4}, 5: {2, 4}, 6: {2, 6}, 7: {2, 6}, 8: {2, 6}}
    assert steps_of(result) == {"held_out": 2, "published": 6, "last": 8}
    held_out, published = result["evaluations"]["held_out"], result["evaluations"]["published"]
    assert held_out["selection"] == {"split": "held_out", "metric": "accuracy", "value": 0.9}
    assert published["selection"] == {"split": "validation", "metric": "accuracy", "value": 0.8}
    assert published["selected_by"] == "highest validation accuracy"
    assert {path.name for path in OUT.glob("adapter*")} == {"adapter", "adapter-published", "adapter-last"}
    assert not (OUT / "checkpoint").exists()


def test_what_is_selected_are_the_parameters_of_that_step(run_here, arguments, measured):
    constant = [*CLASSES, "--train.schedule", "constant", "--json"]
    measured(**APART)
    run_json(run_here, arguments(*constant))
    files = [OUT / "adapter" / WEIGHTS, OUT / "adapter-published" / WEIGHTS]
    for steps, file in zip((2, 6), files, strict=True):
        measured(**APART)
        run_json(
            run_here, arguments(*constant, "--score", "last", "--train.max-steps", str(steps), out=f"short{steps}")
        )
        assert file.read_bytes() == (Path(f"short{steps}") / "adapter" / WEIGHTS).read_bytes()
    first, second = map(load_file, files)
    assert any(not first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("loss", [3, 7])
def test_a_run_that_was_stopped_selects_the_same(loss, run_here, arguments, measured, monkeypatch, what_counts):
    measured(**APART)
    run_json(run_here, arguments(*CLASSES, "--json", out="whole"))
    measured(**APART)
    monkeypatch.setenv("TOY_FAULT", f"interrupt-loss-{loss}")
    assert run_here(arguments(*CLASSES))[0] == 130
    monkeypatch.delenv("TOY_FAULT")
    resumed = run_json(run_here, arguments(*CLASSES, "--resume", "--json"))
    assert steps_of(resumed) == {"held_out": 2, "published": 6, "last": 8}
    assert what_counts(OUT) == what_counts(Path("whole"))


def test_a_run_that_was_killed_after_its_best_step_selects_the_same(run_here, run_forked, arguments, what_counts):
    flags = ["--train.learning-rate", "3", "--train.schedule", "constant", "--train.eval-every", "1"]
    whole = run_json(run_here, arguments(*flags, "--json", out="whole"))
    assert steps_of(whole)["best"] < 5  # the test is about a run that was killed later than that
    assert run_forked(arguments(*flags), "kill-loss-6") == -signal.SIGKILL
    assert len(list((OUT / "checkpoint").glob("best-*"))) == 1
    assert steps_of(run_json(run_here, arguments(*flags, "--resume", "--json"))) == steps_of(whole)
    assert what_counts(OUT) == what_counts(Path("whole"))


def test_measurements_that_are_no_numbers_select_the_first_and_say_so(run_here, arguments, measured):
    measured(held_out=[NAN] * 4, validation=[NAN, 0.2, NAN, 0.1])
    code, out, err = run_here(arguments(*CLASSES))
    assert code == 0, err
    assert "held out: step 2 (epoch 0.333), selected by highest accuracy on what is held out; scored" in out
    assert "published: step 4 (epoch 0.667), selected by highest validation accuracy, 0.2000 there; scored" in out
    result = json.loads((OUT / "result.json").read_text())
    assert result["evaluations"]["held_out"]["selection"]["value"] is None
    assert result["train"]["measurements"][0]["held_out"] == {"loss": 1.0, "accuracy": None}


def test_a_rule_scores_the_same_whatever_else_is_scored(run_here, arguments):
    alone = run_json(run_here, arguments(*CLASSES, "--score", "published", "--json", out="alone"))
    among_all = run_json(run_here, arguments(*CLASSES, "--json"))
    assert list(alone["evaluations"]) == ["published"]
    same = ("step", "metrics", "selection")
    for key in same:
        assert alone["evaluations"]["published"][key] == among_all["evaluations"]["published"][key]


def test_nothing_is_measured_where_nothing_selects(run_here, arguments, measured):
    measured()  # a measurement would fail
    result = run_json(run_here, arguments(*CLASSES, "--score", "last", "--train.eval-every", "never", "--json"))
    assert result["train"]["measurements"] == []
    assert steps_of(result) == {"last": 8}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--score", "publishd"], "task toy-classes selects by last, published, held_out, did you mean published?"),
        (["--score", "last", "best"], "--score best"),
        (["--score", "held_out", "--train.eval-every", "never"], "--score held_out needs measurements"),
        (["--split", "test"], "--split test: task toy-classes is scored on validation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_selection_that_the_task_does_not_have_is_refused(flags, says, run_here, arguments, assert_refused):
    assert_refused(*run_here(arguments(*CLASSES, *flags)), says)
    assert not OUT.exists()
