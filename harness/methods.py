"""What the harness brings itself, so that every comparison has its ends: full fine-tuning, and the head alone."""

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


@dataclass(frozen=True)
class Full:
    """Full fine-tuning: every parameter of the model is trained."""

    paper: ClassVar[str] = "none: the reference that parameter-efficient methods are compared with"
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


@dataclass(frozen=True)
class Head:
    """The head alone: what the frozen model's features give by themselves."""

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
        model.requires_grad_(False)
        for name in modules_to_save:
            model.get_submodule(name).requires_grad_(True)
        return model

    def save(self, model: nn.Module, directory: Path) -> None:
        """Writes what was trained to ``head.safetensors``."""
        trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
        save_file(trained, directory / "head.safetensors")

    def load(self, base: PreTrainedModel, directory: Path) -> nn.Module:
        """Returns ``base`` with the head that was saved."""
        parameters = dict(base.named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(directory / "head.safetensors").items():
                parameters[name].copy_(tensor)
        return base.requires_grad_(False)

    def merge(self, model: nn.Module) -> PreTrainedModel:
        """Returns the model itself."""
        return model
