"""What a run needs before its first step: data, base model, adapted model, encoded examples, the plan of its stages."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn

from hadamard_core.accounting import ParameterCounts
from harness import models, stages
from harness.base import Base
from harness.config import RunConfig
from harness.console import Console
from harness.protocols import Task
from harness.stages import StagePlan
from harness.training import Plan
from harness.workload import Workload


@dataclass
class Setup:
    """A run that is ready to be trained.

    Attributes:
        base: the model on disk.
        model: a fresh copy, with the method applied if it has no stages; None once it is not needed any more.
        modules_to_save: names of its modules that are trained and saved whole, whatever the method: the head.
        workload: the task with its examples encoded.
        stages: what is trained, one after another.
    """

    base: Base
    model: nn.Module | None
    modules_to_save: tuple[str, ...]
    workload: Workload
    stages: tuple[StagePlan, ...]

    @property
    def plan(self) -> Plan:
        """The steps of the last stage."""
        plan = self.stages[-1].plan
        assert plan is not None
        return plan

    @property
    def counts(self) -> ParameterCounts:
        """The parameters by group, over all stages."""
        return stages.over_all(self.stages)


def prepare(config: RunConfig, accelerator: Accelerator, console: Console) -> Setup:
    """Reads data and model, applies the method, and encodes the examples.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    task: Task = config.task_settings
    loaded = task.load(config.data, config.seed)
    with accelerator.main_process_first():
        base = models.of(config, console.say)
    base.model_kwargs = loaded.model_kwargs(None if config.new_head else base.checkpoint_config())
    model = base.fresh(config.train.model_dropout)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = base.tokenizer()
    modules_to_save = base.modules_to_save(model)
    model, planned = stages.begin(config, model, modules_to_save)
    splits = {rule.split for rule in task.rules.values()} if config.train.eval_every != "never" else ()
    measured = {split: loaded.encode(tokenizer, split) for split in sorted(splits)}
    workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
    planned = stages.with_steps(planned, workload.train, accelerator.num_processes)
    return Setup(base, model, modules_to_save, workload, planned)
