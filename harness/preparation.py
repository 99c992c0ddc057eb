"""What a run needs before its first step: data, base model, adapted model, encoded examples, the plan of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from accelerate import Accelerator
from torch import nn

from hadamard_core.accounting import ParameterCounts
from harness import models, stages
from harness.base import Base
from harness.config import RunConfig
from harness.console import Console
from harness.protocols import Rule, Task
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
    """Reads data and model, encodes the examples, applies the method and plans its stages.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    rules = config.task_settings.rules
    return with_method(read(config, rules, accelerator, console), config, rules, accelerator)


def read(config: RunConfig, rules: Mapping[str, Rule], accelerator: Accelerator, console: Console) -> Setup:
    """Reads data and model, and encodes the examples; the model is the base model, and there are no stages yet.

    Args:
        rules: those by which parameters are selected; the model will be measured on their splits alone.

    Raises:
        UserError: data or model cannot be used.
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
    splits = {rule.split for rule in rules.values()} if config.train.eval_every != "never" else ()
    measured = {split: loaded.encode(tokenizer, split) for split in sorted(splits)}
    workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
    return Setup(base, model, base.modules_to_save(model), workload, ())


def with_method(setup: Setup, config: RunConfig, rules: Mapping[str, Rule], accelerator: Accelerator) -> Setup:
    """Returns the setup with the method applied and its stages planned; the model of the one that is given is used up.

    Raises:
        UserError: the method cannot act on this model, or its batches do not fit the data.
    """
    assert setup.model is not None
    model, planned = stages.begin(config, setup.model, setup.modules_to_save, rules)
    planned = stages.with_steps(planned, setup.workload.train, accelerator.num_processes)
    return replace(setup, model=model, stages=planned)
