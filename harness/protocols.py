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
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.config import DataConfig


class Method(Protocol):
    """A way to adapt a model. peft methods get all of it from ``hadamard_core.method.PeftMethod``.

    A method that is trained in stages besides has ``stages``, a tuple of ``hadamard_core.method.Stage``, and ``enter``,
    which returns the model that one of them but the last trains; see :mod:`harness.stages`. A sweep searches the
    method's ``search_space`` (:mod:`hadamard_core.search_space`), without one the learning rate over a wide range. One
    that takes part in training has all of the hooks ``begin_training``, ``penalty``, ``after_step``, ``training_state``
    and ``restore_training_state``, as ``PeftMethod`` describes them. ``acts_on`` says in words what it changes, and
    ``cannot`` which promises it does not keep; one that cannot ``"merge"`` is scored as :meth:`load` returns it.
    """

    paper: ClassVar[str]

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> nn.Module:
        """Returns the model to train; exactly the parameters that the method trains require a gradient.

        Args:
            task_type: a value of ``peft.TaskType``.
            modules_to_save: names of modules that have to be trained and saved whole, whatever the method: the head,
                and what else the checkpoint lacks.

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


@dataclass(frozen=True)
class Rule:
    """How the parameters that are scored are chosen among those that training went through.

    Attributes:
        split: where they are measured; one that the task can encode.
        metric: a name in what :meth:`LoadedTask.summarise` returns.
        higher_is_better: otherwise the lowest is chosen; the earlier of two equals.
        words: the rule in words, which stand beside every number that it selected.
    """

    split: str
    metric: str
    higher_is_better: bool
    words: str

    def prefers(self, value: float | None, best: float | None) -> bool:
        """Whether a measurement beats the best so far; None is one that is not finite."""
        if value is None or best is None:
            return value is not None
        return value > best if self.higher_is_better else value < best


class LoadedTask(Protocol):
    """A task with its data read, limited and checked.

    Attributes:
        facts: goes into the result under ``data``: source, split sizes, input form, what was left out.
        warnings: sentences that the user should read before the run.
    """

    facts: Mapping[str, Any]
    warnings: Sequence[str]

    def model_kwargs(self, checkpoint: PreTrainedConfig | None) -> Mapping[str, Any]:
        """Fields of the model's configuration that the task sets, such as ``num_labels``.

        Args:
            checkpoint: the configuration as it comes with the model, or None where the model's head starts afresh
                and nothing about it matters.

        Raises:
            UserError: the head that the checkpoint has is not made for this task.
        """

    def encode(self, tokenizer: PreTrainedTokenizerBase, split: str) -> Sequence[Mapping[str, Any]]:
        """Returns the features of ``"train"`` or of a split that one of the task's rules names, in its order."""

    def collate(self, tokenizer: PreTrainedTokenizerBase, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Pads features to one batch of tensors on the CPU."""

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor], *, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Returns, for each example, the *sum* of the losses over its targets (examples,), differentiable, and the
        number of its targets (examples,), int64: the loop takes the mean over the targets of a global batch, in several
        micro-batches and processes, and a pack of trials that over each trial's examples."""

    def measure(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns what the metrics need to know of each example, a row (examples, columns) without gradient."""

    def summarise(self, split: str, rows: Tensor) -> Mapping[str, float]:
        """Returns the metrics of a split.

        Args:
            rows: what :meth:`measure` returned, each example of the split once and in its order, float64 on the CPU.
        """

    def evaluate(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, batch_size: int, progress: Progress
    ) -> Evaluation:
        """Scores ``model`` (in eval mode, on its device) on one of the task's ``scored_splits``.

        Args:
            batch_size: inputs that the model has at once; the scores do not depend on it.
        """


class Task(Protocol):
    """What is learned and how it is scored.

    Attributes:
        version: goes up when the same configuration comes to mean something else.
        task_type: a ``peft.TaskType`` value.
        auto_class: the transformers auto class that the task needs (``AutoModelForCausalLM``).
        recipes: the folder with one ``PRESET.toml`` for each preset. Presets that several tasks share lie in the folder
            ``shared_recipes``, if a task has this attribute.
        scored_splits: the splits that :meth:`LoadedTask.evaluate` takes.
        rules: name -> how ``--score NAME`` selects; ``last``, the last step, needs no rule.
    """

    version: ClassVar[int]
    task_type: ClassVar[str]
    auto_class: ClassVar[str]
    recipes: ClassVar[Path]
    scored_splits: ClassVar[Sequence[str]]

    @property
    def rules(self) -> Mapping[str, Rule]: ...

    def load(self, data: DataConfig, seed: int) -> LoadedTask:
        """Reads the data.

        Raises:
            UserError: the data cannot be used.
        """
