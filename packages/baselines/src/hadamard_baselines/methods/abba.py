"""ABBA as a method of the comparison harness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from transformers import PreTrainedModel

from hadamard_baselines.abba import AbbaConfig
from hadamard_baselines.methods.base import require_at_least
from hadamard_core.config import DEFAULT_ROLES
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class Abba(PeftMethod):
    """ABBA: W + s (B1 A1) * (B2 A2), an elementwise product of two low-rank matrices, all four trained."""

    paper: ClassVar[str] = "Singhal, Ponkshe et al. 2025, arXiv:2505.14238"
    # The authors' script has 1e-3. The ranks are left alone: they decide how many parameters there are.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 1e-2)})
    """The learning rate."""

    r1: int = 4
    """Rank of the factor that starts from the weight; r1 = r2 = r / 2 trains as much as LoRA of rank r."""
    r2: int = 4
    """Rank of the factor that starts at zero."""
    alpha: float = 8.0
    """s, what the product of the two is multiplied by."""
    # The paper adapts all projections of a layer; query and value are what this comparison's methods have in common.
    roles: tuple[str, ...] = DEFAULT_ROLES
    """What to adapt, by role; the paper has query, key, value, attention_output, ffn_input, ffn_gate and ffn_output."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""

    def __post_init__(self) -> None:
        require_at_least("r1", self.r1, 1)
        require_at_least("r2", self.r2, 1)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"--method.alpha is {self.alpha}: it must be a finite number above 0")
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> AbbaConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else self.roles)
        return AbbaConfig(
            task_type=task_type,
            r1=self.r1,
            r2=self.r2,
            alpha=self.alpha,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=layers,
        )
