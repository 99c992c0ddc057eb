"""Ratios are taken within a turn, and every row is first as often as the others."""

import numpy as np
import pytest
import torch

from benchmarks.efficiency import timing
from benchmarks.efficiency.timing import interleave, median_seconds, paired, summarise

CPU = torch.device("cpu")


def test_a_slow_turn_leaves_the_ratio_as_it_is():
    turns = [{"floor": slow, "row": 1.25 * slow} for slow in (1.0, 100.0, 3.0, 7.0)]
    ratio = paired(turns, "row", "floor")
    assert ratio.median == ratio.quartiles[0] == ratio.quartiles[1] == ratio.interval[0] == ratio.interval[1] == 1.25
    assert median_seconds(turns, "row") == 1.25 * 5.0


def test_median_quartiles_and_values():
    turns = [{"floor": 2.0, "row": 2.0 * value} for value in (5, 1, 4, 2, 3)]
    ratio = paired(turns, "row", "floor")
    assert (ratio.median, ratio.quartiles) == (3, (2, 4))
    assert ratio.values == (5, 1, 4, 2, 3)
    assert ratio.text.startswith("3.000 [")
    assert ratio.quartiles_text == "2.000 to 4.000"


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    values = np.random.default_rng(1).normal(1.0, 0.1, (200, 25))
    intervals = [summarise(sample).interval for sample in values]
    covered = sum(low <= 1.0 <= high for low, high in intervals) / len(intervals)
    assert 0.88 < covered <= 1.0
    assert all(low < high for low, high in intervals)


def test_the_interval_narrows_with_the_turns():
    values = np.random.default_rng(2).normal(1.0, 0.1, 400)
    widths = [np.ptp(summarise(values[:count]).interval) for count in (10, 400)]
    assert widths[1] < widths[0] / 2


def test_a_single_turn_is_its_own_interval():
    assert summarise([1.5]).interval == (1.5, 1.5)


@pytest.mark.parametrize("turns", [3, 6])
def test_each_row_is_first_equally_often_and_follows_itself(turns):
    called = []
    steps = {name: lambda name=name: called.append(name) for name in "abc"}
    found = interleave(steps, turns, CPU)
    assert [set(turn) for turn in found] == [set("abc")] * turns
    assert called[:3] == list("abc")  # once before all turns
    of_turns = [called[3 + 6 * turn : 9 + 6 * turn] for turn in range(turns)]
    assert all(one[::2] == one[1::2] for one in of_turns)
    assert sorted(one[0] for one in of_turns) == sorted("abc" * (turns // 3))


def test_what_comes_after_a_step_comes_after_each():
    called = []
    interleave({"a": lambda: called.append("step")}, 2, CPU, after=called.append)
    assert called == ["step", "a"] * 5


def test_the_median_of_the_steps_of_a_turn_counts(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 23])  # steps of 5, 1 and 3 seconds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert interleave({"a": lambda: None}, 1, CPU, repeats=3) == [{"a": 3}]
