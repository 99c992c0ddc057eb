"""What a run needs before its first step: data, base model, adapted model, encoded examples, the plan of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn

from hadamard_core.accounting import ParameterCounts, count_parameters
from harness import models
from harness.base import Base
from harness.config import RunConfig
from harness.console import Console
from harness.errors import UserError, one_line
from harness.protocols import Method, Task
from harness.training import Plan, make_plan, seed_everything
from harness.workload import Workload


@dataclass
class Setup:
    """A run that is ready to be trained.

    Attributes:
        base: the model on disk.
        model: a fresh copy with the method applied; None once it is not needed any more.
        counts: its parameters by group.
        workload: the task with its examples encoded.
        plan: the steps.
    """

    base: Base
    model: nn.Module | None
    counts: ParameterCounts
    workload: Workload
    plan: Plan


def prepare(config: RunConfig, accelerator: Accelerator, console: Console) -> Setup:
    """Reads data and model, applies the method, and encodes the examples.

    Raises:
        UserError: anything the user gave cannot be used.
    """
    task: Task = config.task_settings
    method: Method = config.method_settings
    loaded = task.load(config.data, config.seed)
    with accelerator.main_process_first():
        base = models.find(
            config.model,
            task.auto_class,
            config.seed,
            new_head=config.new_head,
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
            say=console.say,
        )
    base.model_kwargs = loaded.model_kwargs(None if config.new_head else base.checkpoint_config())
    model = base.fresh(config.train.model_dropout)
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = base.tokenizer()
    seed_everything(config.seed)
    try:
        model = method.apply(model, task.task_type, base.modules_to_save(model))
    except ValueError as error:
        raise UserError(f"--method {config.method}: {one_line(error)}") from error
    counts = count_parameters(model)
    if counts.trained == 0:
        raise UserError(f"--method {config.method} leaves nothing to train with these settings")
    splits = {rule.split for rule in task.rules.values()} if config.train.eval_every != "never" else ()
    measured = {split: loaded.encode(tokenizer, split) for split in sorted(splits)}
    workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
    plan = make_plan(workload.train, config.train, config.seed, accelerator.num_processes)
    return Setup(base, model, counts, workload, plan)
