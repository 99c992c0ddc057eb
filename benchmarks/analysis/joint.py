"""One model with a Hadamard adapter for each of several tasks of GLUE, some of whose parameters are one and the same.

The adapters are peft's, under the names of their tasks. Sharing W (or b) puts the same parameter under all names, so
that autograd sums the tasks' gradients into it. A forward pass takes samples of all tasks, each with its own adapter.

Heads of unlike size: each task keeps a head of its own size, and what the heads return is filled up with zeros to the
widest within a mixed batch alone. Heads that all have the most outputs would be no heads of their tasks: other
parameter counts, another start, and files that fit no base model of the task. To run the backbone and then the heads by
hand would need to know, for each architecture, what lies between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.glue.task import Glue, LoadedGlue
from hadamard_adapter import HadamardLinear
from hadamard_adapter.method import Hadamard
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.packing import MixedHeads
from harness import models, registry
from harness.base import Base
from harness.config import DataConfig
from harness.errors import UserError, one_line
from harness.order import Order, by_length
from harness.workload import Workload, lengths

SHARED = {"none": (), "weight": ("hadamard_weight",), "both": ("hadamard_weight", "hadamard_bias")}
"""What the tasks have in common, by the name of the arm: containers of ``HadamardLinear``."""
METHOD = Hadamard()


@dataclass(frozen=True)
class JointTask:
    """One of the tasks that are trained together.

    Attributes:
        name: of the task, and of its adapter.
        base: the model on disk, with a head for this task.
        workload: its training and held-out examples.
    """

    name: str
    base: Base
    workload: Workload

    @property
    def loaded(self) -> LoadedGlue:
        return self.workload.task

    @property
    def outputs(self) -> int:
        """The number of outputs of its head."""
        return self.base.model_kwargs["num_labels"]

    def batches(self, batch_size: int, seed: int, steps: int) -> list[tuple[int, ...]]:
        """Returns the examples of each step, as the harness orders those of a run of this task alone.

        Raises:
            UserError: there are fewer examples than a batch takes.
        """
        order = Order(lengths(self.workload.train), batch_size, seed, group_by_length=False)
        if not order.steps_per_epoch:
            raise UserError(
                f"--batch-size is {batch_size} and {self.name} has {len(self.workload.train)} training examples: the "
                "batch must not be larger"
            )
        return [order.batch(step) for step in range(steps)]


def read_tasks(
    names: Sequence[str], model: str, data: DataConfig, seed: int, max_length: int, held_out: float
) -> tuple[JointTask, ...]:
    """Reads the tasks' data and finds the model; heads start afresh, as those of the harness's ``--new-head`` do.

    Raises:
        UserError: a name is no task of GLUE, or data or model cannot be used.
    """
    kinds = [glue_task(name) for name in names]
    base = models.find(model, Glue.auto_class, seed, new_head=True, say=lambda text: None)
    tokenizer = base.tokenizer()
    tasks = []
    for name, kind in zip(names, kinds, strict=True):
        loaded = kind(max_length=max_length, held_out=held_out).load(data, seed)
        measured = {"held_out": loaded.encode(tokenizer, "held_out")}
        workload = Workload(loaded, tokenizer, loaded.encode(tokenizer, "train"), measured)
        tasks.append(JointTask(name, replace(base, model_kwargs=loaded.model_kwargs(None)), workload))
    return tuple(tasks)


def glue_task(name: str) -> type[Glue]:
    """Returns the class of a task of GLUE.

    Raises:
        UserError: there is no task of that name, or it is none of GLUE.
    """
    known = [each for each, entry in registry.entries("task").items() if entry.value.startswith("benchmarks.glue.")]
    if name not in known:
        raise UserError(
            f"--tasks {name}: there is no task of GLUE of that name{registry.closest(name, known)} "
            f"(known: {', '.join(known)})"
        )
    return registry.load("task", name)


def build(tasks: Sequence[JointTask]) -> PeftModel:
    """Returns the base model with an adapter and a head for each task, none of them shared, nothing of it trained.

    The heads start as those of the tasks' own base models.

    Raises:
        UserError: the Hadamard adapter cannot act on this model.
    """
    own = {task.name: task.base.fresh() for task in tasks}
    first = tasks[0]
    heads = first.base.modules_to_save(own[first.name])
    model = first.base.fresh()

    def config() -> Any:
        found = METHOD.peft_config(model, Glue.task_type)
        found.modules_to_save = list(heads)
        return found

    try:
        adapted = get_peft_model(model, config(), first.name)
        for task in tasks[1:]:
            adapted.add_adapter(task.name, config())
    except ValueError as error:
        raise UserError(f"--model {first.base.name}: {one_line(error)}") from error
    for name in heads:
        wrapper = MixedHeads(adapted.get_submodule(f"base_model.model.{name}").original_module, first.name)
        for task in tasks:
            wrapper.update(task.name)
            wrapper.modules_to_save[task.name] = own[task.name].get_submodule(name)
        adapted.base_model.model.set_submodule(name, wrapper)
    return adapted.requires_grad_(False)


def share(model: PeftModel, tasks: Sequence[str], arm: str) -> None:
    """Makes parameters of the adapters one: the first task's stand under the names of the others."""
    for layer in model.modules():
        if isinstance(layer, HadamardLinear):
            for container in SHARED[arm]:
                parameters = getattr(layer, container)
                for task in tasks[1:]:
                    parameters[task] = parameters[tasks[0]]


def train_only(model: PeftModel, adapters: bool, heads: bool) -> None:
    """Says what requires a gradient: the tasks' adapters with what they change in norms, their heads, or both."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdapterLayer):
            for container in module.adapter_layer_names:
                getattr(module, container).requires_grad_(adapters)
        elif isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.requires_grad_(heads)


class OfTask(nn.Module):
    """The joint model as a model of one of its tasks: all samples take that adapter, and outputs are its head's."""

    def __init__(self, model: PeftModel, task: JointTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        found = self.model(input_ids=input_ids, **inputs, adapter_names=[self.task.name] * len(input_ids))
        return SequenceClassifierOutput(logits=found.logits[:, : self.task.outputs])


def losses(
    model: PeftModel,
    tasks: Sequence[JointTask],
    examples: Sequence[Sequence[int]],
    device: torch.device,
    at_once: int | None = None,
) -> dict[str, Tensor]:
    """Returns each task's mean loss over its examples, which go through the model in mixed batches.

    Args:
        examples: for each task, numbers of its training examples.
        at_once: examples, of all tasks, in one mixed batch; those of like length meet in one. All in one if None.
    """
    batches = [[task.workload.train[number] for number in own] for task, own in zip(tasks, examples, strict=True)]
    logits = mixed_logits(
        model,
        tasks,
        [(task.name, each) for task, own in zip(tasks, batches, strict=True) for each in own],
        device,
        at_once,
    )
    found = {}
    parts = logits.split([len(own) for own in batches])
    for task, own, part in zip(tasks, batches, parts, strict=True):
        labels = task.loaded.collate(task.workload.tokenizer, own)["labels"].to(device)
        computed = partial(SequenceClassifierOutput, logits=part[:, : task.outputs])
        each, _ = task.loaded.losses(computed, {"labels": labels}, label_smoothing=0.0)
        found[task.name] = each.mean()
    return found


def mixed_logits(
    model: PeftModel,
    tasks: Sequence[JointTask],
    samples: Sequence[tuple[str, Mapping[str, Any]]],
    device: torch.device,
    at_once: int | None,
) -> Tensor:
    """Returns the logits (samples, widest head's outputs) of samples, each a task's name and features."""
    tokenizer, widest = tasks[0].workload.tokenizer, max(task.outputs for task in tasks)
    groups = by_length([len(feature["input_ids"]) for _, feature in samples], at_once or len(samples))
    outputs = []
    for group in groups:
        inputs = [{key: value for key, value in samples[row][1].items() if key != "labels"} for row in group]
        batch = tokenizer.pad(inputs, padding_side="right", return_tensors="pt").to(device)
        found = model(**batch, adapter_names=[samples[row][0] for row in group]).logits.float()
        outputs.append(F.pad(found, (0, widest - found.shape[1])))
    place = torch.tensor([row for group in groups for row in group], device=device)
    return torch.cat(outputs)[place.argsort()]


def save(model: PeftModel, task: str, folder: Path) -> None:
    """Writes the adapter of a task to ``folder/TASK``, as peft and the harness write that of a task alone."""
    model.save_pretrained(str(folder), selected_adapters=[task])
