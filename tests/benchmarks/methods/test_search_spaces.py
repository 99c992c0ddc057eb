"""What methods declare for sweeps: settings that exist, with values that can be, the learning rate among them."""

from __future__ import annotations

import pytest

from hadamard_core.search_space import Choices, LogUniform
from harness import recipes, registry
from harness.sweep import space

METHODS = [name for name, entry in registry.entries("method").items() if entry.dist and "toy" not in entry.dist.name]


@pytest.mark.parametrize("name", METHODS)
def test_a_sweep_takes_it(name):
    config = recipes.build(name, "cola", "quick")
    parameters = space.build(config, {}).parameters
    assert parameters.keys() == dict(type(config.method_settings).search_space).keys()
    assert isinstance(parameters["train.learning_rate"], LogUniform)
    rate = config.train.learning_rate
    assert parameters["train.learning_rate"].low <= rate <= parameters["train.learning_rate"].high
    for key, domain in parameters.items():
        values = domain.values if isinstance(domain, Choices) else (domain.low, domain.high)
        for value in values:
            space.apply(config, {key: value})
