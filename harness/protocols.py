"""The two seams of the harness: what a method is and what a task is.

Both are found by entry points (``hadamard.methods``, ``hadamard.tasks``), so that a package installed beside this one
can bring its own; the harness names none. An entry point gives a frozen dataclass: its fields are the ``--method.*`` or
``--task.*`` flags, its docstring's first line is what ``--list`` prints, and it has the attributes below. Neither side
has to import this file: the protocols are structural.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.config import DataConfig


class Method(Protocol):
    """A way to adapt a model. peft methods get all of it from ``hadamard_core.method.PeftMethod``."""

    paper: ClassVar[str]

    def apply(self, model: PreTrainedModel, task_type: str) -> nn.Module:
        """Returns the model to train; exactly the parameters that the method trains require a gradient.

        Args:
            task_type: a value of ``peft.TaskType``.

        Raises:
            ValueError: the method cannot act on this model (one sentence).
        """

    def save(self, model: nn.Module, directory: Path) -> None:
        """Writes what was trained, as safetensors, so that :meth:`load` can read it into a fresh base model."""

    def load(self, base: PreTrainedModel, directory: Path) -> nn.Module:
        """Returns ``base`` with what :meth:`save` wrote; nothing in it requires a gradient."""

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Returns a plain transformers model of the same function with the adapter folded into its weights."""


class Bar(Protocol):
    """A progress bar, as tqdm has it."""

    def update(self, n: float = 1) -> Any: ...

    def set_postfix_str(self, s: str) -> Any: ...


class Progress(Protocol):
    """Shows how far a long piece of work has come, on stderr."""

    def bar(self, description: str, total: int, unit: str) -> AbstractContextManager[Bar]: ...


@dataclass(frozen=True)
class Evaluation:
    """What a task says of a model on one split.

    Attributes:
        metrics: name -> value; NaN never stands for "not computed".
        unavailable: name -> the reason (one sentence), for a metric that could not be computed here.
        signatures: name -> how it was computed (tokeniser, case, references, version).
        predictions: one JSON object an example, in the split's order.
    """

    metrics: Mapping[str, float]
    predictions: Sequence[Mapping[str, Any]]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)


class LoadedTask(Protocol):
    """A task with its data read, limited and checked.

    Attributes:
        facts: goes into the result under ``data``: source, split sizes, input form, what was left out.
    """

    facts: Mapping[str, Any]

    def model_kwargs(self) -> Mapping[str, Any]:
        """Extra arguments for the auto class, such as ``num_labels``."""

    def encode(self, tokenizer: PreTrainedTokenizerBase, split: str) -> Sequence[Mapping[str, Any]]:
        """Returns the features of ``"train"`` or ``"validation"``, for the loss; in the split's order."""

    def collate(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pads features to one batch of tensors on the CPU."""

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Returns the *sum* of the losses over the batch's targets (0-dim, differentiable) and the number of targets
        (0-dim, int64): the loop takes the mean over a global batch of several micro-batches and processes."""

    def evaluate(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, progress: Progress
    ) -> Evaluation:
        """Scores ``model`` (in eval mode, on its device) on ``"validation"`` or ``"test"``."""


class Task(Protocol):
    """What is learned and how it is scored."""

    version: ClassVar[int]
    task_type: ClassVar[str]
    auto_class: ClassVar[str]
    recipes: ClassVar[Path]

    def load(self, data: DataConfig, seed: int) -> LoadedTask:
        """Reads the data. ``version`` goes up when the same configuration comes to mean something else;
        ``task_type`` is a ``peft.TaskType`` value; ``auto_class`` names the transformers auto class that the task needs
        (``AutoModelForCausalLM``); ``recipes`` is the folder with one ``PRESET.toml`` for each preset.

        Raises:
            UserError: the data cannot be used.
        """
