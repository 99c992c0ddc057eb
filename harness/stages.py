"""Stages: the parts of a method's training, each with steps, settings and an optimiser of its own.

A method that declares none is trained in one, with the ``--train.*`` settings. Of a method with stages these are the
settings of the last one, whose parameters are selected, saved and scored; an earlier stage has flags and a table in
recipes under its own name (``--stage1.epochs``), and takes from ``--train.*`` what these leave open. Each stage starts
from the last step of the one before. A stage that needs a head is left out where the task's model has none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from hadamard_core.accounting import ParameterCounts, count_parameters
from harness.config import RunConfig, StageConfig, TrainConfig
from harness.errors import UserError, one_line
from harness.protocols import Method, Rule
from harness.training import StagePlan, make_plan, seed_everything
from harness.workload import Features


def train_config(config: RunConfig, stage: str) -> TrainConfig:
    """Returns the training settings of a stage but the last."""
    own: StageConfig = getattr(config.stages, stage)
    given = {entry.name: value for entry in fields(own) if (value := getattr(own, entry.name)) is not None}
    if "epochs" in given:
        given["max_steps"] = None
    if "warmup_ratio" in given:
        given.setdefault("warmup_steps", None)
    if "learning_rate" in given:
        given["head_learning_rate"] = None
    return replace(config.train, **given)


def stage_seed(seed: int, number: int) -> int:
    """Returns the seed of the order of examples and of dropout in a stage but the last, counted from 0."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def declared(config: RunConfig, has_head: bool, rules: Mapping[str, Rule]) -> tuple[StagePlan, ...]:
    """Returns the stages of a method, one without a name for a method that declares none; nothing is counted yet.

    Args:
        has_head: whether the model has modules that are trained whatever the method: the head.
        rules: those by which parameters are selected, in the last stage.
    """
    stages = getattr(config.method_settings, "stages", ())
    if not stages:
        return (StagePlan("", "", config, config.seed, rules),)
    # The last stage has the order of examples that methods without stages have.
    *earlier, last = stages
    planned = []
    for number, stage in enumerate(earlier):
        own = replace(config, train=train_config(config, stage.name))
        seed = stage_seed(config.seed, number)
        planned.append(StagePlan(stage.name, stage.trains, own, seed, {}, f"--{stage.name}.learning-rate"))
    planned.append(StagePlan(last.name, last.trains, config, config.seed, rules))
    why = "the model of this task has no head to train"
    return tuple(
        replace(plan, skipped=why) if stage.needs_head and not has_head else plan
        for stage, plan in zip(stages, planned, strict=True)
    )


def begin(
    config: RunConfig, model: PreTrainedModel, modules_to_save: Sequence[str], rules: Mapping[str, Rule]
) -> tuple[nn.Module, tuple[StagePlan, ...]]:
    """Returns the model to begin with and the stages, each tried on it so that nothing is refused later.

    Args:
        model: the base model; with stages it is returned as it is, otherwise with the method applied.
        modules_to_save: the head, and what else the checkpoint lacks.
        rules: as of :func:`declared`.

    Raises:
        UserError: the method cannot act on this model, or leaves nothing to train.
    """
    plans = declared(config, bool(modules_to_save), rules)
    if not plans[0].name:
        model = apply(config, model, modules_to_save)
        return model, (replace(plans[0], counts=counted(config, model)),)
    return model, tuple(
        plan
        if plan.skipped
        else replace(plan, counts=counted(config, enter(plan.config, plan.name, _sharing(model), modules_to_save)))
        for plan in plans
    )


def applied(
    config: RunConfig, stages: Sequence[StagePlan], model: nn.Module, modules_to_save: Sequence[str]
) -> nn.Module:
    """Returns the model that the last stage trains, as it is before any training.

    Args:
        model: what :func:`begin` returned; it shares its weights with what is returned.
    """
    return enter(config, stages[-1].name, _sharing(model), modules_to_save) if stages[-1].name else model


def with_steps(stages: Sequence[StagePlan], features: Features, processes: int) -> tuple[StagePlan, ...]:
    """Returns the stages with the steps of those that are not skipped.

    Raises:
        UserError: a batch is larger than the data, or does not divide evenly.
    """
    return tuple(
        stage if stage.skipped else replace(stage, plan=make_plan(features, stage.config.train, stage.seed, processes))
        for stage in stages
    )


def _sharing(model: nn.Module) -> nn.Module:
    """Returns a copy of a model with the same weights in memory, on which a method can build."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def enter(config: RunConfig, stage: str, model: PreTrainedModel, modules_to_save: Sequence[str]) -> nn.Module:
    """Returns the model to train in a stage: that of :meth:`Method.enter`, or of :meth:`Method.apply` in the last one.

    Raises:
        UserError: the method cannot act on this model.
    """
    method = config.method_settings
    if stage == method.stages[-1].name:
        return apply(config, model, modules_to_save)
    return _act(config, lambda task_type: method.enter(stage, model, task_type, modules_to_save))


def apply(config: RunConfig, model: PreTrainedModel, modules_to_save: Sequence[str]) -> nn.Module:
    """Returns the model with the method applied.

    Raises:
        UserError: the method cannot act on this model.
    """
    method: Method = config.method_settings
    return _act(config, lambda task_type: method.apply(model, task_type, modules_to_save))


def _act(config: RunConfig, action: Callable[[str], nn.Module]) -> nn.Module:
    seed_everything(config.seed)
    try:
        return action(config.task_settings.task_type)
    except ValueError as error:
        raise UserError(f"--method {config.method}: {one_line(error)}") from error


def counted(config: RunConfig, model: nn.Module) -> ParameterCounts:
    """Returns a model's parameters by group.

    Raises:
        UserError: nothing trains.
    """
    counts = count_parameters(model)
    if counts.trained == 0:
        raise UserError(f"--method {config.method} leaves nothing to train with these settings")
    return counts


def over_all(stages: Sequence[StagePlan]) -> ParameterCounts:
    """Returns the parameters by group that train in any of the stages: a head that the last one freezes, too."""
    counts = [stage.counts for stage in stages if stage.counts is not None]
    last = counts[-1]
    head = max(each.head for each in counts)
    return replace(last, head=head, frozen=last.frozen + last.head - head)
