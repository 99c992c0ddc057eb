"""What the harness brings itself, so that every comparison has its ends: LoRA, full tuning, and the head alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import PreTrainedModel

from hadamard_core.method import PeftMethod
from hadamard_core.targets import module_names


@dataclass(frozen=True)
class Lora(PeftMethod):
    """LoRA as peft ships it: W + (alpha / r) B A with B and A trained.

    On GPT-2, query, key and value are one fused projection, and peft's LoRA adapts all of it with one shared A; the
    LoRA paper's own code adapts its query and value parts only. The parameter counts are equal, the functions are not.
    """

    paper: ClassVar[str] = "arXiv 2106.09685"

    r: int = 8
    """Rank of the update."""
    alpha: float = 16.0
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the input of A, in training only."""
    roles: tuple[str, ...] = ("query", "value")
    """Which projections are adapted. On GPT-2 each of query, key and value means the whole fused c_attn."""
    target_modules: tuple[str, ...] | None = None
    """Names or suffixes of the modules to adapt, as peft has them, in place of roles."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"--method.r is {self.r}: it must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"--method.alpha is {self.alpha}: it must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--method.dropout is {self.dropout}: it must be at least 0 and below 1")

    def peft_config(self, model: PreTrainedModel, task_type: str) -> PeftConfig:
        """Returns peft's configuration for this model."""
        modules = list(self.target_modules) if self.target_modules else module_names(model, self.roles)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=modules,
            task_type=task_type,
        )


@dataclass(frozen=True)
class Full:
    """Full fine-tuning: every parameter of the model is trained."""

    paper: ClassVar[str] = "none: the reference that parameter-efficient methods are compared with"

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
