"""BitFit as a method of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from transformers import PreTrainedModel

from hadamard_baselines.bitfit import BitfitConfig
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class Bitfit(PeftMethod):
    """BitFit: trains the biases of projections and norms, nothing else of the backbone."""

    paper: ClassVar[str] = "Ben Zaken, Goldberg, Ravfogel 2022, arXiv:2106.10199"
    acts_on: ClassVar[str] = "all biases"
    # Rates for biases alone lie well above those for full fine-tuning; the range is LoRA's, and a little more above.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 3e-2)})
    """The learning rate."""

    roles: tuple[str, ...] | None = None
    """Whose biases, by role: query, ffn_input (the paper's smaller variant is these two), ...; all if not given."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> BitfitConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else self.roles)
        return BitfitConfig(
            task_type=task_type,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=layers,
        )
