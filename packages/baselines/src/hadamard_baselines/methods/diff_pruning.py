"""Diff pruning as a method of the comparison harness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_baselines.changes import changes_of
from hadamard_baselines.diff_pruning import DiffPruningConfig, expected_nonzero, largest, relax
from hadamard_baselines.sparse import adapted_modules
from hadamard_core.method import PeftMethod, Stage
from hadamard_core.search_space import Domain, LogUniform
from hadamard_core.targets import ROLES


@dataclass(frozen=True)
class DiffPruning(PeftMethod):
    """Diff pruning: a difference of all weights, sparse by an L0 penalty, then a fixed share of it trained alone.

    The paper's difference covers embeddings too; here it covers projections and norms of the layers.
    """

    paper: ClassVar[str] = "Guo, Rush, Kim 2021, arXiv:2012.07463"
    acts_on: ClassVar[str] = "single weights of all projections and norms"
    packable: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("stage1", "a difference of every weight and its gates, with a penalty on open gates, and the head"),
        Stage("stage2", "the largest values of the difference, and the head"),
    )
    # Single weights move, as in full fine-tuning, whose rates these are; the paper's code has 1e-5.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-5, 1e-3), "stage1.learning_rate": LogUniform(1e-5, 1e-3)}
    )
    """The learning rates of the values that are kept, and of the difference and its gates before."""

    sparsity: float = 0.005
    """The share of the adapted weights that differ in the end."""
    penalty_weight: float = 1.25e-7
    """Lambda: the loss gets so much for each value whose gate is expected to be open."""
    structured: bool = True
    """A gate of each weight matrix and bias vector besides those of single values."""
    alpha_speed: float = 1000.0
    """The learning rate of alpha, by which gates close, is so many times stage 1's: 0.1, the paper's, at 1e-4. The
    paper's ratio is 10,000, at 1e-5."""
    roles: tuple[str, ...] = ROLES
    """Which projections and norms differ, by role; of the default those that the model has."""
    target_modules: tuple[str, ...] | None = None
    """Names of the modules to adapt, by peft's rules, in place of roles."""

    def __post_init__(self) -> None:
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"--method.sparsity is {self.sparsity}: it must be above 0 and at most 1")
        if not (math.isfinite(self.penalty_weight) and self.penalty_weight >= 0):
            raise ValueError(f"--method.penalty-weight is {self.penalty_weight}: it must be at least 0")
        if not (math.isfinite(self.alpha_speed) and self.alpha_speed > 0):
            raise ValueError(f"--method.alpha-speed is {self.alpha_speed}: it must be above 0")

    def peft_config(self, model: PreTrainedModel, task_type: str) -> DiffPruningConfig:
        return DiffPruningConfig(
            task_type=task_type,
            sparsity=self.sparsity,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
        )

    def enter(
        self, stage: str, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()
    ) -> nn.Module:
        config = self.peft_config(model, task_type)
        relax(model, adapted_modules(model, config), self.structured, self.alpha_speed)
        for name in modules_to_save:
            model.get_submodule(name).requires_grad_(True)
        return model

    def penalty(self, model: nn.Module) -> Tensor | None:
        count = expected_nonzero(model)
        return None if count is None else self.penalty_weight * count

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        found = largest(model, self.sparsity) if any(changes_of(model)) else None
        adapted = super().apply(model, task_type, modules_to_save)
        if found is not None:
            adapted.base_model.place(found)
        return adapted
