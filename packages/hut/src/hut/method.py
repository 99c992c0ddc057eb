"""HUT as a method of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from transformers import PreTrainedModel

from hadamard_core.config import DEFAULT_ROLES
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Choices, Domain, LogUniform
from hut.config import HutConfig


@dataclass(frozen=True)
class Hut(PeftMethod):
    """HUT: scales every row and column of frozen projections, and shifts their result."""

    paper: ClassVar[str] = "Zhang, Zhou, Chen 2024, arXiv:2409.13501"
    # The paper's rates are 1e-4 to 5e-3 over its tasks; on a small budget 1e-2 did best of three. Scales start at 1: at
    # 1e-1 a step changes a scale by a tenth.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-1), "method.r": Choices((1, 2, 4, 8))}
    )
    """The learning rate, and r because the paper has it: under AdamW r does not change the function learned, so that a
    sweep finds the same curves for all values and may as well fix it (``--space.r 1``, the fewest parameters)."""

    r: int = 8
    """Columns of M_A, rows of M_B. Nominal: under AdamW the function learned does not depend on it."""
    roles: tuple[str, ...] = DEFAULT_ROLES
    """What to adapt, by role: query, key, value, attention_output, ffn_input, ffn_output, ..."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""
    scale: bool = True
    """Train gamma, the scale of the result."""
    shift: bool = True
    """Train beta, the shift of the result."""
    compute: str = "auto"
    """How the product is computed: auto, weight or activation; the function is the same."""

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"--method.r is {self.r}: it must be at least 1")
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> HutConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else self.roles)
        return HutConfig(
            task_type=task_type,
            r=self.r,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=layers,
            scale=self.scale,
            shift=self.shift,
            compute=self.compute,
        )
