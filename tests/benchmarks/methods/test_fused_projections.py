"""On GPT-2, whose query, key and value are one projection, methods for query and value leave the key alone."""

from __future__ import annotations

import pytest
import torch

from hadamard_core.orientation import OutputSlice, weight_as_linear
from harness import registry
from harness.capabilities import make_trial

# by the roles that a method adapts if nothing else is said
BY_ROLES = {
    roles: [
        name
        for name, entry in registry.entries("method").items()
        if "toy" not in entry.dist.name
        and set(getattr(registry.load("method", name)(), "roles", None) or ()) == set(roles)
    ]
    for roles in (("query", "value"), ("value",))
}


def test_the_papers_put_these_on_query_and_value():
    assert BY_ROLES["query", "value"] == ["abba", "fourierft", "hut", "krona", "loha", "lora", "vera"]
    assert BY_ROLES["value",] == ["beft"]


@pytest.mark.parametrize(("roles", "name"), [(roles, name) for roles, names in BY_ROLES.items() for name in names])
def test_only_parts_with_the_role_change(roles, name):
    trial = make_trial(registry.load("method", name)(), "gpt2", ())
    merged = trial.method.merge(trial.adapted())
    assert type(merged) is type(trial.base)
    before = dict(trial.base.named_parameters())
    for path, parameter in merged.named_parameters():
        projection, _, kind = path.rpartition(".")
        if not projection.endswith("c_attn"):
            assert torch.equal(parameter, before[path]), path
            continue
        owner, original = merged.get_submodule(projection), trial.base.get_submodule(projection)
        after, old = (
            (weight_as_linear(module) if kind == "weight" else module.bias).detach() for module in (owner, original)
        )
        for part, role in enumerate(("query", "key", "value")):
            own = OutputSlice(part, 3)
            same = torch.equal(own.select(after, 0), own.select(old, 0))
            if role not in roles:
                assert same, f"{path}: {role} has changed"
            elif (kind == "bias") == (name in ("beft",)) or name == "hut":
                assert not same, f"{path}: {role} is as it was"


@pytest.mark.parametrize("name", BY_ROLES["query", "value"])
def test_as_many_parameters_as_on_projections_of_their_own(name):
    method = registry.load("method", name)()
    counts = []
    for model, heads in (("bert", ("classifier",)), ("gpt2", ())):
        adapted = make_trial(method, model, heads).adapted(random=False)
        trained = (p.numel() for key, p in adapted.named_parameters() if p.requires_grad and "classifier" not in key)
        counts.append(sum(trained))
    assert counts[0] == counts[1]
