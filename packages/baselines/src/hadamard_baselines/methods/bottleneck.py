"""Bottleneck adapters as methods of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from hadamard_baselines.bottleneck import BottleneckConfig
from hadamard_baselines.bottleneck.config import KINDS
from hadamard_baselines.methods.base import require_at_least
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.search_space import Choices, Domain, LogUniform


@dataclass(frozen=True)
class _Bottleneck(PeftMethod):
    kind: ClassVar[str]
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType({"merge": "no weights can hold a nonlinearity"})
    # The rows that papers copy have 3e-4 on GLUE, with bottlenecks of 8, 16 and 64; small models on small budgets take
    # more.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-2), "method.bottleneck": Choices((8, 16, 64))}
    )
    """The learning rate and the bottleneck."""

    bottleneck: int = 64
    """Features between the down- and the up-projection."""
    activation: Literal["gelu", "relu"] = "relu"
    """The nonlinearity between the two."""
    norms: bool = False
    """Train the norms of the adapted layers, too."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules whose output is adapted, by peft's rules, in place of where the paper has adapters."""

    def __post_init__(self) -> None:
        require_at_least("bottleneck", self.bottleneck, 1)
        if self.layers is not None:
            check_selection(self.layers)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> BottleneckConfig:
        layers = layers_to_transform(model, self.layers, None if self.target_modules else KINDS[self.kind].roles)
        return BottleneckConfig(
            task_type=task_type,
            kind=self.kind,
            bottleneck=self.bottleneck,
            activation=self.activation,
            norms=self.norms,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            layers_to_transform=layers,
        )


@dataclass(frozen=True)
class Houlsby(_Bottleneck):
    """HAdapter: a bottleneck after each attention and each feed-forward, before the residual; norms train.

    Tables that copy its results count the bottlenecks alone.
    """

    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    acts_on: ClassVar[str] = "after attention and feed-forward, norms"
    kind: ClassVar[str] = "houlsby"

    activation: Literal["gelu", "relu"] = "gelu"
    """The nonlinearity between the two."""
    norms: bool = True
    """Train the norms of the adapted layers, too."""


@dataclass(frozen=True)
class Pfeiffer(_Bottleneck):
    """PAdapter: one bottleneck a layer, on what the layer returns."""

    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"
    acts_on: ClassVar[str] = "after each layer"
    kind: ClassVar[str] = "pfeiffer"


@dataclass(frozen=True)
class Lin(_Bottleneck):
    """LAdapter: one bottleneck a layer, on what the layer returns, with a layer norm of its own before it."""

    paper: ClassVar[str] = "Lin et al. 2020, arXiv:2004.03829"
    acts_on: ClassVar[str] = "after each layer"
    kind: ClassVar[str] = "lin"
