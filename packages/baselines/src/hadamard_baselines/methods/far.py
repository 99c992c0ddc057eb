"""FAR as a method of the comparison harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hadamard_baselines.changes import changes_of
from hadamard_baselines.far import FEED_FORWARD, FarConfig, learners, prime
from hadamard_baselines.sparse import adapted_modules
from hadamard_core.method import PeftMethod, Stage
from hadamard_core.search_space import Domain, LogUniform


@dataclass(frozen=True)
class Far(PeftMethod):
    """FAR: trains the nodes of the feed-forward that change most in a short priming of all of them.

    Nodes that are not kept return to their pretrained values, which is our choice where the paper says nothing, as is
    that attention, norms and embeddings are frozen.
    """

    paper: ClassVar[str] = "Vucetic et al. 2022, arXiv:2205.01541"
    acts_on: ClassVar[str] = "nodes of the feed-forwards"
    packable: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("stage1", "all nodes of the feed-forward, to find those that learn, and the head"),
        Stage("stage2", "the nodes that learned most, and the head"),
    )
    # Single weights move, as in full fine-tuning, whose rates these are.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-5, 1e-3), "stage1.learning_rate": LogUniform(1e-5, 1e-3)}
    )
    """The learning rates of the learners, and of all nodes before."""

    retain: float = 0.1
    """The share of the nodes of each projection that are learners."""
    roles: tuple[str, ...] = FEED_FORWARD
    """Which projections have nodes, by role; of the default those that the model has."""
    target_modules: tuple[str, ...] | None = None
    """Names of the projections, by peft's rules, in place of roles."""

    def __post_init__(self) -> None:
        if not 0 < self.retain <= 1:
            raise ValueError(f"--method.retain is {self.retain}: it must be above 0 and at most 1")

    def peft_config(self, model: PreTrainedModel, task_type: str) -> FarConfig:
        return FarConfig(
            task_type=task_type,
            retain=self.retain,
            roles=self.roles,
            target_modules=None if self.target_modules is None else list(self.target_modules),
        )

    def enter(
        self, stage: str, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()
    ) -> nn.Module:
        prime(model, adapted_modules(model, self.peft_config(model, task_type)))
        for name in modules_to_save:
            model.get_submodule(name).requires_grad_(True)
        return model

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        found = learners(model, self.retain) if any(changes_of(model)) else None
        adapted = super().apply(model, task_type, modules_to_save)
        if found is not None:
            adapted.base_model.place(found)
        return adapted
