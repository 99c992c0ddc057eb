"""A sweep's summary and table: what counts, and numbers that can be checked by hand."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from harness.errors import UserError
from harness.sweep import show

LEARNING_RATE, R = "train.learning_rate", "method.r"
SPACE = {LEARNING_RATE: FloatDistribution(1e-4, 1e-1, log=True), R: CategoricalDistribution([1, 2, 4, 8])}
METRIC = "matthews_correlation"
SAME = "all complete trials have the same value, to 1e-06 of it"


def study_of(trials, objectives=(f"held-out {METRIC}",), directions=("maximize",), name="cola-hut"):
    """A study as a sweep leaves it."""
    study = optuna.create_study(study_name=name, directions=directions)
    settings = {
        "train": {"batch_size": 32, "learning_rate": 0.5},
        "method_settings": {"r": 3, "roles": ["query", "value"]},
        "stages": {"stage1": {"epochs": 1.0}},
    }
    searched = {LEARNING_RATE: "0.0001 to 0.1, logarithmic", R: "1, 2, 4, 8"}
    study.set_user_attr("identity", {"method": "hut", "task": "cola", **settings, "space": searched})
    study.set_user_attr("objectives", list(objectives))
    study.add_trials(trials)
    return study


def trial(slot, value=None, learning_rate=1e-3, r=1, state=TrialState.COMPLETE, seconds=60.0, reported=None, **attrs):
    """One attempt at a slot; ``value`` is a tuple where there are several objectives."""
    values = None if value is None else list(value) if isinstance(value, tuple) else [value]
    numbers = {} if seconds is None else {"seconds": seconds, "steps": 100, "trained_parameters": 1000 * r}
    return create_trial(
        state=state,
        values=values,
        params={LEARNING_RATE: learning_rate, R: r},
        distributions=SPACE,
        intermediate_values=reported or {},
        user_attrs={"slot": slot, "owner": "somebody", **numbers, **attrs},
    )


@pytest.fixture
def eventful():
    """Six slots, of which one was lost at first, one was finished twice, and one is worked on."""
    study = study_of(
        [
            trial(0, 0.3, 1e-3, overhead_seconds=0.5),
            trial(1, state=TrialState.FAIL, learning_rate=5e-4, seconds=None),  # lost
            trial(1, 0.5, 5e-4, r=8, overhead_seconds=0.25),
            trial(2, 0.4, 2e-3),
            trial(2, 0.9, 2e-3, seconds=1000.0),  # finished as well, later
            trial(
                2, state=TrialState.FAIL, learning_rate=2e-3, seconds=None, spare=True
            ),  # closed without being needed
            trial(3, state=TrialState.PRUNED, reported={10: 0.2, 20: 0.1}, seconds=20.0),
            trial(4, state=TrialState.PRUNED, reported={10: math.nan}, seconds=5.0, failure="the loss is not finite"),
            trial(5, state=TrialState.FAIL, seconds=None, failure="out of memory"),
        ]
    )
    study.ask().set_user_attr("slot", 6)
    return study


def test_one_trial_counts_for_each_slot(eventful):
    found = show.summary(eventful)
    assert found["trials"] == {
        "filled": 6,
        "complete": 3,
        "pruned": 1,
        "diverged": 1,
        "failed": 1,
        "running": 1,
        "lost_attempts": 1,
        "spare_attempts": 2,
    }
    states = ["complete", "complete", "complete", "pruned", "diverged", "failed"]
    assert [(row["slot"], row["state"]) for row in found["rows"]] == list(enumerate(states))
    assert [row["number"] for row in found["rows"]] == [0, 2, 3, 6, 7, 8]
    assert found["best"] == 1  # not the spare attempt's 0.9
    assert found["budget"] == {"steps": 500, "seconds": 205.0, "overhead_seconds": 0.75}


def test_a_row_says_what_a_trial_was(eventful):
    rows = show.summary(eventful)["rows"]
    assert rows[1] == {
        "slot": 1,
        "number": 2,
        "state": "complete",
        "values": [0.5],
        "last_reported": None,
        "params": {R: 8, LEARNING_RATE: 5e-4},
        "seconds": 60.0,
        "overhead_seconds": 0.25,
        "steps": 100,
        "trained_parameters": 8000,
        "pack": None,
        "failure": None,
    }
    assert (rows[3]["values"], rows[3]["last_reported"]) == (None, [20, 0.1])
    assert (rows[4]["last_reported"], rows[4]["failure"]) == (None, "the loss is not finite")


def test_a_summary_is_json_without_nan(eventful):
    found = show.summary(eventful)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_study_of_others_is_refused():
    with pytest.raises(UserError, match=r"'other' was not made by harness\.sweep"):
        show.summary(optuna.create_study(study_name="other"))


def test_a_study_without_trials_has_a_table():
    found = show.summary(study_of([]))
    assert (found["best"], found["rows"], found["without_influence"]) == (None, [], [])
    lines = show.table(found).splitlines()
    assert lines[2] == f"searched: {LEARNING_RATE} 0.0001 to 0.1, logarithmic; {R} 1, 2, 4, 8"
    assert lines[-1] == "best: none, since no trial is complete"


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 0)])
def test_the_best_follows_the_direction_and_the_first_of_equals_wins(direction, best):
    trials = [trial(0, 0.2), trial(1, 0.7), trial(2, 0.7), trial(3, 0.2)]
    found = show.summary(study_of(trials, directions=[direction]))
    assert (found["best"], found["pareto_front"]) == (best, None)


def test_the_pareto_front_holds_what_nothing_dominates():
    values = [(0.5, 100), (0.6, 200), (0.5, 200), (0.4, 50), (0.6, 300), (0.5, 100)]
    trials = [trial(slot, value) for slot, value in enumerate(values)]
    trials.append(trial(6, state=TrialState.FAIL, failure="the loss is not finite"))
    found = show.summary(study_of(trials, ["held-out accuracy", "parameters"], ["maximize", "minimize"]))
    assert found["pareto_front"] == [1, 0, 5, 3]
    assert found["best"] is None
    text = show.table(found)
    assert "Pareto front: 4 of 6 complete trials" in text
    assert f"trial 1: held-out accuracy 0.6000, parameters 200; {R} 1, {LEARNING_RATE} 1.00e-03" in text


def grid(value):
    """12 learning rates evenly spaced on a log scale from 1e-4 to 1e-1, with r = 1 and 8 each."""
    rates = [10 ** (-4 + 3 * (index + 0.5) / 12) for index in range(12)]
    pairs = [(rate, r) for rate in rates for r in (1, 8)]
    return study_of([trial(slot, value(rate, r), rate, r) for slot, (rate, r) in enumerate(pairs)])


def test_importance_counts_decades_of_the_learning_rate_alike():
    """A third of the decades at +1 has variance 2/9; half of the choices of r at +-0.15 have 0.0225.

    Were the learning rate's range counted evenly, the lowest decade would be 0.9 % of it, and r would come first.
    """
    study = grid(lambda rate, r: float(rate < 1e-3) + 0.15 * (1 if r == 8 else -1))
    (entry,) = show.summary(study)["importance"]
    assert entry["trials"] == 24
    assert list(entry["shares"]) == [LEARNING_RATE, R]
    assert sum(entry["shares"].values()) == pytest.approx(1)
    assert entry["shares"][LEARNING_RATE] == pytest.approx((2 / 9) / (2 / 9 + 0.0225), abs=0.06)
    assert show.summary(study)["importance"] == [entry]


def test_importance_of_a_parameter_that_does_nothing():
    found = show.summary(grid(lambda rate, r: math.log10(rate)))
    assert found["importance"][0]["shares"][R] < 0.005
    words = f"importance for held-out {METRIC}: {LEARNING_RATE} 1.00, {R} 0.00 (fANOVA over 24 complete trials"
    assert words in " ".join(show.table(found).split())


def test_importance_does_not_depend_on_the_size_of_the_values():
    large, small = (
        show.summary(grid(lambda rate, r, scale=scale: scale * math.log10(rate) ** r))["importance"]
        for scale in (1, 2**-30)
    )
    assert small == large


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([(0.1, 1e-3, 1), (0.2, 1e-2, 2), (0.3, 1e-4, 4)], "it takes 4 complete trials, and there are 3"),
        ([(0.1 * r, 1e-3, r) for r in (1, 2, 4, 8)], "method.r is the only parameter that varies"),
        ([(0.1, 1e-3, 1), (0.2, 1e-3, 1), (0.3, 1e-3, 1), (0.4, 1e-3, 1)], "no parameter varies"),
        ([(0.1, 1e-3 / r, r) for r in (1, 2, 4, 8)], SAME),
        ([(0.1 + 1e-9 * r, 1e-3 / r, r) for r in (1, 2, 4, 8)], SAME),
        ([(0.0, 1e-3 / r, r) for r in (1, 2, 4, 8)], SAME),
    ],
)
def test_importance_says_why_there_is_none(trials, reason):
    found = show.summary(study_of([trial(slot, *settings) for slot, settings in enumerate(trials)]))
    objective = f"held-out {METRIC}"
    assert found["importance"] == [{"objective": objective, "trials": len(trials), "shares": None, "reason": reason}]
    assert f"importance for {objective}: none, since {reason}" in show.table(found)


def measured(slot, rate, r, losses, metric):
    curve = [[10 * (index + 1), loss] for index, loss in enumerate(losses)]
    return trial(slot, metric, rate, r, curve=curve, measured=[[20, {METRIC: metric}]])


def test_a_rank_that_does_nothing_shows():
    losses = {1: [0.7, 0.5], 2: [0.700001, 0.5], 4: [0.7, 0.500003, 0.4], 8: [0.7, 0.5]}
    trials = [measured(slot, 1e-3, r, losses[r], 0.25) for slot, r in enumerate(losses)]
    found = show.summary(study_of(trials))
    rank, rate = found["without_influence"]
    assert rank == {
        "parameter": R,
        "groups": 1,
        "trials": 4,
        "values": [1, 2, 4, 8],
        "training_loss": pytest.approx(3e-6, rel=1e-6),
        "metrics": {METRIC: 0.0},
    }
    assert (rate["parameter"], rate["groups"], rate["training_loss"]) == (LEARNING_RATE, 0, None)
    words = " ".join(show.table(found).split())
    assert (
        "trials that differ in method.r alone (1, 2, 4, 8): 4 trials, training loss curves differ by at most 3e-06, "
        "held-out matthews_correlation by 0 no two complete trials differ in one of these alone: train.learning_rate"
    ) in words


def test_only_trials_that_differ_in_one_parameter_are_compared():
    trials = [
        measured(0, 1e-3, 1, [0.7], 0.25),
        measured(1, 1e-3, 8, [0.6], 0.5),
        measured(2, 1e-2, 1, [0.3], 0.0),
        measured(3, 1e-2, 2, [0.35], 0.125),
        measured(4, 1e-2, 2, [99.0], 9.0),  # twice the same: compared with trial 2, as its twin is
        trial(5, state=TrialState.PRUNED, learning_rate=1e-3, r=2, curve=[[10, 77.0]]),
        trial(6, 0.1, 1e-4, 4),
    ]
    rank, rate = show.summary(study_of(trials))["without_influence"]
    assert (rank["groups"], rank["trials"], rank["values"]) == (2, 5, [1, 2, 8])
    assert rank["training_loss"] == pytest.approx(98.7)
    assert rank["metrics"] == {METRIC: 9.0}
    assert (rate["groups"], rate["trials"], rate["values"]) == (1, 2, [1e-3, 1e-2])
    assert rate["training_loss"] == pytest.approx(0.4)
    assert rate["metrics"] == {METRIC: 0.25}


def test_metrics_alone_are_compared_where_there_are_no_curves():
    trials = [trial(slot, 0.5, r=r, measured=[[20, {METRIC: 0.1 * r}]]) for slot, r in enumerate((1, 2))]
    words = " ".join(show.table(show.summary(study_of(trials))).split())
    assert f"alone (1, 2): 2 trials, held-out {METRIC} differs by at most 0.1" in words


def test_curves_without_a_common_step_are_not_compared():
    trials = [trial(slot, 0.5, r=r, curve=[[r, 0.1 * r]]) for slot, r in enumerate((1, 2))]
    found = show.summary(study_of(trials))
    assert found["without_influence"][0]["training_loss"] is None
    assert "(1, 2): 2 trials, without a measurement at the same step" in " ".join(show.table(found).split())


def test_the_table_reads_from_conditions_to_the_best(eventful):
    lines = show.table(show.summary(eventful)).splitlines()
    assert lines[0] == "sweep cola-hut: hut on cola"
    assert lines[1] == (
        f"objective: held-out {METRIC} (maximize); held out are training examples set apart, never validation or test"
    )
    assert lines[2] == f"searched: {R} one of 1, 2, 4, 8; {LEARNING_RATE} 1.00e-04 to 1.00e-01 (log)"
    assert lines[3] == "all trials: stage1.epochs 1.0, train.batch_size 32"
    assert lines[4].startswith("trials: 6 (3 complete, 1 pruned, 1 diverged, 1 failed); still going on: 1; attempts")
    start = lines.index("") + 1
    rows = [line.split() for line in lines[start + 1 : start + 7]]
    assert [row[0] for row in rows] == ["1", "2", "0", "3", "4", "5"]
    assert rows[0] == ["1", "2", "complete", "0.5000", "8", "5.00e-04", "100", "8,000", "60.0"]
    assert rows[3][2:6] == ["pruned", "(0.1000", "at", "20)"]
    assert "diverged: trial 4: the loss is not finite" in lines
    assert "failed: trial 5: out of memory" in lines
    assert lines[-1] == f"best: trial 1: held-out {METRIC} 0.5000; {R} 8, {LEARNING_RATE} 5.00e-04"


def test_a_long_table_has_the_best_40_trials():
    found = show.summary(study_of([trial(slot, slot / 100) for slot in range(41)]))
    lines = show.table(found).splitlines()
    note = lines.index("the best 40 of 41 trials")
    shown = [line.split()[0] for line in lines[note - 40 : note]]
    assert shown == [str(slot) for slot in range(40, 0, -1)]
    assert len(found["rows"]) == 41


def test_one_reason_stands_once_with_all_its_trials():
    trials = [trial(slot, state=TrialState.FAIL, failure="out of memory") for slot in range(3)]
    assert "failed: trials 0, 1, 2: out of memory" in show.table(show.summary(study_of(trials))).splitlines()


def test_listed_learning_rates_read_like_drawn_ones_and_a_fixed_parameter_has_no_column():
    space = {LEARNING_RATE: CategoricalDistribution([1e-3, 0.02]), R: CategoricalDistribution([8])}
    trials = []
    for slot, rate in enumerate((1e-3, 0.02)):
        trials.append(trial(slot, 0.1 * slot, rate, r=8))
        trials[-1].distributions = space
    found = show.summary(study_of(trials))
    text = show.table(found)
    assert f"searched: {R} 8; {LEARNING_RATE} one of 1.00e-03, 2.00e-02" in text
    assert f"{LEARNING_RATE} 2.00e-02" in text.splitlines()[-1]
    assert [entry["parameter"] for entry in found["without_influence"]] == [LEARNING_RATE]
    header, first = (line.split() for line in text.split("\n\n")[1].splitlines()[:2])
    assert header[4:] == [LEARNING_RATE, "steps", "trained", "seconds"]
    assert first == ["1", "complete", "0.1000", "2.00e-02", "100", "8,000", "60.0"]


def test_trials_that_shared_passes_show_how_many():
    lines = show.table(show.summary(study_of([trial(0, 0.1, pack=8), trial(1, 0.2, pack=1)]))).splitlines()
    assert "the time of a pass that trials share is divided among them" in " ".join(" ".join(lines).split())
    start = next(index for index, line in enumerate(lines) if line.split()[:1] == ["trial"])
    assert [line.split()[-1] for line in lines[start : start + 3]] == ["pack", "1", "8"]


@pytest.mark.parametrize(("slots", "places", "seconds"), [(5, 1, 60.0), (5, 2, 40.0), (5, 3, 20.0), (2, 1, 0.0)])
def test_time_left_is_the_mean_duration_for_each_round(slots, places, seconds):
    start = datetime(2025, 1, 1)
    finished = [trial(slot, 0.5) for slot in range(2)]
    for found, duration in zip(finished, (10, 30), strict=True):
        found.datetime_start, found.datetime_complete = start, start + timedelta(seconds=duration)
    assert show.time_left(finished, slots, places) == seconds


def test_time_left_is_not_known_before_a_trial_is_finished():
    assert show.time_left([], 5, 1) is None
