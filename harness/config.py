"""What a run is: a tree of frozen dataclasses, the one truth for command line, recipe files and stored results.

The sentence under a field is what ``--help`` shows for its flag. ``method_settings`` and ``task_settings`` are the
dataclasses that the entry points of the method and the task name, so their fields are flags too (``--method.r``).
:func:`validate` holds the rules; it runs on the merged configuration, wherever a value came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from harness.errors import UserError
from harness.registry import closest

Every = int | Literal["epoch", "never"]


@dataclass(frozen=True)
class DataConfig:
    """Which part of the data is used."""

    dir: Path | None = None
    """Folder with the task's data files in place of the task's own copy."""
    train_limit: int | None = None
    """Use a subset of this many training examples, drawn by the seed; all of them if not given."""
    eval_limit: int | None = None
    """Use at most this many inputs of each split that is evaluated; all of them if not given."""


@dataclass(frozen=True)
class TrainConfig:
    """How the method's parameters are trained."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, reached after the warmup."""
    head_learning_rate: float | None = None
    """The same for the model's head, where a task has one; that of all other parameters if not given."""
    batch_size: int = 8
    """Examples in one optimiser step, over all processes and micro-batches together."""
    micro_batch_size: int | None = None
    """Examples that one process holds in memory at once; its share is accumulated. All at once if not given."""
    epochs: float = 3.0
    """Passes over the training examples; does not count when the number of steps is given."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, however many epochs that is."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises linearly from 0."""
    warmup_ratio: float = 0.0
    """The same as a share of all steps (0.06 is 6 %); does not count when warmup steps are given."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warmup: fall to 0 linearly, fall to 0 as half a cosine, or stay."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay of every trained parameter except biases and the parameters of normalisation layers."""
    adam_beta1: float = 0.9
    """AdamW's decay rate of the gradient's mean."""
    adam_beta2: float = 0.999
    """AdamW's decay rate of the squared gradient's mean."""
    adam_epsilon: float = 1e-8
    """AdamW's term against division by zero."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm where theirs is larger; None switches clipping off."""
    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes, in training only."""
    model_dropout: float | None = None
    """Dropout in the base model, in all places that its architecture has; the checkpoint's own values if not given."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Number format of the matrix products in training; parameters and optimiser stay fp32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them: less memory, about a third more time."""
    group_by_length: bool = False
    """Put examples of like length into one batch: less padding, an order that is a little less random."""
    eval_every: Every = "epoch"
    """Measure what selects the parameters (validation loss, held-out metric) every so many steps, or once an epoch and
    at the end, or never."""
    save_every: int = 50
    """Write a checkpoint every so many steps, and after each evaluation, for --resume."""


@dataclass(frozen=True)
class StageConfig:
    """How a stage before the last one is trained; what is not given is as in the train settings."""

    learning_rate: float | None = None
    """Peak learning rate of this stage, of whatever it trains."""
    batch_size: int | None = None
    """Examples in one optimiser step of this stage."""
    epochs: float | None = None
    """Passes over the training examples in this stage."""
    max_steps: int | None = None
    """Stop this stage after this many optimiser steps, however many epochs that is."""
    warmup_steps: int | None = None
    """Steps in which this stage's learning rate rises linearly from 0."""
    warmup_ratio: float | None = None
    """The same as a share of this stage's steps."""
    schedule: Literal["linear", "cosine", "constant"] | None = None
    """What this stage's learning rate does after its warmup."""
    weight_decay: float | None = None
    """AdamW's decoupled decay in this stage."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("epochs and max_steps of a stage both say when it ends: give one of them")


@dataclass(frozen=True)
class NoStages:
    """A method that is trained in one stage."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    method: str
    """How the model is adapted; harness.run --list shows the choices. Its own settings are the --method.* flags."""
    task: str
    """What is learned and scored; harness.run --list shows the choices. Its own settings are the --task.* flags."""
    method_settings: Annotated[Any, tyro.conf.arg(name="method")]
    task_settings: Annotated[Any, tyro.conf.arg(name="task")]
    preset: str = "quick"
    """The recipe that sets what the command line leaves open: recipes/PRESET.toml of the task."""
    description: Annotated[str, tyro.conf.Suppress] = ""
    model: str = ""
    """The base model: an offline model's name, a folder, a GGUF file, or a name on the model hub."""
    seed: int = 0
    """Fixes the start of the method's parameters, the data's order and subsets, and dropout."""
    output_dir: Path | None = None
    """The run directory, runs/TASK-METHOD-PRESET-seedSEED if not given; the folder of a sweep, runs/sweeps/STUDY."""
    score: tuple[str, ...] = ("last",)
    """Which parameters are scored: last, those of the last step, and any that the task has a rule to select by."""
    split: Literal["validation", "test"] = "test"
    """The split that is scored after training."""
    eval_batch_size: int = 32
    """Inputs that the model has at once when it is measured or scored; changes time and memory, not the numbers."""
    init_from: Path | None = None
    """The directory of a finished run of the same method on the same model: what it trained is the start, but for the
    head."""
    new_head: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start the model's head afresh, whatever the checkpoint has there."""
    train: TrainConfig = field(default_factory=TrainConfig)
    stages: Annotated[Any, tyro.conf.arg(name="")] = field(default_factory=NoStages)
    data: DataConfig = field(default_factory=DataConfig)
    allow_pickle: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Read weights from pickle files (pytorch_model.bin) too; such a file can run any program when it is opened."""
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run the Python code that comes with the model."""


@cache
def stage_settings(method: type[Any]) -> type[Any] | None:
    """Returns a dataclass with a :class:`StageConfig` for each stage of a method but the last; None without stages."""
    earlier = getattr(method, "stages", ())[:-1]
    if not earlier:
        return None
    entries = [(stage.name, StageConfig, StageConfig()) for stage in earlier]

    def reduce(self: Any) -> tuple[Any, ...]:
        return _stages, (method, tuple(getattr(self, entry.name) for entry in fields(self)))

    # pickle finds a class by its name in a module, where this one is not
    return make_dataclass("Stages", entries, frozen=True, namespace={"__reduce__": reduce})


def _stages(method: type[Any], values: tuple[StageConfig, ...]) -> Any:
    return stage_settings(method)(*values)


def to_tree(value: Any) -> Any:
    """Returns nested dicts, lists, strings and numbers for TOML and JSON; fields that are None are left out, and stages
    where there are none."""
    if is_dataclass(value):
        pairs = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        left_out = (type(None), NoStages)
        return {name: to_tree(item) for name, item in pairs.items() if not isinstance(item, left_out)}
    if isinstance(value, Mapping):
        return {str(name): to_tree(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns ``{"train.batch_size": 8, ...}`` of a tree that :func:`to_tree` made."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def flag_of(key: str) -> str:
    """Returns the flag of a flattened key: ``--train.batch-size`` for ``train.batch_size``."""
    section, _, name = key.removeprefix("stages.").rpartition(".")
    prefix = {"method_settings": "method.", "task_settings": "task.", "": ""}.get(section, f"{section}.")
    return f"--{prefix}{name}".replace("_", "-")


def default_output_dir(config: RunConfig) -> Path:
    """Returns ``runs/TASK-METHOD-PRESET-seedSEED``."""
    return Path("runs") / f"{config.task}-{config.method}-{config.preset}-seed{config.seed}"


def validate(config: RunConfig) -> None:
    """Refuses values that no run can have.

    Raises:
        UserError: naming the flag, the value and what it must be.
    """
    train, data = config.train, config.data

    def require(holds: bool, flag: str, value: Any, rule: str) -> None:
        if not holds:
            raise UserError(f"{flag} is {value}: it must be {rule}")

    def positive(flag: str, value: float | None) -> None:
        require(value is None or (math.isfinite(value) and value > 0), flag, value, "above 0")

    def at_least_one(flag: str, value: int | None) -> None:
        require(value is None or value >= 1, flag, value, "at least 1")

    def share(flag: str, value: float | None) -> None:
        require(value is None or 0 <= value < 1, flag, value, "at least 0 and below 1")

    def not_negative(flag: str, value: float | None) -> None:
        require(value is None or (math.isfinite(value) and value >= 0), flag, value, "0 or above")

    sections = {entry.name: getattr(config.stages, entry.name) for entry in fields(config.stages)}
    for name, section in {"train": train, **sections}.items():
        positive(f"--{name}.learning-rate", section.learning_rate)
        at_least_one(f"--{name}.batch-size", section.batch_size)
        positive(f"--{name}.epochs", section.epochs)
        at_least_one(f"--{name}.max-steps", section.max_steps)
        not_negative(f"--{name}.warmup-steps", section.warmup_steps)
        share(f"--{name}.warmup-ratio", section.warmup_ratio)
        not_negative(f"--{name}.weight-decay", section.weight_decay)
    positive("--train.head-learning-rate", train.head_learning_rate)
    at_least_one("--train.micro-batch-size", train.micro_batch_size)
    share("--train.adam-beta1", train.adam_beta1)
    share("--train.adam-beta2", train.adam_beta2)
    positive("--train.adam-epsilon", train.adam_epsilon)
    positive("--train.max-grad-norm", train.max_grad_norm)
    share("--train.label-smoothing", train.label_smoothing)
    share("--train.model-dropout", train.model_dropout)
    if isinstance(train.eval_every, int):
        at_least_one("--train.eval-every", train.eval_every)
    at_least_one("--train.save-every", train.save_every)
    at_least_one("--data.train-limit", data.train_limit)
    at_least_one("--data.eval-limit", data.eval_limit)
    # numpy's generators take no negative seed, and torch's none above 2**63
    require(0 <= config.seed < 2**32, "--seed", config.seed, "between 0 and 4294967295")
    at_least_one("--eval-batch-size", config.eval_batch_size)
    require(bool(config.model), "--model", "not given", "a model's name or a folder")
    task = config.task_settings
    if config.split not in task.scored_splits:
        raise UserError(f"--split {config.split}: task {config.task} is scored on {' or '.join(task.scored_splits)}")
    rules = {"last": None, **task.rules}
    require(bool(config.score), "--score", "empty", " or ".join(rules))
    for name in config.score:
        if name not in rules:
            raise UserError(
                f"--score {name}: with these settings task {config.task} selects by {', '.join(rules)}"
                f"{closest(name, rules)}"
            )
        if name != "last" and train.eval_every == "never":
            raise UserError(
                f"--score {name} needs measurements during training, and --train.eval-every is never: choose steps or "
                "epoch"
            )
