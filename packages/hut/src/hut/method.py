"""HUT as a method of the comparison harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from hadamard_core.config import DEFAULT_ROLES
from hadamard_core.method import PeftMethod
from hut.config import HutConfig


@dataclass(frozen=True)
class Hut(PeftMethod):
    """HUT: scales every row and column of frozen projections, and shifts their result."""

    paper: ClassVar[str] = "Zhang, Zhou, Chen 2024, arXiv:2409.13501"

    r: int = 8
    """Columns of M_A, rows of M_B. Nominal: under AdamW the function learned does not depend on it."""
    roles: tuple[str, ...] = DEFAULT_ROLES
    """What to adapt, by role: query, key, value, attention_output, ffn_input, ffn_output, ..."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int, ...] | None = None
    """Indices of the layers to adapt; all if not given."""
    scale: bool = True
    """Train gamma, the scale of the result."""
    shift: bool = True
    """Train beta, the shift of the result."""
    compute: str = "auto"
    """How the product is computed: auto, weight or activation; the function is the same."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> HutConfig:
        return HutConfig(
            task_type=task_type,
            r=self.r,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=None if self.layers is None else list(self.layers),
            scale=self.scale,
            shift=self.shift,
            compute=self.compute,
        )
