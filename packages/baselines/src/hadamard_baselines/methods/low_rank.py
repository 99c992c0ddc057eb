"""LoRA and VeRA as methods of the comparison harness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from peft import PeftConfig
from transformers import PreTrainedModel

from hadamard_baselines.lora import LoraConfig
from hadamard_baselines.methods.base import (
    NO_MIXED_BATCHES,
    OnProjections,
    require_at_least,
    require_positive,
    require_share,
)
from hadamard_baselines.vera import VeraConfig
from hadamard_core.search_space import Choices, Domain, LogUniform


class _LowRank(OnProjections):
    linear_only = False  # both know Conv1D

    r: int
    dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("r", self.r, 1)
        require_share("dropout", self.dropout)


@dataclass(frozen=True)
class Lora(_LowRank):
    """LoRA: W + (alpha / r) B A with B and A trained. Parameters and files are those of peft's LoRA.

    On GPT-2, query, key and value are one fused projection, of which query and value are adapted apart, as in the LoRA
    paper's own code; peft's LoRA adapts all of it with one shared A. The parameter counts are equal, the functions are
    not.
    """

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    config_class: ClassVar[type[PeftConfig]] = LoraConfig
    # The paper's rates are 2e-4 to 4e-4 on GLUE and E2E; small models on small budgets take 1e-3 to 2e-3. The search of
    # the rate also makes up for alpha / r, which falls as r grows.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-2), "method.r": Choices((1, 2, 4, 8, 16))}
    )
    """The learning rate and the rank."""

    r: int = 8
    """Rank of the update."""
    alpha: float = 16.0
    """The update is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the input of A, in training only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("alpha", self.alpha)

    def peft_config(self, model: PreTrainedModel, task_type: str) -> LoraConfig:
        """Returns the configuration for this model."""
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets(model),
            task_type=task_type,
        )


@dataclass(frozen=True)
class Vera(_LowRank):
    """VeRA: W + diag(b) B diag(d) A with b and d trained, A and B random and shared. Files are those of peft's VeRA."""

    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    config_class: ClassVar[type[PeftConfig]] = VeraConfig
    cannot: ClassVar[Mapping[str, str]] = NO_MIXED_BATCHES
    # The paper's rates are 1e-2 to 3e-2 on GLUE and 1e-1 on E2E, with a lower one for the head, which shares it here;
    # its ranks are 256 and 1024.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-1), "method.r": Choices((64, 256, 1024))}
    )
    """The learning rate and the rank, of which d has one entry each."""

    r: int = 256
    """Rows of A, columns of B."""
    d_initial: float = 0.1
    """What d starts at; b starts at zero."""
    dropout: float = 0.0
    """Dropout on the input of A, in training only."""
    save_projection: bool = True
    """Save A and B too, 4 r (largest in_features + largest out_features) bytes; if not, they are drawn again."""
    projection_prng_key: int = 0
    """The seed of A and B, which do not depend on the seed of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.d_initial):
            raise ValueError(f"--method.d-initial is {self.d_initial}: it must be a finite number")

    def peft_config(self, model: PreTrainedModel, task_type: str) -> VeraConfig:
        """Returns the configuration for this model."""
        return VeraConfig(
            r=self.r,
            d_initial=self.d_initial,
            vera_dropout=self.dropout,
            save_projection=self.save_projection,
            projection_prng_key=self.projection_prng_key,
            target_modules=self.targets(model),
            task_type=task_type,
        )
