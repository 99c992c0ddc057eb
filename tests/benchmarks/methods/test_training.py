"""Every method trains: on a task that it can solve, it comes well below what the head alone can do.

The task is to compute what a teacher computes, which is the same method on the same model with other values, so that an
optimum of zero is known to be there. The learning rate is in the upper half of what the method declares for sweeps, the
model being small and the training short; the head has the same in all trainings.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import mse_loss

from hadamard_core.accounting import trained_by_group
from hadamard_core.testing_models import output
from harness import registry
from harness.capabilities import make_trial, move
from harness.methods import Head

METHODS = [
    name
    for name, entry in registry.entries("method").items()
    if entry.dist and "toy" not in entry.dist.name and name != "head"
]
STEPS = 400
HEAD_RATE = 1e-2
# single weights of a model so small take larger steps than those of the models that their rates are for
FASTER = {"diffpruning": 30.0, "far": 10.0}


def train(method, model, x, target, rate: float, steps: int) -> None:
    """AdamW on the distance to the target, with what the method has to say in it."""
    groups = trained_by_group(model)
    rates = {"adapter": rate, "norm": rate, "head": HEAD_RATE}
    peaks = [{"params": groups[group], "lr": rates[group], "peak": rates[group]} for group in rates if groups[group]]
    optimizer = torch.optim.AdamW(peaks, weight_decay=0.0)
    hooked = hasattr(method, "begin_training")
    if hooked:
        method.begin_training(model, steps)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(step / 10, 1 - (step - 1) / steps)
        loss = mse_loss(output(model, x), target)
        penalty = method.penalty(model) if hooked else None
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        if hooked:
            method.after_step(model, step)
        optimizer.zero_grad()
    model.eval()


def trained(method, base, heads, x, target, rate: float):
    """The method after all its stages."""
    torch.manual_seed(5)
    stages = getattr(method, "stages", ())
    model = base
    for stage in stages[:-1]:
        model = method.enter(stage.name, model, "SEQ_CLS", heads)
        train(method, model, x, target, rate, STEPS // 2)
    model = method.apply(model, "SEQ_CLS", heads)
    train(method, model, x, target, rate, STEPS)
    return model


@pytest.fixture(scope="module", params=METHODS)
def task(request):
    """A method with its model, inputs, and what a teacher makes of them."""
    name = request.param
    method = registry.load("method", name)()
    trial = make_trial(method, "bert", ("classifier",))
    x = torch.randint(3, 40, (64, 8), generator=torch.Generator().manual_seed(4))
    teacher = trial.adapted(random=False)
    for parameter in trained_by_group(teacher)["head"]:
        parameter.requires_grad_(False)  # it stays where students start
    for _ in range(4):
        move(teacher)
    with torch.no_grad():
        target = output(teacher.eval(), x)
    return name, trial, x, target


def test_it_comes_well_below_the_head_alone(task):
    name, trial, x, target = task
    head = trained(Head(), trial.fresh(), trial.heads, x, target, HEAD_RATE)
    with torch.no_grad():
        floor = mse_loss(output(head, x), target).item()
        start = mse_loss(output(trial.base, x), target).item()
    assert floor < start  # it did learn
    space = trial.method.search_space["train.learning_rate"]
    rate = (space.low * space.high**2) ** (1 / 3) * FASTER.get(name, 1.0)
    model = trained(trial.method, trial.fresh(), trial.heads, x, target, rate)
    with torch.no_grad():
        reached = mse_loss(output(model, x), target).item()
    assert reached < 0.5 * floor
