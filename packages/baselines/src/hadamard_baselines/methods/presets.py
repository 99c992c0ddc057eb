"""Methods that peft ships, with the settings of their papers.

What they compute is peft's; what is here is where they act, what they start from, and which flag a setting has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import peft
import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from hadamard_baselines.methods.base import (
    EVERY_PROJECTION,
    NO_MIXED_BATCHES,
    OnProjections,
    modules_named,
    require_at_least,
    require_positive,
    require_share,
)
from hadamard_core.orientation import features
from hadamard_core.search_space import Choices, Domain, LogUniform
from hadamard_core.targets import find_targets

_RATE = LogUniform(1e-4, 1e-2)


@dataclass(frozen=True)
class Dora(OnProjections):
    """DoRA: W = m (W0 + (alpha / r) B A) / ||W0 + (alpha / r) B A||, a norm for each output; m, A and B trained."""

    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    config_class: ClassVar[type[PeftConfig]] = peft.LoraConfig
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mix": "peft computes a norm over all of a weight, so that it refuses `adapter_names` with DoRA"}
    )
    # The paper's rates are 1e-4 to 2e-4 on large language models; small models take more, as with LoRA.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": _RATE, "method.r": Choices((4, 8, 16))}
    )
    """The learning rate and the rank."""

    r: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / r."""
    dropout: float = 0.05
    """Dropout on the input of A, in training only."""
    roles: tuple[str, ...] = ("query", "key", "value", "ffn_input", "ffn_output")
    """Which projections are adapted, by role; the paper takes query, key, value, up and down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("r", self.r, 1)
        require_positive("alpha", self.alpha)
        require_share("dropout", self.dropout)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.LoraConfig:
        """Returns the configuration for this model."""
        return peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=True,
            target_modules=self.targets(model),
            task_type=task_type,
        )


@dataclass(frozen=True)
class FourierFT(OnProjections):
    """FourierFT: W0 plus the inverse Fourier transform of n trained coefficients at places that all layers share.

    The coefficients start as the paper's code has them, from a normal distribution, so that the model does not start as
    the base model; peft would start them at zero with ``init_weights=True``.
    """

    paper: ClassVar[str] = "Gao et al. 2024, arXiv:2405.03003"
    config_class: ClassVar[type[PeftConfig]] = peft.FourierFTConfig
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        NO_MIXED_BATCHES
        | {"start": "the paper's code draws the coefficients at random; `--method.start zero` does not"}
    )
    # The paper's rates are 4.3e-2 to 8e-2 on GLUE and 2e-2 on E2E, with scales of 69 to 300.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-3, 3e-1), "method.n": Choices((200, 1000, 3000))}
    )
    """The learning rate and the number of coefficients."""

    n: int = 1000
    """Coefficients of a projection."""
    scaling: float = 150.0
    """What the transform is multiplied by; the paper's is 69 to 121 on GLUE's tasks and 300 on E2E."""
    location_seed: int = 2024
    """The seed of the coefficients' places, which does not depend on the seed of the run."""
    start: Literal["normal", "zero"] = "normal"
    """What the coefficients start at; zero starts as the base model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("n", self.n, 1)
        require_positive("scaling", self.scaling)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.FourierFTConfig:
        """Returns the configuration for this model.

        Raises:
            ValueError: a projection has fewer entries than there are coefficients.
        """
        targets = self.targets(model)
        for name in modules_named(model, targets):
            if (entries := math.prod(features(model.get_submodule(name)))) < self.n:
                raise ValueError(f"--method.n is {self.n}, and {name} has {entries} entries: give at most as many")
        return peft.FourierFTConfig(
            n_frequency=self.n,
            scaling=self.scaling,
            random_loc_seed=self.location_seed,
            init_weights=self.start == "zero",
            target_modules=targets,
            task_type=task_type,
        )


@dataclass(frozen=True)
class KronA(OnProjections):
    """KronA: W0 + s (A kron B) with A and B trained, two matrices about as large as the root of W0.

    peft's LoKr with both factors whole, which is the Kronecker product; its alpha / rank is set to s.
    """

    paper: ClassVar[str] = "Edalati et al. 2022, arXiv:2212.10650"
    config_class: ClassVar[type[PeftConfig]] = peft.LoKrConfig
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # No rate of the paper is at hand; the range is LoRA's, wider above because one entry stands in many places.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 3e-2), "method.scale": Choices((1.0, 4.0, 16.0))}
    )
    """The learning rate and s, which the paper searches, too."""

    scale: float = 16.0
    """s, what the product is multiplied by."""
    factor: int = -1
    """Rows and columns of A at most; -1 makes A and B as near to squares as the sizes of W0 allow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("scale", self.scale)
        if self.factor != -1 and self.factor < 1:
            raise ValueError(f"--method.factor is {self.factor}: it must be -1 or at least 1")

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.LoKrConfig:
        """Returns the configuration for this model."""
        targets = self.targets(model)
        # From this rank on peft cuts no factor into two of a lower rank; the rank has no other part in it.
        rank = max(max(features(model.get_submodule(name))) for name in modules_named(model, targets))
        return peft.LoKrConfig(
            r=rank,
            alpha=self.scale * rank,
            decompose_factor=self.factor,
            target_modules=targets,
            task_type=task_type,
        )


@dataclass(frozen=True)
class Ia3(OnProjections):
    """(IA)^3: scales keys, values and the inner activation of the feed-forward by trained vectors."""

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    config_class: ClassVar[type[PeftConfig]] = peft.IA3Config
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # The paper's rate is 3e-3 with Adafactor; scales start at 1, so that steps are relative, as HUT's.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 1e-1)})
    """The learning rate."""

    roles: tuple[str, ...] = ("key", "value", "ffn_output")
    """What is scaled, by role: the output of projections, and the input of ffn_output, the inner activation."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.IA3Config:
        """Returns the configuration for this model."""
        targets, inner = self.targets(model), []
        if self.target_modules is None:
            inputs = [role for role in self.roles if role.endswith("ffn_output")]
            inner = sorted({*targets} & {*find_targets(model, inputs)}) if inputs else []
        return peft.IA3Config(target_modules=targets, feedforward_modules=inner, task_type=task_type)


@dataclass(frozen=True)
class Hira(OnProjections):
    """HiRA: W0 * (1 + B A) elementwise, with B and A trained."""

    paper: ClassVar[str] = "Huang et al. 2025, ICLR, openreview TwJrTz9cRS"
    config_class: ClassVar[type[PeftConfig]] = peft.HiraConfig
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # The paper's rates are around 1e-3 on large language models; updates are relative to W0, so that they are small.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 3e-2), "method.r": Choices((8, 16, 32))}
    )
    """The learning rate and the rank."""

    r: int = 32
    """Rank of B A."""
    dropout: float = 0.0
    """Dropout on the input of the update, in training only."""
    roles: tuple[str, ...] = ("query", "key", "value", "ffn_input", "ffn_output")
    """Which projections are adapted, by role; the paper takes query, key, value, up and down."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("r", self.r, 1)
        require_share("dropout", self.dropout)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.HiraConfig:
        """Returns the configuration for this model."""
        return peft.HiraConfig(
            r=self.r, hira_dropout=self.dropout, target_modules=self.targets(model), task_type=task_type
        )


@dataclass(frozen=True)
class LoHa(OnProjections):
    """LoHa: W0 + (alpha / r) (B1 A1) * (B2 A2), the product elementwise, with all four matrices trained."""

    paper: ClassVar[str] = "Hyeon-Woo et al. 2021, arXiv:2108.06098; Yeh et al. 2023, arXiv:2309.14859"
    config_class: ClassVar[type[PeftConfig]] = peft.LoHaConfig
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # No paper fine-tunes such models with it; the range is LoRA's.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": _RATE, "method.r": Choices((2, 4, 8))}
    )
    """The learning rate and the rank."""

    r: int = 4
    """Rank of both factors; 4 has the parameters of LoRA at 8."""
    alpha: float = 4.0
    """The update is scaled by alpha / r."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("r", self.r, 1)
        require_positive("alpha", self.alpha)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.LoHaConfig:
        """Returns the configuration for this model."""
        return peft.LoHaConfig(r=self.r, alpha=self.alpha, target_modules=self.targets(model), task_type=task_type)


@dataclass(frozen=True)
class Road(OnProjections):
    """RoAd: rotates and scales pairs of a projection's outputs by trained angles and factors."""

    paper: ClassVar[str] = "Liao and Monz 2024, arXiv:2409.00119"
    acts_on: ClassVar[str] = "all projections"
    config_class: ClassVar[type[PeftConfig]] = peft.RoadConfig
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mix": "peft mixes its layers, but not the heads beside them, so that this is for models without a head"}
    )
    # The paper's rates are 1e-3 to 5e-3; angles start at 0 and factors at 1, so that steps are relative, as HUT's.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-1), "method.variant": Choices(("road_1", "road_2", "road_4"))}
    )
    """The learning rate and the variant."""

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    """Angles and factors: one pair for two outputs, one for each, or two for each."""
    roles: tuple[str, ...] = EVERY_PROJECTION
    """Which projections are adapted, by role; the paper takes all."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.RoadConfig:
        """Returns the configuration for this model.

        Raises:
            ValueError: a projection has an odd number of outputs.
        """
        targets = self.targets(model)
        sizes = {name: features(model.get_submodule(name))[1] for name in modules_named(model, targets)}
        # Which outputs are a pair depends on it and nothing else does; 64 where sizes allow, as in peft.
        group = math.gcd(64, *sizes.values())
        if group % 2:
            name = next(name for name, size in sizes.items() if size % 2)
            raise ValueError(f"{name} has {sizes[name]} outputs, which are no pairs: leave it out by roles")
        return peft.RoadConfig(variant=self.variant, group_size=group, target_modules=targets, task_type=task_type)


@dataclass(frozen=True)
class Beft(OnProjections):
    """BEFT: adds a trained bias to the value projection."""

    paper: ClassVar[str] = "Huang et al. 2025, arXiv:2509.15974"
    config_class: ClassVar[type[PeftConfig]] = peft.BeftConfig
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # As BitFit's, which trains all biases at 1e-4 to 1e-2; fewer take more.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 1e-1)})
    """The learning rate."""

    roles: tuple[str, ...] = ("value",)
    """Which projections have a bias added, by role."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.BeftConfig:
        """Returns the configuration for this model."""
        targets = self.targets(model)
        self._give_biases(model, targets)
        return peft.BeftConfig(target_modules=targets, task_type=task_type)

    def prepare(self, base: PreTrainedModel, config: PeftConfig) -> None:
        super().prepare(base, config)
        self._give_biases(base, list(config.target_modules))

    @staticmethod
    def _give_biases(model: nn.Module, names: Sequence[str]) -> None:
        """Gives projections without a bias one of zeros, as peft merges into a bias that is there."""
        for name in modules_named(model, names):
            linear = model.get_submodule(name)
            if isinstance(linear, nn.Linear) and linear.bias is None:
                weight = linear.weight
                bias = torch.zeros(linear.out_features, dtype=weight.dtype, device=weight.device)
                linear.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)
