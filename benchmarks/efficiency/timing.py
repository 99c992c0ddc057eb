"""Times taken side by side, and ratios of times of the same turn.

On a busy machine a time says little and a ratio of two times, taken one right after the other, much more: what slows
one slows the other. All rows run in a turn, each as often first as the others, and a ratio is taken within a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

Turn = Mapping[str, float]
"""Seconds by row."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A median of paired ratios and its spread.

    Attributes:
        median: of ``values``.
        quartiles: of ``values``, first and third: the spread of a turn.
        interval: the 95 % interval of the median, by bootstrap over turns.
        values: the ratio of each turn.
    """

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    values: tuple[float, ...]

    @property
    def text(self) -> str:
        """The median with its interval, for a table."""
        return f"{self.median:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"

    @property
    def quartiles_text(self) -> str:
        return f"{self.quartiles[0]:.3f} to {self.quartiles[1]:.3f}"


def summarise(values: Sequence[float]) -> Ratio:
    """Returns median, quartiles and interval of ratios, the same ones whenever it is asked."""
    numbers = np.asarray(values, dtype=float)
    samples = np.random.default_rng(0).choice(numbers, (_RESAMPLES, len(numbers)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    first, third = np.percentile(numbers, [25, 75])
    return Ratio(float(np.median(numbers)), (float(first), float(third)), (float(low), float(high)), tuple(values))


def paired(turns: Sequence[Turn], name: str, reference: str) -> Ratio:
    """Returns the ratio of one row's seconds to another's, taken within each turn."""
    return summarise([turn[name] / turn[reference] for turn in turns])


def median_seconds(turns: Sequence[Turn], name: str) -> float:
    """Returns the median of a row's seconds."""
    return float(np.median([turn[name] for turn in turns]))


def interleave(
    steps: Mapping[str, Callable[[], object]],
    turns: int,
    device: torch.device,
    after: Callable[[str], None] = lambda name: None,
    repeats: int = 1,
) -> list[Turn]:
    """Times steps in turn.

    A timed step follows another of the same row, as in training: caches and memory are as that one left them.

    Args:
        steps: by row; each is called once before all turns, to compile and allocate what it needs.
        turns: how often each row is timed.
        device: what runs them; a GPU is waited for.
        after: called with the row's name after each step, not timed.
        repeats: how many steps of a row are timed in a turn, one after the other; their median counts.
    """
    names = list(steps)
    for name in names:
        steps[name]()
        after(name)
    return [
        {name: _warm_steps(steps[name], device, partial(after, name), repeats) for name in names[k:] + names[:k]}
        for k in (turn % len(names) for turn in range(turns))
    ]


def _warm_steps(step: Callable[[], object], device: torch.device, after: Callable[[], None], repeats: int) -> float:
    """Seconds of a step, the median of several; one that is not timed comes first."""
    step()
    after()
    seconds = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        step()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
        after()
    return float(np.median(seconds))


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
