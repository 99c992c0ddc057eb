"""AdaLoRA as a method of the harness: peft's layers and rank allocator, and what training has to do for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.adalora import AdaLoraLayer, RankAllocator
from torch import Tensor, nn
from transformers import PreTrainedModel

from hadamard_baselines.methods.base import (
    EVERY_PROJECTION,
    OnProjections,
    require_at_least,
    require_positive,
    require_share,
)
from hadamard_core.search_space import Choices, Domain, LogUniform

# The allocator's running means, which decide what is pruned later.
_STATES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class AdaLora(OnProjections):
    """AdaLoRA: W0 + P diag(E) Q with P, E and Q trained; ranks move to where they matter while training goes on.

    The budget is the sum of ranks. It stays at its start for ``warmup`` of the steps, falls as a cubic to its target,
    and stays there for ``final`` of the steps.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    acts_on: ClassVar[str] = "all projections"
    config_class: ClassVar[type[PeftConfig]] = peft.AdaLoraConfig
    packable: ClassVar[bool] = False
    cannot: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("several", "mix"), "peft's rank allocator looks after one adapter that trains")
    )
    # The paper's rates on GLUE are 5e-4 to 2.2e-3, and its target ranks 2 to 8.
    search_space: ClassVar[Mapping[str, Domain]] = MappingProxyType(
        {"train.learning_rate": LogUniform(1e-4, 1e-2), "method.target_r": Choices((2, 4, 8))}
    )
    """The learning rate and the rank that is left on average."""

    target_r: int = 8
    """The rank that projections have on average at the end."""
    init_r: int = 12
    """The rank of each projection at the start; the paper takes 1.5 times the target."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank, the rank being the one at the start."""
    orthogonality: float = 0.5
    """Weight of the penalty that keeps P and Q orthogonal; the paper takes 0.1 to 0.5."""
    warmup: float = 0.1
    """Share of the steps before ranks fall."""
    final: float = 0.3
    """Share of the steps after which no rank changes any more, counted from the end."""
    every: int = 10
    """Steps between two changes of ranks."""
    dropout: float = 0.0
    """Dropout on the input of Q, in training only."""
    roles: tuple[str, ...] = EVERY_PROJECTION
    """Which projections are adapted, by role; the paper takes all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("target-r", self.target_r, 1)
        require_at_least("init-r", self.init_r, self.target_r + 1)
        require_at_least("every", self.every, 1)
        require_at_least("orthogonality", self.orthogonality, 0)
        require_positive("alpha", self.alpha)
        for name in ("warmup", "final", "dropout"):
            require_share(name, getattr(self, name))
        if self.warmup + self.final >= 1:
            raise ValueError(
                f"--method.warmup {self.warmup} and --method.final {self.final} leave no steps in which ranks fall: "
                "their sum must be below 1"
            )

    def peft_config(self, model: PreTrainedModel, task_type: str) -> peft.AdaLoraConfig:
        """Returns the configuration for this model; :meth:`begin_training` sets its numbers of steps."""
        return peft.AdaLoraConfig(
            init_r=self.init_r,
            target_r=self.target_r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            orth_reg_weight=self.orthogonality,
            deltaT=self.every,
            total_step=1,
            target_modules=self.targets(model),
            task_type=task_type,
        )

    def apply(self, model: PreTrainedModel, task_type: str, modules_to_save: Sequence[str] = ()) -> PeftModel:
        adapted = super().apply(model, task_type, modules_to_save)
        # peft 0.21 lets the rank that updates are divided by train as well, and does not save it
        for layer in adapted.modules():
            if isinstance(layer, AdaLoraLayer):
                layer.ranknum.requires_grad_(False)
        return adapted

    def begin_training(self, model: nn.Module, steps: int) -> None:
        config = model.peft_config[model.active_adapter]
        config.total_step = steps
        config.tinit, config.tfinal = int(self.warmup * steps), int(self.final * steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """The mean over all P and Q of the Frobenius norm of their Gram matrix less the identity, weighted."""
        name = model.active_adapter
        distances = []
        for layer in model.modules():
            if isinstance(layer, AdaLoraLayer) and name in layer.lora_A:
                for rows in (layer.lora_A[name], layer.lora_B[name].T):
                    gram = rows @ rows.T
                    distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.orthogonality * torch.stack(distances).mean() if distances and self.orthogonality else None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Updates importances and, when it is time, sets the singular values to zero that are not kept."""
        config, allocator = model.peft_config[model.active_adapter], model.base_model.rankallocator
        if step == config.total_step - config.tfinal and not allocator.exp_avg_ipt:
            allocator.update_ipt(model.base_model.model)  # so few steps that nothing was seen before
        model.base_model.update_and_allocate(step)

    def save(self, model: PeftModel, directory: Path) -> None:
        # peft leaves out what the latest allocation pruned. The values may be of an earlier step, so they say it here.
        name = model.active_adapter
        parameters = model.base_model.model.named_parameters()
        singular_values = {key: value for key, value in parameters if f"lora_E.{name}" in key}
        kept = {key: (value != 0).view(-1).tolist() for key, value in singular_values.items()}
        model.peft_config[name].rank_pattern = kept
        super().save(model, directory)

    def load(self, base: PreTrainedModel, directory: Path) -> PeftModel:
        # peft makes new parameters of the ranks that are left, and these would train
        return super().load(base, directory).requires_grad_(False)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The allocator's running means, and which singular values are kept once that is settled."""
        allocator: RankAllocator = model.base_model.rankallocator
        state = {f"{kind}.{name}": tensor for kind in _STATES for name, tensor in getattr(allocator, kind).items()}
        pattern = model.peft_config[model.active_adapter].rank_pattern or {}
        return state | {f"kept.{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def restore_training_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        allocator: RankAllocator = model.base_model.rankallocator
        allocator.reset_ipt()
        pattern = {}
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "kept":
                pattern[name] = tensor.tolist()
            else:
                getattr(allocator, kind)[name] = tensor
        model.peft_config[model.active_adapter].rank_pattern = pattern or None
