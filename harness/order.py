"""Which examples make up each optimiser step, as a pure function of seed and step.

Nothing is remembered between steps, so a resumed run needs no replay, and every number of processes or micro-batches
sees the same global batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

# with group_by_length, lengths are sorted within this many batches: enough for near neighbours, few enough for chance
BATCHES_SORTED_TOGETHER = 50


@dataclass(frozen=True, eq=False)  # hashed as an object, not by hundreds of thousands of lengths at every step
class Order:
    """The order of one run.

    Attributes:
        lengths: tokens of each training example.
        batch_size: examples of a step over all processes; what is left over at an epoch's end is dropped.
    """

    lengths: tuple[int, ...]
    batch_size: int
    seed: int
    group_by_length: bool

    @property
    def steps_per_epoch(self) -> int:
        return len(self.lengths) // self.batch_size

    def total_steps(self, epochs: float, max_steps: int | None) -> int:
        """Returns the number of optimiser steps of the run."""
        return max_steps or max(1, math.ceil(epochs * self.steps_per_epoch))

    def batch(self, step: int) -> tuple[int, ...]:
        """Returns the examples of a step (from 0), shortest first."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # Each order keeps its own epoch, since many may take turns in a sweep's packs.
        known = _last_epoch.get(self)
        if known is None or known[0] != epoch:
            known = _last_epoch[self] = epoch, _epoch(self, epoch)
        return known[1][within]

    def share(self, step: int, rank: int, processes: int, micro_batch: int) -> list[tuple[int, ...]]:
        """Returns the micro-batches of one process; examples of like length meet in one, so padding stays small."""
        mine = self.batch(step)[rank::processes]
        return [mine[start : start + micro_batch] for start in range(0, len(mine), micro_batch)]


_last_epoch: WeakKeyDictionary[Order, tuple[int, list[tuple[int, ...]]]] = WeakKeyDictionary()


def _epoch(order: Order, epoch: int) -> list[tuple[int, ...]]:
    lengths = np.asarray(order.lengths)
    random = np.random.default_rng([order.seed, epoch])
    # what does not fill a batch is dropped before lengths are looked at: afterwards it would be the longest examples
    shuffled = random.permutation(len(lengths))[: order.steps_per_epoch * order.batch_size]
    if order.group_by_length:
        chunk = BATCHES_SORTED_TOGETHER * order.batch_size
        chunks = [shuffled[start : start + chunk] for start in range(0, len(shuffled), chunk)]
        shuffled = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in chunks])
    batches = shuffled.reshape(-1, order.batch_size)
    if order.group_by_length:
        batches = batches[random.permutation(len(batches))]
    return [tuple(batch[np.argsort(lengths[batch], kind="stable")].tolist()) for batch in batches]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Returns all examples once, in batches of like length."""
    sorted_examples = np.argsort(np.asarray(lengths), kind="stable").tolist()
    return [sorted_examples[start : start + batch_size] for start in range(0, len(sorted_examples), batch_size)]


def step_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of a step's random numbers (dropout) in one process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
