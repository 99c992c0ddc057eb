"""Training on several tasks at once: each step takes a batch of each task, and the loss is the sum of the tasks' means.

Nothing couples tasks that share nothing, so training them here is training each alone: their parameters meet in no
product, AdamW treats each number by itself, and gradients are not clipped, because a norm over all of them would couple
them. Order of examples, schedule and optimiser are the harness's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.analysis import joint
from benchmarks.analysis.joint import JointTask, OfTask
from harness.checkpoint import trained_parameters
from harness.config import TrainConfig
from harness.console import Console
from harness.errors import UserError
from harness.order import by_length, step_seed
from harness.training import describe, is_due, make_optimizer, schedule, seed_everything
from harness.workload import in_order, lengths, measure

EVAL_BATCH = 64
"""Examples that the model has at once when it is measured or scored; the numbers do not depend on it."""
TOGETHER, EACH = "together", "each"
SELECTIONS = {
    TOGETHER: "one step for all tasks, the one with the highest mean of the tasks' metrics on their held-out parts",
    EACH: "a step for each task, the one with its highest metric on its held-out part",
}


@dataclass
class Training:
    """What happened in training.

    Attributes:
        measurements: ``{"step", TASK: {METRIC: value}}`` on the held-out parts; None for a value that is not finite.
        selected: selection -> task -> ``{"step", "value"}``, the step and the task's metric there.
        kept: step -> the trained parameters by name, of the steps that are selected.
    """

    measurements: list[dict[str, Any]] = field(default_factory=list)
    selected: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def train(
    model: PeftModel,
    tasks: Sequence[JointTask],
    config: TrainConfig,
    seed: int,
    device: torch.device,
    console: Console,
    label: str,
    rate_flag: str,
) -> Training:
    """Trains in place what requires a gradient, for ``config.max_steps`` steps of ``config.batch_size`` a task.

    Args:
        config: its ``micro_batch_size`` counts examples of all tasks, in one forward pass.
        seed: of the order of examples and of dropout.
        label: of what is trained, in words.
        rate_flag: the flag of the learning rate, which the advice names.

    Raises:
        UserError: a batch is larger than a task's data, or a loss is not finite.
    """
    total = config.max_steps
    assert total is not None
    batches = [task.batches(config.batch_size, seed, total) for task in tasks]
    optimizer = make_optimizer(model, config, device)
    training = Training()
    with console.bar(label, total, "step") as bar:
        for step in range(total):
            seed_everything(step_seed(seed, step, 0))
            share = schedule(config, step, total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            model.train()
            found = joint.losses(model, tasks, [own[step] for own in batches], device, config.micro_batch_size)
            together = torch.stack(list(found.values()))
            together.sum().backward()
            values = dict(zip(found, together.tolist(), strict=True))
            require_finite(values, "loss", step, total, rate_flag)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix_str(", ".join(f"{task} {value:.3f}" for task, value in values.items()))
            bar.update(1)
            if is_due(config.eval_every, step + 1, total, step + 1 == total):
                measured = {task.name: measure_task(model, task, device) for task in tasks}
                for name, metrics in measured.items():
                    require_finite({name: metrics["loss"]}, "held-out loss", step, total, rate_flag)
                    console.say(f"{label}, step {step + 1} of {total}: {describe(name, metrics)}")
                note(training, tasks, step + 1, measured, model)
    return training


def require_finite(values: Mapping[str, float], what: str, step: int, total: int, rate_flag: str) -> None:
    """Refuses to go on with losses that are not finite.

    Raises:
        UserError: naming the task.
    """
    for task, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"the {what} of {task} is not finite at step {step + 1} of {total}, so training stops: a lower "
                f"{rate_flag} may help"
            )


def measure_task(model: PeftModel, task: JointTask, device: torch.device) -> Mapping[str, float]:
    """Returns loss and metrics of a task on its held-out part."""
    features = task.workload.measured["held_out"]
    batches = by_length(lengths(features), EVAL_BATCH)
    parts = list(measure(OfTask(model, task), task.loaded, task.workload.tokenizer, features, batches, device))
    return task.loaded.summarise("held_out", in_order(parts, len(features)))


def note(
    training: Training,
    tasks: Sequence[JointTask],
    step: int,
    measured: Mapping[str, Mapping[str, float]],
    model: PeftModel,
) -> None:
    """Notes what was measured after a step, and keeps the parameters if that step is selected now."""
    finite = {
        task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for task, metrics in measured.items()
    }
    training.measurements.append({"step": step, **finite})
    training.selected = select(training.measurements, tasks)
    wanted = {entry["step"] for chosen in training.selected.values() for entry in chosen.values()}
    training.kept = {kept: values for kept, values in training.kept.items() if kept in wanted}
    if step in wanted:
        values = trained_parameters(model).items()
        training.kept[step] = {name: parameter.detach().clone() for name, parameter in values}


def select(measurements: Sequence[Mapping[str, Any]], tasks: Sequence[JointTask]) -> dict[str, dict[str, Any]]:
    """Returns which step each of :data:`SELECTIONS` takes for each task, the earlier of two equals."""
    rules = {task.name: task.loaded.task.rules["held_out"] for task in tasks}
    values = [{name: entry[name][rule.metric] for name, rule in rules.items()} for entry in measurements]

    def best(scores: Sequence[float | None]) -> int:
        return max(range(len(scores)), key=lambda at: -math.inf if scores[at] is None else scores[at])

    means = [None if None in each.values() else sum(each.values()) / len(each) for each in values]
    chosen = {
        TOGETHER: dict.fromkeys(rules, best(means)),
        EACH: {name: best([each[name] for each in values]) for name in rules},
    }
    return {
        selection: {name: {"step": measurements[at]["step"], "value": values[at][name]} for name, at in places.items()}
        for selection, places in chosen.items()
    }


def restore(model: PeftModel, values: Mapping[str, Tensor]) -> None:
    """Puts trained parameters back to what they were after a step."""
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(values[name])
