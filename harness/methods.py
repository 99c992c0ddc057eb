"""What the harness brings itself, the ends of a comparison: all parameters, the last layers, the head alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import PreTrainedModel

from hadamard_core.search_space import Domain, LogUniform
from hadamard_core.targets import find_targets, known_roles

_ITSELF = MappingProxyType(
    dict.fromkeys(("switch", "several", "mix"), "it changes the model itself")
    | {"bf16": "it trains parameters of the model, in its dtype"}
)
"""What a method cannot that puts nothing beside the model."""


@dataclass(frozen=True)
class Full:
    """Full fine-tuning: every parameter of the model is trained."""

    paper: ClassVar[str] = "none: the reference that parameter-efficient methods are compared with"
    acts_on: ClassVar[str] = "all parameters"
    cannot: ClassVar[Mapping[str, str]] = _ITSELF
    # published rates are 1e-5 to 5e-5; a small model on a small budget took 1e-4, and learned nothing at 3e-4
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-5, 1e-3)})

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> nn.Module:
        """Returns the model itself with every parameter trained."""
        return model.requires_grad_(True)

    def save(self, model: nn.Module, directory: Path) -> None:
        """Writes all weights to ``model.safetensors``, shared ones once."""
        save_model(model, str(directory / "model.safetensors"))

    def load(self, base: PreTrainedModel, directory: Path) -> nn.Module:
        """Returns ``base`` with the weights that were saved."""
        load_model(base, str(directory / "model.safetensors"))
        return base.requires_grad_(False)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Returns the model itself."""
        return model


class _Part:
    """A part of the model itself is trained, and saved by its parameters' names."""

    file: ClassVar[str]
    cannot: ClassVar[Mapping[str, str]] = _ITSELF

    def save(self, model: nn.Module, directory: Path) -> None:
        """Writes what was trained."""
        trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
        save_file(trained, directory / self.file)

    def load(self, base: PreTrainedModel, directory: Path) -> nn.Module:
        """Returns ``base`` with what was saved."""
        parameters = dict(base.named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(directory / self.file).items():
                parameters[name].copy_(tensor)
        return base.requires_grad_(False)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Returns the model itself."""
        return model


@dataclass(frozen=True)
class Head(_Part):
    """The head alone: what the frozen model's features give by themselves."""

    file: ClassVar[str] = "head.safetensors"
    acts_on: ClassVar[str] = "the head"
    paper: ClassVar[str] = "none: the lower end of a comparison, also known as linear probing"
    # the range of the methods that train few parameters; of 1e-3, 3e-3 and 1e-2 the highest did best on a small budget
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 1e-1)})

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> nn.Module:
        """Returns the model itself with its head trained.

        Raises:
            ValueError: the model has no head of its own.
        """
        if not modules_to_save:
            raise ValueError("the model of this task has no head of its own, so there is nothing to train")
        return _with_trained(model, modules_to_save)


@dataclass(frozen=True)
class Top2(_Part):
    """FT-Top2: fine-tunes the last two layers, and the head."""

    file: ClassVar[str] = "layers.safetensors"
    acts_on: ClassVar[str] = "the last two layers"
    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190 (FT-Top2)"
    # the range of full fine-tuning; fewer parameters take somewhat more
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-5, 1e-3)})

    layers: int = 2
    """How many layers are trained, counted from the output; final norms and embeddings stay as they are."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"--method.layers is {self.layers}: it must be at least 1")

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> nn.Module:
        """Returns the model itself with its last layers and its head trained.

        Raises:
            ValueError: the model's architecture is not known, or it has fewer layers.
        """
        every = list(dict.fromkeys(target.layer_name for target in find_targets(model, known_roles(model)).values()))
        if len(every) < self.layers:
            raise ValueError(f"--method.layers is {self.layers}, and the model has {len(every)} layers")
        return _with_trained(model, [*every[-self.layers :], *modules_to_save])


def _with_trained(model: PreTrainedModel, modules: Sequence[str]) -> PreTrainedModel:
    model.requires_grad_(False)
    for name in modules:
        model.get_submodule(name).requires_grad_(True)
    return model
