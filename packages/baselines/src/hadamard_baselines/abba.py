"""ABBA (Singhal, Ponkshe et al. 2025, arXiv:2505.14238): ``W = W0 + s (B1 A1) * (B2 A2)``, all four trained.

B1 is ``abba_B1`` (out_features, r1), A1 ``abba_A1`` (r1, in_features), B2 ``abba_B2`` (out_features, r2), A2
``abba_A2`` (r2, in_features). The elementwise product of two low-rank matrices is one of rank r1 r2, whose factors are
the Khatri-Rao products of theirs::

    (B1 A1) * (B2 A2) = up down      up[o, (k, l)] = B1[o, k] B2[o, l]      down[(k, l), i] = A1[k, i] A2[l, i]

so that nothing of the size of W0 is computed in training: autograd goes from ``up`` and ``down`` to the four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from hadamard_core.adapter_layer import AdapterLayer, require_finite
from hadamard_core.config import HadamardConfig, require_at_least
from hadamard_core.functional import low_rank_linear
from hadamard_core.functional.operators import cast, cast_for_autocast
from hadamard_core.layer import ScaledLinear
from hadamard_core.orientation import weight_as_linear
from hadamard_core.registration import peft_type, register
from hadamard_core.tuner import HadamardTuner

# More singular vectors than are used make the first ones of torch.svd_lowrank accurate.
_OVERSAMPLING = 8


@dataclass
class AbbaConfig(HadamardConfig):
    """Configuration of ABBA; further fields as in ``HadamardConfig``, ``compute`` without a meaning.

    Its start is the base model bit for bit: B1 A1 is the best approximation of W0 of rank r1, by its singular values,
    and B2 is zero. An adapter that is loaded for inference gets its values from the file alone.

    Args:
        r1: rank of the first factor. The paper has r1 = r2 = r / 2, which trains as many parameters as LoRA of rank r.
        r2: rank of the second factor.
        alpha: s. The authors' code multiplies the factors by sqrt(alpha1) and sqrt(alpha2), which it sets equal.

    Raises:
        ValueError: a rank below 1, an ``alpha`` that is not above 0, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("ABBA", "hadamard-baselines", "hadamard_baselines")

    r1: int = field(default=4, metadata={"help": "Rank of the first factor, which starts from W0."})
    r2: int = field(default=4, metadata={"help": "Rank of the second factor, which starts at zero."})
    alpha: float = field(default=8.0, metadata={"help": "What the product of the factors is multiplied by."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("abba")
        require_at_least(self, "r1", 1)
        require_at_least(self, "r2", 1)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha is {self.alpha!r} in AbbaConfig; it must be a finite number above 0.")


class AbbaLinear(ScaledLinear):
    """``y = x (W0 + s (B1 A1) * (B2 A2))^T + bias``.

    On slices of a fused projection A1 and A2 have a leading dimension, one of each for a slice, and B1 and B2 lay the
    slices' output features side by side. The updates of several active adapters add up.

    Of ``ScaledLinear`` it has what becomes of a projection when it is merged and unmerged, but no vectors.
    """

    adapter_layer_names = ("abba_B1", "abba_A1", "abba_B2", "abba_A2")
    other_param_names = (*ScaledLinear.other_param_names, "scaling")

    def prepare(self) -> None:
        super().prepare()
        self.scaling: dict[str, float] = {}

    @torch.no_grad()
    def create_parameters(self, adapter_name: str, config: AbbaConfig, sizes: Sequence[int]) -> None:
        self.scaling[adapter_name] = config.alpha
        slices = () if self.slices[adapter_name] is None else (len(sizes),)
        b1, b2 = (torch.zeros(sum(sizes), rank) for rank in (config.r1, config.r2))
        a1, a2 = (_kaiming_uniform(*slices, rank, self.in_features) for rank in (config.r1, config.r2))
        if not config.init_weights:
            b1, a1, b2, a2 = (0.25 * torch.randn_like(each) for each in (b1, a1, b2, a2))
        elif not (config.inference_mode or self.get_base_layer().weight.is_meta):
            by_slice = b1.split(sizes), a1.view(len(sizes), *a1.shape[-2:]), self._base_weights(adapter_name)
            for up, down, weight in zip(*by_slice, strict=True):
                _write_truncated_svd(weight, up, down)
        for container, values in zip(self.adapter_layer_names, (b1, a1, b2, a2), strict=True):
            getattr(self, container)[adapter_name] = nn.Parameter(values)

    def _base_weights(self, adapter_name: str) -> list[Tensor]:
        """W0, (out_features, in_features), of each adapted slice, also while adapters are merged."""
        if self._original is not None:
            weight = self._original.weight
        elif self.quantization_backend is not None:
            weight = self.get_base_weight()
        else:
            weight = weight_as_linear(self.get_base_layer())
        slices = self.slices[adapter_name]
        return [weight] if slices is None else [own.select(weight, 0) for own in slices]

    def _by_slice(self, adapter_name: str) -> list[list[Tensor]]:
        """B1, A1, B2 and A2 of each adapted slice, of a projection as a whole if it has none."""
        # Past the attribute access of modules, which would take as long as the rest of a small layer.
        values = [self._modules[name]._parameters[adapter_name] for name in self.adapter_layer_names]
        slices = self.slices[adapter_name]
        if slices is None:
            return [values]
        sizes = [own.size(self.out_features) for own in slices]
        return [list(each) for each in zip(*(v.split(sizes) if v.dim() == 2 else v for v in values), strict=True)]

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """``down`` (rank, in_features) and ``up`` (out_features, rank) of the update without s, differentiable.

        The rank is r1 r2 for each slice; rows of ``up`` that no slice has are zero.
        """
        factors = [_khatri_rao(*each) for each in self._by_slice(adapter_name)]
        slices = self.slices[adapter_name]
        if slices is None:
            return factors[0]
        rank, count, layout = factors[0][0].shape[0], len(slices), slices[0]
        shape = (layout.groups, self.out_features // layout.parts // layout.groups, count * rank)
        parts = [factors[0][1].new_zeros(shape)] * layout.parts
        for number, (own, (_, up)) in enumerate(zip(slices, factors, strict=True)):
            around = (number * rank, (count - 1 - number) * rank)
            parts[own.part] = nn.functional.pad(up, around).view(shape)
        return torch.cat([down for down, _ in factors]), torch.stack(parts, 1).flatten(0, 2)

    def _combined_factors(self, adapter_names: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        """``down``, ``up`` and s of several adapters: side by side, they are one of a larger rank."""
        if len(adapter_names) == 1:
            return *self.factors(adapter_names[0]), self.scaling[adapter_names[0]]
        downs, ups = zip(*(self.factors(name) for name in adapter_names), strict=True)
        scaled = [up * self.scaling[name] for name, up in zip(adapter_names, ups, strict=True)]
        return torch.cat(downs), torch.cat(scaled, 1), 1.0

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        down, up, scaling = self._combined_factors(adapter_names)
        if self.computes_itself():
            y, x = self.base_layer(x), cast_for_autocast(x)
            return y + scaling * linear(linear(x, cast(down, x.dtype)), cast(up, x.dtype)).to(y.dtype)
        base = self.get_base_layer()
        # Not composed, so that what was trained gives the same bits when it is frozen.
        return low_rank_linear(x, weight_as_linear(base), base.bias, down, up, scaling, compute="low_rank")

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        return AdapterLayer.adapted_mixed(self, x, adapter_names, index)  # there are no vectors to lay side by side

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        names = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        original = self._original or self._keep_original()
        with torch.no_grad():
            weight = original.weight.to(torch.promote_types(original.weight.dtype, torch.float32), copy=True)
            for name in (*self.merged_adapters, *names):
                down, up = self.factors(name)
                weight.addmm_(up.to(weight), down.to(weight), alpha=self.scaling[name])
            weight = weight.to(original.weight.dtype)
        if safe_merge:
            require_finite(weight, "weight", names)
        self._original = original
        self.set_base_weight(weight.T if isinstance(self.get_base_layer(), Conv1D) else weight)
        self.merged_adapters.extend(names)


class AbbaModel(HadamardTuner):
    """Adapts projections of a model with ABBA; made by ``peft.get_peft_model(model, AbbaConfig(...))``."""

    prefix = "abba_"
    tuner_layer_cls = AbbaLinear


def _khatri_rao(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> tuple[Tensor, Tensor]:
    """``down`` (r1 r2, in_features) and ``up`` (out_features, r1 r2)."""
    return (a1[:, None] * a2).flatten(0, 1), (b1[:, :, None] * b2[:, None]).flatten(1)


def _kaiming_uniform(*shape: int) -> Tensor:
    """(..., rank, in_features), as ``torch.nn.init.kaiming_uniform_`` by default, which the authors use."""
    return torch.empty(shape).uniform_(-1, 1) * math.sqrt(6 / shape[-1])


def _write_truncated_svd(weight: Tensor, up: Tensor, down: Tensor) -> None:
    """Writes ``U sqrt(S)`` to ``up`` (out_features, rank) and ``sqrt(S) V^T`` to ``down`` (rank, in_features).

    Where the weight has fewer singular values than ``rank``, the last columns and rows stay as they are.
    """
    rank = min(up.shape[1], *weight.shape)
    u, s, v = torch.svd_lowrank(weight.float(), q=min(rank + _OVERSAMPLING, *weight.shape), niter=10)
    root = s[:rank].sqrt()
    up[:, :rank] = u[:, :rank] * root
    down[:rank] = root[:, None] * v[:, :rank].T


register("abba", AbbaConfig, AbbaModel)
