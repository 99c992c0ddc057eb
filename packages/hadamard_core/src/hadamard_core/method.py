"""What turns a peft config into a method of the comparison harness.

A method package offers, under the entry point group ``hadamard.methods``, a frozen dataclass whose fields are the
method's settings. For a peft method this base class does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_core.search_space import DEFAULT, Domain


@dataclass(frozen=True)
class Stage:
    """A part of a method's training, with steps, settings and an optimiser of its own.

    Attributes:
        name: what its flags and its part of a recipe are called: ``stage1`` for ``--stage1.epochs``.
        trains: what is trained in it, in words.
        needs_head: it is left out where the task's model has no head.
    """

    name: str
    trains: str
    needs_head: bool = False


class PeftMethod:
    """Applies, saves, loads and merges a method of peft; subclasses are frozen dataclasses with :meth:`peft_config`.

    Attributes:
        paper: where the method is described.
        stages: the parts of its training, in order; none for a method that is applied and trained at once. The last one
            trains what :meth:`apply` returns, the others what :meth:`enter` returns.
        search_space: what a sweep searches unless it is told otherwise: dotted keys of the run's configuration, such
            as ``train.learning_rate`` and ``method.r``, and where their values lie.
        acts_on: the parts of a model that it changes, in words; empty for those that the field ``roles`` names.
        cannot: promises that the method cannot keep by its nature, each with the reason in a sentence; their names are
            those of :mod:`harness.capabilities`. One that cannot ``"merge"`` is scored as it is.
        packable: whether trials can train together as adapters of one model, if its tuner is a ``HadamardTuner``: the
            hooks of training below are not called then, and its stages are told apart by :meth:`trained` alone.
    """

    paper: ClassVar[str]
    stages: ClassVar[tuple[Stage, ...]] = ()
    search_space: ClassVar[Mapping[str, Domain]] = DEFAULT
    acts_on: ClassVar[str] = ""
    cannot: ClassVar[Mapping[str, str]] = {}
    packable: ClassVar[bool] = True

    def enter(
        self, stage: str, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()
    ) -> nn.Module:
        """Returns the model to train in one of :attr:`stages` but the last.

        Args:
            stage: its name.
            model: the base model, or what the stage before has trained.
            task_type: as of :meth:`peft_config`.
            modules_to_save: as of :meth:`apply`.
        """
        raise NotImplementedError

    def trained(self, stage: str) -> tuple[str, ...]:
        """What a stage trains of the model that :meth:`apply` returns: ``"adapter"``, ``"head"``, or both.

        Args:
            stage: its name; empty for the only one of a method without :attr:`stages`.
        """
        return ("adapter", "head")

    def begin_training(self, model: nn.Module, steps: int) -> None:
        """Called before the first step of a stage, also of one that goes on from a checkpoint.

        Args:
            model: what the stage trains.
            steps: how many steps the stage has.
        """

    def penalty(self, model: nn.Module) -> Tensor | None:
        """What is added to the mean loss of a step, differentiable, (); None for nothing."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after the optimiser's step number ``step``, counted from 1, with the gradients still there."""

    def training_state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What these hooks need beside the trained parameters to go on from a checkpoint."""
        return {}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`training_state` returned."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PeftConfig:
        """The config for ``get_peft_model``.

        Args:
            model: the base model.
            task_type: a value of ``peft.TaskType``.

        Raises:
            ValueError: these settings do not fit, in themselves or for this model.
        """
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        config = self.peft_config(model, task_type)
        if modules_to_save:
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *modules_to_save]))
        return get_peft_model(model, config)

    def save(self, model: PeftModel, directory: Path) -> None:
        model.save_pretrained(str(directory))

    def load(self, base: PreTrainedModel, directory: Path) -> PeftModel:
        return PeftModel.from_pretrained(base, str(directory))

    def merge(self, model: PeftModel) -> nn.Module:
        return model.merge_and_unload()
