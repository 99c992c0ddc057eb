"""The training loop, to be read from top to bottom.

One optimiser step takes one global batch: each process runs its share in micro-batches and adds up the gradients of the
*sum* of losses; the sum is then divided by the number of targets of the global batch, so the loss is the mean over all
its targets whatever the number of processes and micro-batches. Learning rate, data order and dropout are functions of
the step, so that a run that was killed and resumed computes the same numbers as one that was not.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hadamard_core.accounting import ParameterCounts, trained_by_group
from harness.checkpoint import CheckpointStore, History, trained_parameters
from harness.config import RunConfig, TrainConfig
from harness.console import Console
from harness.errors import UserError
from harness.hooks import Hooks
from harness.order import Order, step_seed
from harness.protocols import Rule
from harness.workload import Features, Workload, lengths

# points of the loss curve in the result: enough to draw it, few enough to read the file
CURVE_POINTS = 200


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        total: number of optimiser steps.
        micro_batch: examples that one process holds at once.
    """

    order: Order
    total: int
    micro_batch: int


@dataclass(frozen=True)
class StagePlan:
    """A stage as it will be trained.

    Attributes:
        name: of the stage; empty for the only one of a method that declares none.
        trains: what is trained in it, in words.
        config: the run's configuration with the settings of this stage under ``train``.
        seed: of the order of its examples, and of dropout.
        rules: those by which parameters are selected; none in a stage before the last.
        rate_flag: the flag of its learning rate.
        counts: the parameters by group; None if it is skipped.
        plan: its steps; None if it is skipped, or as long as nobody has planned them.
        skipped: why it is left out, in words; empty if it is not.
    """

    name: str
    trains: str
    config: RunConfig
    seed: int
    rules: Mapping[str, Rule]
    rate_flag: str = "--train.learning-rate"
    counts: ParameterCounts | None = None
    plan: Plan | None = None
    skipped: str = ""

    @property
    def label(self) -> str:
        """What stands before the lines that a person sees of it."""
        return f"{self.name}: " if self.name else ""


def make_plan(features: Features, config: TrainConfig, seed: int, processes: int) -> Plan:
    """Divides the training examples into steps and each step's batch over processes and micro-batches.

    Raises:
        UserError: the batch is larger than the data, or does not divide evenly.
    """
    order = Order(lengths(features), config.batch_size, seed, config.group_by_length)
    if order.steps_per_epoch == 0:
        raise UserError(
            f"--train.batch-size is {config.batch_size} and there are {len(features)} training examples: "
            "the batch must not be larger"
        )
    return Plan(order, order.total_steps(config.epochs, config.max_steps), micro_batch_size(config, processes))


class Diverged(UserError):
    """A loss, gradient or parameter is not finite any more."""


class StageTraining:
    """One stage of one adapter in training: its optimiser, schedule and history.

    Where the gradients come from is the caller's affair, so that many trainings can share a pass over the model.

    Args:
        stage: what to train, with its steps and settings.
        model: what requires a gradient in it is trained.
        store: where its checkpoints are, one of which it goes on from; None for none.

    Attributes:
        optimizer: AdamW; what Accelerate makes of it may take its place.
        of_method: what the checkpoint holds for the method's hooks.
    """

    def __init__(self, stage: StagePlan, model: nn.Module, device: torch.device, store: CheckpointStore | None) -> None:
        assert stage.plan is not None
        self.stage, self.config, self.plan, self.store = stage, stage.config.train, stage.plan, store
        self.optimizer = make_optimizer(model, self.config, device)
        self.parameters = list(trained_parameters(model).values())
        self.history = History()
        self.of_method: dict[str, Tensor] = {}
        if store is not None and store.exists():
            self.history, self.of_method = store.restore(model, self.optimizer)

    @property
    def finished(self) -> bool:
        return self.history.step >= self.plan.total

    def set_learning_rate(self) -> None:
        """Sets the rates of the step that comes next."""
        share = schedule(self.config, self.history.step, self.plan.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def gradient_norm(self, targets: int, processes: int = 1) -> float:
        """Divides the gradients of a sum of losses by its number of targets, clips them, and returns their norm."""
        # DistributedDataParallel has averaged over the processes what is to be a sum
        torch._foreach_mul_(
            [parameter.grad for parameter in self.parameters if parameter.grad is not None],
            processes / max(targets, 1),
        )
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    def step(self, loss_sum: float, targets: int, then: Callable[[int], None] | None = None) -> None:
        """Takes an optimiser step with the gradients as they are, and writes it into the history.

        Args:
            then: called after it with its number, counted from 1, before the gradients go.
        """
        self.optimizer.step()
        if then is not None:
            then(self.history.step + 1)
        self.optimizer.zero_grad()
        history, total = self.history, self.plan.total
        share = schedule(self.config, history.step, total)
        history.step += 1
        history.targets += targets
        open_sum, open_targets = history.open_loss
        history.open_loss = (open_sum + loss_sum, open_targets + targets)
        if self.finished or history.step % max(1, total // CURVE_POINTS) == 0:
            mean = history.open_loss[0] / max(history.open_loss[1], 1)
            rate = self.config.learning_rate * share
            history.losses.append({"step": history.step, "loss": mean, "learning_rate": rate})
            history.open_loss = (0.0, 0)

    def is_measured(self) -> bool:
        """Whether the model is to be measured after the step that was taken last."""
        return is_due(self.config.eval_every, self.history.step, self.plan.order.steps_per_epoch, self.finished)

    def note(self, found: Mapping[str, Mapping[str, float]]) -> None:
        """Writes into the history what was measured: split -> metric -> value.

        Raises:
            Diverged: a loss is not finite.
        """
        for split, metrics in found.items():
            if not math.isfinite(metrics.get("loss", 0.0)):
                raise self.diverged(f"{split} loss")
        select(self.stage.rules, found, self.history)

    def require_finite(self) -> None:
        """Raises:
        Diverged: a trained parameter is not finite.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise self.diverged("value of a trained parameter")

    def diverged(self, what: str, step: int | None = None) -> Diverged:
        """Returns the error of a training in which something is not finite.

        Args:
            step: the one that could not be taken; the last one that was if None.
        """
        kept = ""
        if self.store is not None:
            kept = "; no checkpoint had been due yet"
            if self.store.exists():
                kept = f"; the last good checkpoint is kept in {self.store.folder}"
        return Diverged(
            f"the {what} is not finite at step {step or self.history.step} of {self.plan.total}, so training "
            f"stops{kept}; a lower {self.stage.rate_flag} may help"
        )


def train(
    model: nn.Module,
    workload: Workload,
    stage: StagePlan,
    accelerator: Accelerator,
    store: CheckpointStore | None,
    console: Console,
    on_measured: Callable[[History], None] | None = None,
) -> History:
    """Trains in place what requires a gradient; goes on from the store's checkpoint if there is one.

    Args:
        stage: what to train, with its steps and settings.
        store: where checkpoints go; None for none.
        on_measured: called in every process after each measurement; what it raises ends the training.

    Returns:
        What happened. The model holds the parameters of the last step; those that the task's rules select are in
        ``store``.

    Raises:
        Diverged: the loss is not finite.
        UserError: the checkpoint cannot be used.
    """
    task, run, config = workload.task, stage.config, stage.config.train
    training = StageTraining(stage, model, accelerator.device, store)
    order, total, history = training.plan.order, training.plan.total, training.history
    processes, rank = accelerator.num_processes, accelerator.process_index
    if history.step:
        done = "finished" if training.finished else f"going on after step {history.step} of {total}"
        console.say(f"{stage.label}{done}")
    accelerator.wait_for_everyone()  # nobody may write a checkpoint before all have read
    model, training.optimizer = accelerator.prepare(model, training.optimizer)
    bare = accelerator.unwrap_model(model)
    hooks = Hooks(run.method_settings, bare, training)
    started = time.monotonic() - history.seconds

    with console.bar(f"{stage.label}training", total - history.step, "step") as bar:
        for step in range(history.step, total):
            seed_everything(step_seed(order.seed, step, rank))
            training.set_learning_rate()

            model.train()
            loss_sum, targets = torch.zeros((), device=accelerator.device), 0
            micro_batches = order.share(step, rank, processes, training.plan.micro_batch)
            for position, examples in enumerate(micro_batches):
                batch = workload.batch(examples, accelerator.device)
                more_follow = position + 1 < len(micro_batches)
                with accelerator.no_sync(model) if more_follow else nullcontext():
                    losses, counts = task.losses(model, batch, label_smoothing=config.label_smoothing)
                    loss = losses.sum()
                    accelerator.backward(loss)
                loss_sum = loss_sum + loss.detach().float()
                targets = targets + counts.sum()
            loss_sum, targets = global_sums(accelerator, loss_sum, targets)

            hooks.add_penalty(targets, processes)
            norm = training.gradient_norm(targets, processes)
            if not (math.isfinite(loss_sum) and math.isfinite(norm)):
                raise training.diverged("loss" if not math.isfinite(loss_sum) else "gradient", step + 1)
            training.step(loss_sum, targets, hooks.after_step)
            rate = config.learning_rate * schedule(config, step, total)
            bar.set_postfix_str(f"loss {loss_sum / max(targets, 1):.3f}, learning rate {rate:.2e}")
            bar.update(1)

            measured = training.is_measured()
            if measured:
                found = {
                    split: workload.measure(bare, split, run.eval_batch_size, accelerator)
                    for split in workload.measured
                }
                training.note(found)
                for split, metrics in found.items():
                    console.say(f"{stage.label}step {history.step} of {total}: {describe(split, metrics)}")
            if measured or training.finished or history.step % config.save_every == 0:
                training.require_finite()
                history.seconds = time.monotonic() - started
                if store is not None and accelerator.is_main_process:
                    store.save(bare, training.optimizer.optimizer, history, hooks.state())
            if measured and on_measured is not None:
                on_measured(history)
    return history


def unprepared(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Returns a model as it was before :func:`train`, so that it can be trained again, or as a part of another one.

    ``accelerator.unwrap_model(model, keep_fp32_wrapper=False)`` would also strip its forward of the decorators that
    Transformers put there.
    """
    model = accelerator.unwrap_model(model)
    if "_original_forward" in model.__dict__:  # of mixed precision
        del model.forward, model._original_forward
    model.__dict__.pop("_is_accelerate_prepared", None)
    return model


def micro_batch_size(config: TrainConfig, processes: int) -> int:
    """Returns how many examples one process holds at once.

    Raises:
        UserError: the global batch does not divide evenly.
    """
    share, rest = divmod(config.batch_size, processes)
    if rest:
        raise UserError(f"--train.batch-size {config.batch_size} cannot be shared evenly by {processes} processes")
    if config.micro_batch_size is None:
        return share
    if share % config.micro_batch_size:
        raise UserError(
            f"--train.micro-batch-size {config.micro_batch_size} does not divide the {share} examples that each "
            "process has of a batch"
        )
    return config.micro_batch_size


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Returns AdamW over what requires a gradient; biases and the parameters of normalisation layers do not decay.

    A group's ``peak`` is its learning rate after the warmup.
    """
    undecayed = {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or "norm" in type(module).__name__.lower()
    }
    # adapters keep theirs in containers, by the adapter's name
    undecayed |= {
        parameter
        for name, container in model.named_modules()
        if isinstance(container, nn.ParameterDict) and name.endswith("_bias")
        for parameter in container.values()
    }
    rates = dict.fromkeys(("adapter", "norm", "head"), config.learning_rate)
    if config.head_learning_rate is not None:
        rates["head"] = config.head_learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group, parameters in trained_by_group(model).items():
        for parameter in parameters:
            decay = 0.0 if group == "norm" or parameter in undecayed else config.weight_decay
            groups.setdefault((rates[group], decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def schedule(config: TrainConfig, step: int, total: int) -> float:
    """Returns the share of the peak learning rate that step ``step`` (from 0) takes.

    As in transformers: the first step of a warmup has rate 0, and the rate would reach 0 again after the last step.
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return step / warmup
    gone = (step - warmup) / max(1, total - warmup)
    return {"linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone)), "constant": 1.0}[config.schedule]


def is_due(every: int | str, step: int, steps_per_epoch: int, last: bool) -> bool:
    """Whether the model is measured after this step."""
    if every == "never":
        return False
    return last or step % (steps_per_epoch if every == "epoch" else int(every)) == 0


def select(rules: Mapping[str, Rule], found: Mapping[str, Mapping[str, float]], history: History) -> None:
    """Notes what was measured at ``history.step``, and which of the rules select it."""
    finite = {
        split: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for split, metrics in found.items()
    }
    history.measurements.append({"step": history.step, **finite})
    for name, rule in rules.items():
        value = finite[rule.split][rule.metric]
        if name not in history.best or rule.prefers(value, history.best[name]["value"]):
            history.best[name] = {"step": history.step, "value": value}


def describe(split: str, metrics: Mapping[str, float]) -> str:
    """Returns ``validation loss 0.4301, accuracy 0.8125``."""
    return f"{split.replace('_', ' ')} " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def global_sums(accelerator: Accelerator, loss_sum: Tensor, targets: Tensor | int) -> tuple[float, int]:
    """Returns sum of losses and number of targets over all processes."""
    both = torch.stack([loss_sum, torch.as_tensor(targets, device=loss_sum.device).float()])
    total_loss, total_targets = accelerator.reduce(both, "sum").tolist()
    return total_loss, int(total_targets)


def seed_everything(seed: int) -> None:
    """Seeds all generators that a model's code may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def fingerprint(features: Features) -> str:
    """Returns the sha256 of all examples' tokens and labels."""
    digest = hashlib.sha256()
    for feature in features:
        digest.update(np.asarray(feature["input_ids"], dtype=np.int64).tobytes() + b"/")
        digest.update(f"{feature.get('labels')}/".encode())
    return digest.hexdigest()
