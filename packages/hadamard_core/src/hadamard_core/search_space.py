"""What a method's sweep searches when nothing else is said: a domain for each setting, and how values are drawn there.

A method declares ``search_space``, a mapping from dotted keys of a run's configuration to domains: the method's own
settings are ``method.NAME``, those of training ``train.NAME``, those of an earlier stage ``STAGE.NAME``::

    search_space = {"train.learning_rate": LogUniform(1e-4, 1e-1), "method.r": Choices((1, 2, 4, 8))}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


def _check_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the range goes from {low} to {high}: both ends must be finite numbers")
    if low >= high:
        raise ValueError(f"the range goes from {low} to {high}: it must end above its start")


@dataclass(frozen=True)
class LogUniform:
    """A number whose logarithm is uniform between those of ``low`` and ``high``.

    Raises:
        ValueError: an end is not finite, ``low`` is 0 or below, or not below ``high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if self.low <= 0:
            raise ValueError(f"the range starts at {self.low}: a log-uniform range must start above 0")


@dataclass(frozen=True)
class Uniform:
    """A number that is uniform between ``low`` and ``high``.

    Raises:
        ValueError: an end is not finite, or ``low`` is not below ``high``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)


@dataclass(frozen=True)
class Choices:
    """One of several values, none nearer to another than to the rest.

    Raises:
        ValueError: there is no value, or one is there twice.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ValueError("there is no value to choose: give at least one")
        for value in self.values:
            if self.values.count(value) > 1:
                raise ValueError(f"{value!r} is among the choices twice: give each value once")


Domain = LogUniform | Uniform | Choices

DEFAULT: Mapping[str, Domain] = MappingProxyType({"train.learning_rate": LogUniform(1e-5, 1e-1)})
"""What is searched for a method that declares nothing: wide enough for all of a model's parameters as for a few."""
