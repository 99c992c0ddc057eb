"""SSF (Lian, Zhou, Feng and Wang 2022, arXiv:2210.08565): ``y' = gamma * y + beta`` after every operation.

y is the output of a projection or norm, with its bias; gamma is ``ssf_scale`` and beta ``ssf_bias``, a number for each
feature. The paper's operations are those with weights: here all projections and norms of the backbone; embeddings, of
which only rows are looked up, are left out, while the norm of their sum is not. All of it merges into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hadamard_baselines.everywhere import EverywhereConfig, EverywhereModel
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.functional import Slices
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.norm import TrainedNorm
from hadamard_core.registration import peft_type, register

INITS = ("identity", "normal")


@dataclass
class SsfConfig(EverywhereConfig):
    """Configuration of SSF; further fields as in ``EverywhereConfig`` and ``HadamardConfig``.

    Args:
        init: ``"identity"`` starts with gamma of one and beta of zero, so that the adapted model is the base model bit
            for bit; ``"normal"`` as the paper does, with a standard deviation of 0.02 around these.

    Raises:
        ValueError: an unknown ``init``, or what ``HadamardConfig`` raises.
    """

    package: ClassVar[tuple[str, str, str]] = ("SSF", "hadamard-baselines", "hadamard_baselines")

    init: str = field(
        default="identity",
        metadata={"help": "'identity': start as the base model; 'normal': 0.02 around it, as in the paper."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("ssf")
        if self.init not in INITS:
            raise ValueError(f"init is {self.init!r} in SsfConfig; it must be one of {', '.join(map(repr, INITS))}.")

    @property
    def spread(self) -> float:
        """The standard deviation of gamma and beta at the start."""
        if not self.init_weights:
            return 0.2
        return 0.02 if self.init == "normal" else 0.0


class SsfLayer(AdapterLayer):
    """What both layers are, for peft to know them by."""

    adapter_layer_names = ("ssf_scale", "ssf_bias")


class SsfLinear(SsfLayer, ScaledLinear):
    """``y = gamma * (x W^T + bias) + beta``; gamma and beta are (out_features,), slices side by side.

    Of several active adapters, the gammas multiply and the betas add up.
    """

    def create_parameters(self, adapter_name: str, config: SsfConfig, sizes: Sequence[int]) -> None:
        self.ssf_scale[adapter_name] = _around(1.0, sum(sizes), config)
        self.ssf_bias[adapter_name] = _around(0.0, sum(sizes), config)

    def vectors(self, adapter_name: str) -> list[Vectors]:
        """gamma and beta of each slice; :meth:`combined` adds what gamma does to the projection's own bias."""
        gamma, beta = self.ssf_scale[adapter_name], self.ssf_bias[adapter_name]
        slices = self.slices[adapter_name]
        if slices is None:
            return [Vectors(None, gamma, beta)]
        sizes = [own.size(self.out_features) for own in slices]
        return [Vectors(None, *each) for each in zip(gamma.split(sizes), beta.split(sizes), strict=True)]

    def combined(self, adapter_names: Sequence[str]) -> tuple[Vectors, Slices | None]:
        vectors, slices = super().combined(adapter_names)
        # While adapters are merged, the bias of the layer is no longer that of the base model.
        bias = self.get_base_layer().bias if self._original is None else self._original.bias
        if bias is not None:  # scaled_linear leaves it unscaled
            vectors = vectors._replace(shift=vectors.shift + bias * (vectors.scale_out - 1))
        return vectors, slices


class SsfNorm(SsfLayer, TrainedNorm):
    """``gamma * norm(x) + beta``, in the norm's own weight and bias; gamma and beta are (features,).

    A norm without a bias (RMSNorm) has gamma alone: what beta would add is, after the projections that take the
    norm's output, the constant W beta, which their own beta can be. Only after a model's last norm it is missing.
    """

    def prepare(self) -> None:
        super().prepare()
        self._weight_of_one = _weight_of_one(self.get_base_layer())

    def add_adapter(self, adapter_name: str, config: SsfConfig) -> None:
        base = self.get_base_layer()
        self.ssf_scale[adapter_name] = _around(1.0, len(base.weight), config)
        if base._parameters.get("bias") is not None:
            self.ssf_bias[adapter_name] = _around(0.0, len(base.weight), config)

    def _values(self, adapter_names: Sequence[str]):
        values = super()._values(())
        if not adapter_names:
            return values
        gamma = reduce(torch.mul, (self.ssf_scale[name] for name in adapter_names))
        # One that multiplies by 1 + weight multiplies by gamma * (1 + weight).
        weight = values.weight * gamma + (1 - self._weight_of_one) * (gamma - 1)
        if values.bias is None:
            return values._replace(weight=weight.to(values.weight.dtype))
        bias = values.bias * gamma + sum(self.ssf_bias[name] for name in adapter_names)
        return values._replace(weight=weight.to(values.weight.dtype), bias=bias.to(values.bias.dtype))


class SsfModel(EverywhereModel):
    """Scales and shifts the outputs of projections and norms; made by ``get_peft_model(model, SsfConfig(...))``."""

    prefix = "ssf_"
    tuner_layer_cls = SsfLayer
    linear_class = SsfLinear
    norm_class = SsfNorm


def _around(center: float, size: int, config: SsfConfig) -> nn.Parameter:
    values = torch.full((size,), center)
    return nn.Parameter(values + config.spread * torch.randn(size) if config.spread else values)


@torch.no_grad()
def _weight_of_one(norm: nn.Module) -> int:
    """The weight with which a norm multiplies by one: 1, or 0 in a norm that multiplies by 1 + weight (Gemma).

    Raises:
        ValueError: the norm does neither.
    """
    if type(norm) is nn.LayerNorm:
        return 1
    # On the CPU, also where the model is on another device or has no values at all.
    x = torch.linspace(-1, 2, len(norm.weight), device="cpu")

    def call(weight: float) -> Tensor:
        given = {name: torch.zeros(len(x), device="cpu") for name, _ in norm.named_parameters()}
        return functional_call(norm, given | {"weight": torch.full((len(x),), weight, device="cpu")}, (x,))

    at_zero, at_one, at_three = call(0.0), call(1.0), call(3.0)
    if not at_zero.any() and torch.allclose(at_three, 3 * at_one):
        return 1
    if torch.allclose(at_one, 2 * at_zero) and torch.allclose(at_three, 4 * at_zero):
        return 0
    raise ValueError(
        f"A {type(norm).__name__} multiplies neither by its weight nor by 1 + its weight, so that SSF cannot scale its "
        "output; leave it out with exclude_modules."
    )


register("ssf", SsfConfig, SsfModel)
