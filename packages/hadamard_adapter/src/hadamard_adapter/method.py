"""The Hadamard adapter as a method of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from hadamard_adapter.config import ATTENTION_OUTPUT, HadamardAdapterConfig
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod, Stage
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class Hadamard(PeftMethod):
    """Hadamard adapter: A' = W * A + b on self-attention outputs, a norm unfrozen, after the head was trained alone."""

    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2407.11033"
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("stage1", "the head, on the frozen model", needs_head=True),
        Stage("stage2", "the adapter and the norms"),
    )
    # The paper's rates are not known. Scales start at 1 and shifts at 0, as in HUT: at 1e-1 a step changes a scale by a
    # tenth. The first stage trains a head alone, and has the range of that method.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-1), "stage1.learning_rate": LogUniform(1e-4, 1e-1)}
    )
    """The learning rates of the adapter and of the head before it."""

    position: Literal["context", "projection"] = "context"
    """Where the attention's output is taken: before (context) or after (projection) the output projection."""
    norm: Literal["attention", "output", "both", "none"] = "attention"
    """Which norms of the adapted layers train: that of the attention's block, of the feed-forward's, both, or none."""
    weight: bool = True
    """Train W, the scale of the attention's output."""
    bias: bool = True
    """Train b, the shift of the attention's output."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""
    head: Literal["freeze", "train"] = "freeze"
    """What becomes of the head in stage 2: it stays as stage 1 has left it, or goes on training."""
    roles: tuple[str, ...] = (ATTENTION_OUTPUT,)
    """Which attentions, by role: attention_output for all; with encoder., decoder. or cross. before it some of them."""
    target_modules: tuple[str, ...] | None = None
    """Names of the projections whose input or output is adapted, by peft's rules, in place of roles."""
    norm_modules: tuple[str, ...] | None = None
    """Names of the norms that train, by peft's rules, in place of those that norm means."""
    compute: Literal["auto", "weight", "activation"] = "auto"
    """How the product is computed; the function is the same."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> HadamardAdapterConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else self.roles)
        return HadamardAdapterConfig(
            task_type=task_type,
            position=self.position,
            norm=self.norm,
            weight=self.weight,
            bias=self.bias,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            norm_modules=None if self.norm_modules is None else list(self.norm_modules),
            layers_to_transform=layers,
            compute=self.compute,
        )

    def trained(self, stage: str) -> tuple[str, ...]:
        if stage == "stage1":
            return ("head",)
        return ("adapter",) if self.head == "freeze" else ("adapter", "head")

    def enter(
        self, stage: str, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()
    ) -> nn.Module:
        model.requires_grad_(False)
        for name in modules_to_save:
            model.get_submodule(name).requires_grad_(True)
        return model

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        adapted = super().apply(model, task_type, modules_to_save)
        if "head" not in self.trained("stage2"):
            for module in adapted.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    module.modules_to_save.requires_grad_(False)
        return adapted
