"""SSF as a method of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from hadamard_baselines.ssf import INITS, SsfConfig
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class Ssf(PeftMethod):
    """SSF: scales and shifts the output of every projection and norm."""

    paper: ClassVar[str] = "Lian, Zhou, Feng, Wang 2022, arXiv:2210.08565"
    acts_on: ClassVar[str] = "all projections and norms"
    # The authors' scripts have 1e-3 to 1e-2. Scales start at 1: at 1e-1 a step changes a scale by a tenth.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 1e-1)})
    """The learning rate."""

    init: Literal["identity", "normal"] = "identity"
    """Start as the base model, or, as the paper does, with normal values of deviation 0.02 around it."""
    roles: tuple[str, ...] | None = None
    """What to adapt, by role: query, value, output_norm, ...; everything if not given."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise ValueError(f"--method.init is {self.init!r}: it must be one of {', '.join(INITS)}")
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> SsfConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else self.roles)
        return SsfConfig(
            task_type=task_type,
            init=self.init,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=layers,
        )
