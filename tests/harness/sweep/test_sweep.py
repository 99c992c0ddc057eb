"""The command as a whole: what it trains, writes and prints, and that it goes on whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from harness.errors import UserError
from harness.protocols import Rule
from harness.sweep import page, supervision
from harness.sweep.owners import is_dead
from harness.sweep.trial import HELD_OUT

OUT = Path("out")
JOURNAL = "journal:out/study.journal"
IN_JOURNAL = ("--storage", JOURNAL)
CLOSE = 1e-5


def told(err: str) -> list[str]:
    """What the lines that tell how trials ended start with."""
    return [line.split(":")[0] for line in err.splitlines() if ": trial " in line]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


UNDISTURBED: list[FrozenTrial] = []


@pytest.fixture
def undisturbed(here, flags, trials_in) -> list[FrozenTrial]:
    """The trials of a sweep that nothing happens to."""
    if not UNDISTURBED:
        code, _, err = here(flags("--storage", "journal:calm/study.journal", out="calm"))
        assert code == 0, err
        UNDISTURBED.extend(trials_in("journal:calm/study.journal"))
    return UNDISTURBED


def assert_as(expected: list[FrozenTrial], trials: list[FrozenTrial]) -> None:
    assert [trial.user_attrs["slot"] for trial in trials] == list(range(len(expected)))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.params for trial in trials] == [trial.params for trial in expected]
    for one, other in zip(trials, expected, strict=True):
        assert one.values == pytest.approx(other.values, abs=CLOSE)
        curves = [[loss for _, loss in trial.user_attrs["curve"]] for trial in (one, other)]
        assert len(curves[0]) == 8
        assert curves[0] == pytest.approx(curves[1], abs=CLOSE)


def test_trials_then_final_runs_then_nothing_more(sweep, forkserver, run_here, flags, study_in, trials_in, monkeypatch):
    command = flags("--seeds", "2", "--trials-per-process", "3")
    code, out, err = sweep(command)
    assert code == 0, err
    trials = trials_in()
    assert [trial.user_attrs["slot"] for trial in trials] == [0, 1, 2, 3]
    assert {trial.state for trial in study_in().trials} == {TrialState.COMPLETE}
    owners = [trial.user_attrs["owner"] for trial in trials]
    assert owners[0] == owners[1] == owners[2] != owners[3]
    assert all(f"pid:{os.getpid()} " not in owner for owner in owners)
    assert told(err) == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert "data: train 24, held out 8, validation 8" in err
    assert "trained: 1,458 of 6,450 parameters" in err

    best = max(trials, key=lambda trial: trial.value)
    assert sum(trial.value == best.value for trial in trials) == 1
    assert f"best: trial {best.user_attrs['slot']}: held-out accuracy {best.value:.4f}" in out
    assert "Plotly.newPlot" in (OUT / "sweep.html").read_text()
    assert read(OUT / "sweep.json")["finals"]["seeds"] == [0, 1]
    (folder,) = OUT.glob("final-*")
    results = [read(folder / f"seed{seed}" / "result.json") for seed in (0, 1)]
    for seed, result in enumerate(results):
        assert result["seed"] == seed
        assert result["config"]["train"]["learning_rate"] == best.params["train.learning_rate"]
        assert result["config"]["method_settings"]["r"] == best.params["method.r"]
        assert result["evaluations"]["held_out"]["split"] == "validation"
    # the first of them has the seed of the trials
    assert results[0]["evaluations"]["held_out"]["selection"]["value"] == pytest.approx(best.value, abs=CLOSE)

    named = ["--method", "hut", "--task", "toy-classes", "--recipe", "out/best.toml"]
    assert run_here([*named, "--output-dir", "again"])[0] == 0
    metrics = [
        {name: entry["metrics"] for name, entry in result["evaluations"].items()}
        for result in (read(Path("again/result.json")), results[0])
    ]
    assert metrics[0] == metrics[1]

    def nobody(*arguments):
        raise AssertionError("there is nothing to train")

    monkeypatch.setattr(page, "write", lambda study, path: None)  # takes longer than all else now
    monkeypatch.setattr(supervision, "start", nobody)
    monkeypatch.setattr(supervision, "answer", nobody)
    code, same, err = sweep(command)
    assert (code, same) == (0, out)
    assert "4 of 4 are there already" in err
    assert "2 of 2 are there already" in err
    code, shown, err = sweep(["--show", "toy-classes-hut-quick", "--output-dir", "out"])
    assert (code, shown) == (0, out), err
    code, shown, err = sweep(["--show", study_in().study_name + "-" + folder.name, "--output-dir", "out", "--json"])
    assert (code, json.loads(shown)["trials"]["complete"]) == (0, 2), err


def test_the_same_trials_in_packs(undisturbed, here, flags, trials_in):
    code, _, err = here(flags("--pack", "2", *IN_JOURNAL))
    assert code == 0, err
    assert "2 trials train together in each pass" in err
    trials = trials_in(JOURNAL)
    assert_as(undisturbed, trials)
    assert [trial.user_attrs["pack"] for trial in trials] == [2, 2, 2, 2]
    assert [trial.user_attrs["pack"] for trial in undisturbed] == [1, 1, 1, 1]


def test_more_trials_go_on_with_a_sweep(undisturbed, here, flags, trials_in):
    assert here(flags(*IN_JOURNAL, "--trials", "2"))[0] == 0
    code, out, err = here(flags(*IN_JOURNAL, "--trials", "4", "--json"))
    assert code == 0, err
    trials = trials_in(JOURNAL)
    assert_as(undisturbed, trials)
    assert "2 of 4 are there already" in err
    assert told(err) == ["3 of 4", "4 of 4"]
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    assert found["trials"]["complete"] == 4
    rows = sorted(found["rows"], key=lambda row: row["slot"])
    assert [row["params"] for row in rows] == [dict(sorted(trial.params.items())) for trial in trials]


class TestWhatATrialIs:
    def test_its_value_is_what_a_run_of_these_settings_has_on_held_out_examples(self, undisturbed, run_here, flags):
        trial = max(undisturbed, key=lambda trial: trial.value)
        rate, r = trial.params["train.learning_rate"], trial.params["method.r"]
        argv = flags()[: flags().index("--trials")]
        code, _, err = run_here([*argv, "--train.learning-rate", repr(rate), "--method.r", str(r)])
        assert code == 0, err
        result = read(OUT / "result.json")
        held_out = result["evaluations"]["held_out"]["selection"]
        assert (held_out["split"], held_out["metric"]) == ("held_out", "accuracy")
        assert held_out["value"] == trial.value
        assert [[entry["step"], entry["loss"]] for entry in result["train"]["loss_curve"]] == trial.user_attrs["curve"]
        assert [[entry["step"], entry["held_out"]] for entry in result["train"]["measurements"]] == trial.user_attrs[
            "measured"
        ]
        assert trial.user_attrs["trained_parameters"] == result["parameters"]["trained"]

    def test_no_trial_sees_what_is_scored(self, here, flags, monkeypatch):
        """Validation examples are encoded by the final runs alone, and scored once for each seed."""
        from toy_classes import LoadedToyClasses

        seen, scored = [], []
        encode, evaluate = LoadedToyClasses.encode, LoadedToyClasses.evaluate
        monkeypatch.setattr(
            LoadedToyClasses, "encode", lambda self, *given: seen.append(given[-1]) or encode(self, *given)
        )
        monkeypatch.setattr(
            LoadedToyClasses, "evaluate", lambda self, *given: scored.append(given[2]) or evaluate(self, *given)
        )
        few = [*IN_JOURNAL, "--trials", "2", "--score", "held_out"]
        assert here(flags(*few, "--pack", "2", "--study", "packed"))[0] == 0
        assert here(flags(*few))[0] == 0
        assert (set(seen), scored) == ({"train", "held_out"}, [])
        assert here(flags(*few, "--seeds", "2"))[0] == 0
        assert scored == ["validation", "validation"]

    def test_the_last_step_counts_where_the_last_step_is_scored(self, here, flags, trials_in):
        code, _, err = here(flags(*IN_JOURNAL, "--trials", "2", "--score", "last"))
        assert code == 0, err
        for trial in trials_in(JOURNAL):
            assert trial.value == trial.user_attrs["measured"][-1][1]["accuracy"]


def test_a_grid_and_a_trial_that_diverges(here, flags, trials_in):
    """It is recorded with the reason, its sampler learns that it was bad, and the sweep goes on."""
    grid = ["--sampler", "grid", "--space.learning-rate", "1e38", "1e-2", "5e-2", "--space.r", "1", "2"]
    code, out, err = here(flags(*grid, "--trials", "6", *IN_JOURNAL))
    assert code == 0, err
    trials = trials_in(JOURNAL)
    assert [tuple(trial.params.values()) for trial in trials] == [
        (rate, r) for rate in (1e38, 1e-2, 5e-2) for r in (1, 2)
    ]
    assert [trial.state.name for trial in trials] == ["PRUNED"] * 2 + ["COMPLETE"] * 4
    for trial in trials[:2]:
        assert "is not finite at step 1 of 8, so training stops" in trial.user_attrs["failure"]
    assert f"diverged: trials 0, 1: {trials[0].user_attrs['failure'][:60]}" in out
    assert "6 (4 complete, 0 pruned, 2 diverged, 0 failed)" in out


def test_trials_that_diverge_or_fail_in_the_middle(undisturbed, here, flags, trials_in, monkeypatch):
    from toy_classes import LoadedToyClasses

    losses, calls = LoadedToyClasses.losses, []

    def fails(self, *given, **named):
        calls.append(1)
        if len(calls) == 20:
            raise RuntimeError("the cable\nis out.")
        return losses(self, *given, **named)

    monkeypatch.setattr(LoadedToyClasses, "losses", fails)
    monkeypatch.setenv("TOY_FAULT", "nan-loss-12")
    code, out, err = here(flags(*IN_JOURNAL))
    assert code == 0, err
    trials = trials_in(JOURNAL)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert trials[1].user_attrs["failure"].startswith("the loss is not finite at step 4 of 8")
    assert [step for step, _ in trials[1].user_attrs["measured"]] == [2]
    assert trials[2].user_attrs["failure"] == "RuntimeError: the cable is out"
    assert "failed: trial 2: RuntimeError: the cable is out" in out
    assert [trial.params for trial in trials] == [trial.params for trial in undisturbed]
    for number in (0, 3):
        assert trials[number].user_attrs["curve"] == undisturbed[number].user_attrs["curve"]


def test_pruned_trials_give_their_places_to_others(here, flags, trials_in, monkeypatch):
    """Rates that learn come first, so that those that do not are behind the median from their first measurement on."""
    from toy_classes import ToyClasses

    monkeypatch.setattr(ToyClasses, "rules", {HELD_OUT: Rule(HELD_OUT, "loss", False, "lowest held-out loss")})
    rates = ["3e-2", "4e-2", "5e-2", "6e-2", "1e-9", "7e-2", "2e-9", "8e-2"]
    grid = ["--sampler", "grid", "--space.learning-rate", *rates, "--space.r", "1", "--score", "held_out"]
    command = flags(*grid, "--trials", "8", "--pack", "2", "--pruner", "median", *IN_JOURNAL)
    code, out, err = here(command)
    assert code == 0, err
    trials = trials_in(JOURNAL)
    assert [trial.params["train.learning_rate"] for trial in trials] == [float(rate) for rate in rates]
    assert [trial.state for trial in trials[:4]] == [TrialState.COMPLETE] * 4
    for number in (4, 6):
        assert trials[number].state == TrialState.PRUNED
        assert "failure" not in trials[number].user_attrs
        assert trials[number].user_attrs["steps"] < 8
        assert trials[number].value == trials[number].user_attrs["measured"][-1][1]["loss"]
    assert "0 diverged, 0 failed" in out


def test_quality_against_parameters(here, flags, study_in, trials_in):
    grid = ["--sampler", "grid", "--space.learning-rate", "1e38", "2e-2", "5e-2", "--space.r", "1", "4"]
    command = flags(*grid, "--trials", "6", "--objectives", "quality", "parameters", *IN_JOURNAL, "--json")
    code, out, err = here(command)
    assert code == 0, err
    trials = trials_in(JOURNAL)
    assert [trial.state.name for trial in trials] == ["FAIL"] * 2 + ["COMPLETE"] * 4
    assert "is not finite" in trials[0].user_attrs["failure"]
    points = [trial.values for trial in trials[2:]]
    assert [size for _, size in points] == [562, 946, 562, 946]
    assert study_in(JOURNAL).user_attrs["objectives"] == ["held-out accuracy", "trained parameters"]
    front = json.loads(out)["pareto_front"]
    by_hand = {
        slot
        for slot, (quality, size) in enumerate(points, start=2)
        if not any(q >= quality and s <= size and (q, s) != (quality, size) for q, s in points)
    }
    assert set(front) == by_hand
    best = max(points)[0]
    assert f"held-out accuracy {best:.6g} (trial" in (OUT / "best.toml").read_text()


def test_an_interrupt_says_how_to_go_on(undisturbed, here, flags, study_in, trials_in, monkeypatch):
    monkeypatch.setenv("TOY_FAULT", "interrupt-loss-12")
    code, out, err = here(flags(*IN_JOURNAL))
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("stopped; to go on: python -m harness.sweep --method hut --task toy-classes")
    monkeypatch.delenv("TOY_FAULT")
    code, _, err = here(flags(*IN_JOURNAL))
    assert code == 0, err
    assert "1 of 4 are there already" in err
    assert_as(undisturbed, trials_in(JOURNAL))
    assert sorted(trial.state.name for trial in study_in(JOURNAL).trials) == ["COMPLETE"] * 4 + ["FAIL"]


def wait_for(what: Callable[[], object]) -> object:
    deadline = time.monotonic() + 120.0
    while not (result := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


@pytest.fixture
def busy(study_in) -> Callable[[int], int | None]:
    """Returns the process of a worker that is at work on a trial, once so many trials are complete."""

    def look(complete: int) -> int | None:
        try:
            trials = study_in(JOURNAL).trials if Path("out/study.journal").is_file() else []
        except UserError:  # the study has not been created yet
            return None
        owners = [trial.user_attrs.get("owner") for trial in trials if trial.state == TrialState.RUNNING]
        if not any(owners) or sum(trial.state == TrialState.COMPLETE for trial in trials) < complete:
            return None
        return int(re.search(r"pid:(\d+)", next(filter(None, owners)))[1])

    return look


def test_two_workers_of_which_one_is_killed(undisturbed, sweep, forkserver, flags, busy, study_in, trials_in):
    """Its trial is made again, once and with the same parameters."""
    killer = threading.Thread(target=lambda: os.kill(wait_for(lambda: busy(1)), signal.SIGKILL))
    killer.start()
    code, _, err = sweep(flags("--workers", "2", *IN_JOURNAL))
    killer.join()
    assert code == 0, err
    assert_as(undisturbed, trials_in(JOURNAL))
    lost = [trial for trial in study_in(JOURNAL).trials if trial.state == TrialState.FAIL]
    assert len(lost) == 1
    assert "failure" not in lost[0].user_attrs


def test_a_sweep_that_is_killed_goes_on_by_the_same_command(
    undisturbed, here, forkserver, flags, busy, study_in, trials_in, tmp_path
):
    """At first with all its processes, then the one alone that a person started: its workers end by themselves."""
    import sweep_process

    context, command = multiprocessing.get_context("forkserver"), flags(*IN_JOURNAL)
    for complete, kill in ((1, os.killpg), (2, os.kill)):
        process = context.Process(target=sweep_process.in_group, args=(command, str(tmp_path)))
        process.start()
        worker = wait_for(lambda complete=complete: busy(complete))
        owner = next(
            trial.user_attrs["owner"]
            for trial in study_in(JOURNAL).trials
            if f"pid:{worker} " in trial.user_attrs.get("owner", "")
        )
        kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        wait_for(lambda owner=owner: is_dead(owner))
    assert len(trials_in(JOURNAL)) < 4
    code, _, err = here(command)
    assert code == 0, err
    assert_as(undisturbed, trials_in(JOURNAL))
    states = [trial.state.name for trial in study_in(JOURNAL).trials]
    assert states.count("COMPLETE") == 4
    assert states.count("FAIL") == len(states) - 4 <= 2
