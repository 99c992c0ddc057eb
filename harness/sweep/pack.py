"""Trials that train together: one forward and one backward pass of the frozen model for the adapters of all of them.

Each trial has what it would have alone: its order of examples, loss, optimiser, schedule, clipping, head and stages, so
that its numbers are those of a run of its own but for rounding. What differs is dropout in the model, whose masks come
from one generator for the whole pass: the same distribution, other masks. A batch is as long as the longest example of
all trials in it; padding changes no number.

Trials come and go between two steps, so that one that ends or is pruned gives its place to the next.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hadamard_core.accounting import ParameterCounts, bytes_saved_for_backward, count_parameters
from hadamard_core.method import PeftMethod
from hadamard_core.packing import AdapterPack
from harness import models, stages
from harness.checkpoint import History
from harness.config import RunConfig, flag_of, flatten, to_tree
from harness.console import Console
from harness.errors import UserError, one_line
from harness.order import step_seed
from harness.preparation import Setup
from harness.protocols import Rule
from harness.training import Diverged, StagePlan, StageTraining, seed_everything
from harness.workload import Workload, collate

MAY_DIFFER = frozenset(
    f"train.{name}"
    for name in (
        "learning_rate",
        "head_learning_rate",
        "batch_size",
        "micro_batch_size",
        "epochs",
        "max_steps",
        "warmup_steps",
        "warmup_ratio",
        "schedule",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "group_by_length",
        "eval_every",
        "save_every",
    )
)
"""The training settings in which trials of one pass may differ, beside seed, stages and the method's settings."""


HEADROOM = 2.0
"""A pass needs more than what autograd keeps: gradients of activations, and what products use up."""


@dataclass
class PackedTrial:
    """A trial in a pack.

    Attributes:
        name: of its adapter.
        config: its configuration.
        on_measured: called after each measurement in the last stage; what it raises ends the trial.
        workload: its training and held-out examples.
        counts: its parameters by group, over all stages.
        steps: optimiser steps of all its stages.
        seconds: its share of the time that passes took, and its measurements.
        error: what ended it before its last step.
        ended: whether it is over.
    """

    name: str
    config: RunConfig
    on_measured: Callable[[History], None]
    workload: Workload
    counts: ParameterCounts
    steps: int = 0
    seconds: float = 0.0
    error: Exception | None = None
    ended: bool = False
    _plans: list[StagePlan] = field(default_factory=list, repr=False)
    _training: StageTraining | None = field(default=None, repr=False)

    @property
    def training(self) -> StageTraining:
        """The stage that it is in, or the last one."""
        assert self._training is not None
        return self._training

    @property
    def history(self) -> History:
        """What happened in that stage."""
        return self.training.history


class Pack:
    """The trials that train together on one model.

    Args:
        setup: as :func:`harness.preparation.read` returns it; its model is used up.
        config: that of ``setup``; trials differ from it as :data:`MAY_DIFFER` says.
        rules: those by which parameters are selected, on whose splits trials are measured.
        accelerator: of one process.

    Raises:
        UserError: this configuration cannot be trained in packs.
    """

    def __init__(
        self, setup: Setup, config: RunConfig, rules: dict[str, Rule], accelerator: Accelerator, console: Console
    ) -> None:
        if config.train.gradient_checkpointing:
            raise UserError(
                "--pack: with --train.gradient-checkpointing layers are computed again when it is no longer known "
                "whose samples they had: leave out one of the two"
            )
        assert setup.model is not None
        self._setup, self._config, self._rules = setup, config, rules
        self._accelerator, self._console = accelerator, console
        self._pack = AdapterPack(setup.model.to(accelerator.device), setup.modules_to_save)
        self._by_seed: dict[int, tuple[Workload, dict | None]] = {config.seed: (setup.workload, None)}
        self._passes = 0
        self.trials: list[PackedTrial] = []

    def add(self, name: str, config: RunConfig, on_measured: Callable[[History], None]) -> PackedTrial:
        """Adds a trial, which takes part from the next step on.

        Raises:
            UserError: it cannot share a pass with the others, the method cannot act on the model, or its batches do not
                fit the data.
        """
        check_shared(self._config, config)
        method = config.method_settings
        if not (isinstance(method, PeftMethod) and method.packable):
            raise UserError(
                f"--method {config.method} trains no vectors beside a frozen model, so that its trials cannot share a "
                "pass: leave out --pack"
            )
        workload, heads = self._of_seed(config.seed)
        plans = stages.declared(config, bool(self._setup.modules_to_save), self._rules)
        plans = stages.with_steps(plans, workload.train, 1)
        seed_everything(config.seed)
        try:
            assert self._setup.model is not None
            peft_config = method.peft_config(self._setup.model, config.task_settings.task_type)
            self._pack.add(name, peft_config, heads)
        except ValueError as error:
            raise UserError(f"--method {config.method}: {one_line(error)}") from error
        counts = []
        plans = [plan for plan in plans if not plan.skipped]
        for plan in plans:
            self._pack.train(name, method.trained(plan.name))
            with self._pack.alone(name) as model:
                counts.append(replace(plan, counts=count_parameters(model)))
        trial = PackedTrial(name, config, on_measured, workload, stages.over_all(counts), _plans=plans)
        self._enter_next_stage(trial)
        self.trials.append(trial)
        return trial

    def step(self) -> list[PackedTrial]:
        """Takes a step of every trial; returns those that are over with it, which are no longer here."""
        started = time.monotonic()
        self._passes += 1
        trials = list(self.trials)
        for trial in trials:
            trial.training.set_learning_rate()
        sums = self._gradients(trials)
        norms = [t.training.gradient_norm(targets) for t, (_, targets) in zip(trials, sums, strict=True)]
        if not all(math.isfinite(value) for pair in zip(norms, sums, strict=True) for value in (pair[0], pair[1][0])):
            self._step_one_by_one(trials)
        else:
            for trial, (loss_sum, targets) in zip(trials, sums, strict=True):
                trial.training.step(loss_sum, targets)
        share = (time.monotonic() - started) / len(trials)
        for trial in trials:
            trial.seconds += share
            if trial.error is None:
                trial.steps += 1
                self._after_step(trial)
        over = [trial for trial in trials if trial.ended or trial.error is not None]
        for trial in over:
            trial.ended = True
            trial.history.seconds = trial.seconds
            self.trials.remove(trial)
            self._pack.remove(trial.name)
        return over

    def fitting(self) -> int:
        """Returns how many trials like the first one here fit into the memory that is free, by what autograd keeps."""
        trial, workload = self.trials[0], self._setup.workload
        device, names = self._accelerator.device, [self.trials[0].name]
        longest = sorted(workload.train, key=lambda feature: -len(feature["input_ids"]))
        batch = collate(workload.task, workload.tokenizer, longest[: trial.training.plan.micro_batch], device)
        model = self._pack.model.train()

        def forward() -> Tensor:
            called = ForSamples(model, names, self._accelerator)
            return workload.task.losses(called, batch, label_smoothing=0.0)[0].sum()

        kept = bytes_saved_for_backward(forward, [*model.parameters(), *model.buffers()])
        return int(free_memory(device) / (HEADROOM * max(kept, 1)))

    def _of_seed(self, seed: int) -> tuple[Workload, dict | None]:
        """The examples that a run of this seed has, and what its heads start from; None for that of the model here."""
        if seed not in self._by_seed:
            first, setup = self._config, self._setup
            loaded = first.task_settings.load(first.data, seed)
            tokenizer = setup.workload.tokenizer
            measured = {split: loaded.encode(tokenizer, split) for split in setup.workload.measured}
            workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
            heads = None
            if setup.modules_to_save:
                base = models.of(replace(first, seed=seed), self._console.say)
                base.model_kwargs = setup.base.model_kwargs
                fresh = base.fresh(first.train.model_dropout)
                heads = {name: fresh.get_submodule(name).state_dict() for name in setup.modules_to_save}
            self._by_seed[seed] = workload, heads
        return self._by_seed[seed]

    def _enter_next_stage(self, trial: PackedTrial) -> None:
        plan = trial._plans.pop(0)
        self._pack.train(trial.name, trial.config.method_settings.trained(plan.name))
        with self._pack.alone(trial.name) as model:
            trial._training = StageTraining(plan, model, self._accelerator.device, None)

    def _gradients(self, trials: Sequence[PackedTrial]) -> list[tuple[float, int]]:
        """Adds up the gradients of the sums of losses; returns each trial's sum and its number of targets."""
        seed_everything(step_seed(self._config.seed, self._passes, 0))
        device, model = self._accelerator.device, self._pack.model
        model.train()
        totals = torch.zeros(len(trials), 2, device=device, dtype=torch.float64)
        shares = [
            trial.training.plan.order.share(trial.history.step, 0, 1, trial.training.plan.micro_batch)
            for trial in trials
        ]
        for position in range(max(map(len, shares))):
            taking = [row for row, share in enumerate(shares) if position < len(share)]
            examples = [[trials[row].workload.train[number] for number in shares[row][position]] for row in taking]
            names = [trials[row].name for row, own in zip(taking, examples, strict=True) for _ in own]
            workload = self._setup.workload
            batch = collate(workload.task, workload.tokenizer, [each for own in examples for each in own], device)
            smoothing = self._config.train.label_smoothing
            called = ForSamples(model, names, self._accelerator)
            losses, targets = workload.task.losses(called, batch, label_smoothing=smoothing)
            losses.sum().backward()
            rows = torch.tensor([row for row, own in zip(taking, examples, strict=True) for _ in own], device=device)
            totals.index_add_(0, rows, torch.stack([losses.detach().double(), targets.double()], dim=1))
        return [(loss, int(targets)) for loss, targets in totals.tolist()]

    def _step_one_by_one(self, trials: Sequence[PackedTrial]) -> None:
        """Takes the step again, each trial in a pass of its own: something is not finite, and it may have spread."""
        for trial in trials:
            for other in trials:
                other.training.optimizer.zero_grad()
            [(loss_sum, targets)] = self._gradients([trial])
            norm = trial.training.gradient_norm(targets)
            if math.isfinite(loss_sum) and math.isfinite(norm):
                trial.training.step(loss_sum, targets)
            else:
                what = "gradient" if math.isfinite(loss_sum) else "loss"
                trial.error = trial.training.diverged(what, trial.history.step + 1)

    def _after_step(self, trial: PackedTrial) -> None:
        """Measures a trial where that is due, and moves it on where its stage is over."""
        training = trial.training
        started = time.monotonic()
        try:
            if training.is_measured():
                alone = ForSamples(self._pack.model, [trial.name], self._accelerator)
                size = trial.config.eval_batch_size
                found = {
                    split: trial.workload.measure(alone, split, size, self._accelerator)
                    for split in trial.workload.measured
                }
                training.note(found)
                training.require_finite()
                trial.seconds += time.monotonic() - started
                trial.history.seconds = trial.seconds
                if not trial._plans:
                    trial.on_measured(trial.history)
        except Exception as error:  # whatever it is, it is this trial's alone
            trial.error = error
            return
        if not training.finished:
            return
        try:
            training.require_finite()
        except Diverged as error:
            trial.error = error
            return
        if trial._plans:
            self._enter_next_stage(trial)
        else:
            trial.ended = True


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class ForSamples(nn.Module):
    """A model of many adapters as a model of one call: the adapter of each sample is told beforehand.

    Args:
        names: an adapter for each sample; one name stands for all.
        accelerator: whose autocast it runs under.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], accelerator: Accelerator) -> None:
        super().__init__()
        self.model, self.names, self._autocast = model, list(names), accelerator.autocast

    def forward(self, **inputs: Tensor) -> object:
        names = self.names
        if len(names) == 1:
            names = names * len(inputs["input_ids"])
        with self._autocast():
            return self.model(**inputs, adapter_names=names)


def check_shared(first: RunConfig, other: RunConfig) -> None:
    """Refuses configurations that differ in what all trials of a pass share.

    Raises:
        UserError: naming the setting.
    """
    ours, theirs = flatten(to_tree(first)), flatten(to_tree(other))
    for key in sorted(ours.keys() | theirs.keys()):
        if may_differ(key) or ours.get(key) == theirs.get(key):
            continue
        raise UserError(
            f"--pack: trials that train together share {flag_of(key)}, which is {ours.get(key)} in one and "
            f"{theirs.get(key)} in another: leave it out of the space, or leave out --pack"
        )


def may_differ(key: str) -> bool:
    """Whether trials of one pass may differ in a setting, by its dotted key."""
    section, _, _ = key.partition(".")
    return key in MAY_DIFFER or key in ("seed", "output_dir", "description") or section in ("method_settings", "stages")


def not_packable(keys: Collection[str]) -> list[str]:
    """Returns those of a space's keys in which trials of one pass may not differ."""
    return [key for key in keys if key.startswith(("train.", "task.")) and not may_differ(key)]
