"""LN tuning as a method of the harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import peft
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hadamard_baselines.methods.base import NO_MIXED_BATCHES, unwrap_heads
from hadamard_core.method import PeftMethod
from hadamard_core.norm import is_norm
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class LnTuning(PeftMethod):
    """LN tuning: the norms of the model are trained, with peft's copies of them."""

    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    acts_on: ClassVar[str] = "all norms"
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        NO_MIXED_BATCHES | {"bf16": "peft trains copies of the norms, in the dtype of the model"}
    )
    # The paper's rates go up to 1e-3 on large models; norms alone are few numbers near 1, which take more.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType({"train.learning_rate": LogUniform(1e-4, 3e-2)})
    """The learning rate."""

    target_modules: tuple[str, ...] | None = None
    """Names or suffixes of the norms to train, by peft's rules; all of the backbone's if not given."""

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.LNTuningConfig:
        """Returns the configuration for this model.

        Raises:
            ValueError: there is no norm in the model's backbone.
        """
        names = list(self.target_modules or ())
        if not names:
            inside = f"{model.base_model_prefix}." if model.base_model is not model else ""
            names = [name for name, module in model.named_modules() if name.startswith(inside) and is_norm(module)]
        if not names:
            raise ValueError(f"a {type(model).__name__} has no norms with weights of their own: give another method")
        return peft.LNTuningConfig(target_modules=names, task_type=task_type)

    def merge(self, model: PeftModel) -> nn.Module:
        unwrap_heads(model)
        return super().merge(model)
