"""A limited run sees a part of the data that depends on the seed alone."""

from __future__ import annotations

import pytest

from harness.subsets import chosen, subset

WORDS = [f"word {number}" for number in range(50)]


def test_a_smaller_subset_is_a_part_of_a_larger_one():
    for seed in range(3):
        for smaller in range(50):
            assert set(chosen(50, smaller, seed)) < set(chosen(50, smaller + 1, seed))


def test_a_subset_keeps_the_order_and_takes_nothing_twice():
    part = subset(WORDS, 20, 0)
    assert len(part) == 20
    assert part == [word for word in WORDS if word in set(part)]


def test_a_subset_is_the_same_on_every_machine():
    """These positions are what sha256 ranks lowest; a change of them would change every limited run."""
    assert chosen(10, 4, seed=0) == [0, 4, 6, 9]
    assert chosen(10, 4, seed=1) == [0, 1, 3, 7]


def test_seeds_draw_different_subsets():
    assert len({tuple(chosen(50, 10, seed)) for seed in range(20)}) == 20


@pytest.mark.parametrize("limit", [None, 50, 51])
def test_without_a_limit_that_counts_everything_is_taken(limit):
    assert subset(WORDS, limit, 7) == WORDS
