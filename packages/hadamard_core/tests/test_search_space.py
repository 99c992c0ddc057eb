"""Domains of a search space refuse what is no domain."""

import math

import pytest

from hadamard_core.method import PeftMethod
from hadamard_core.search_space import DEFAULT, Choices, LogUniform, Uniform


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
@pytest.mark.parametrize("ends", [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_range_has_two_finite_ends_in_order(kind, ends):
    with pytest.raises(ValueError, match="the range goes from"):
        kind(*ends)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_only_a_logarithmic_range_must_start_above_0(low):
    assert Uniform(low, 1.0).low == low
    with pytest.raises(ValueError, match="must start above 0"):
        LogUniform(low, 1.0)


def test_choices_are_at_least_one_and_none_twice():
    assert Choices([1, 2]) == Choices((1, 2))
    assert hash(Choices([("query", "value"), None])) == hash(Choices((("query", "value"), None)))
    with pytest.raises(ValueError, match="no value"):
        Choices(())
    with pytest.raises(ValueError, match="2 is among the choices twice"):
        Choices((2, 1, 2))


def test_a_method_that_declares_nothing_searches_the_learning_rate():
    assert PeftMethod.search_space is DEFAULT
    assert dict(DEFAULT) == {"train.learning_rate": LogUniform(1e-5, 1e-1)}
