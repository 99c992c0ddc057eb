"""What methods promise, on an encoder and on a decoder: each holds, or the method says that it cannot."""

from __future__ import annotations

import pytest

from harness import registry
from harness.capabilities import PROMISES, TASKS, check, supports

METHODS = [name for name, entry in registry.entries("method").items() if entry.dist and "toy" not in entry.dist.name]


@pytest.mark.parametrize("name", METHODS)
def test_promises_hold_but_for_those_that_the_method_says_it_cannot_keep(name):
    method = registry.load("method", name)()
    kinds = [kind for kind in TASKS if not supports(method, kind)]
    assert kinds
    broken = {}
    for promise in PROMISES:
        for kind in kinds:
            if wrong := check(method, kind, promise):
                broken.setdefault(promise, f"{kind}: {wrong}")
    cannot = getattr(method, "cannot", {})
    surprises = {promise: words for promise, words in broken.items() if promise not in cannot}
    assert surprises == {}
    assert set(cannot) == set(broken), "it says that it cannot what it can"
    assert all(reason and reason[0].islower() for reason in cannot.values())


def test_only_the_head_is_for_models_with_a_head():
    refused = {
        (name, kind): reason
        for name in METHODS
        for kind in TASKS
        if (reason := supports(registry.load("method", name)(), kind))
    }
    assert refused == {
        ("head", "decoder"): "the model of this task has no head of its own, so there is nothing to train"
    }


def test_a_promise_that_is_broken_is_found():
    from harness.methods import Full

    class Forgetful(Full):
        def load(self, base, directory):
            return base.requires_grad_(False)

    assert check(Forgetful(), "encoder", "reload")
    assert not check(Full(), "encoder", "reload")
