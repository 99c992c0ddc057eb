"""The layers of the Hadamard adapter: an output projection whose input or output is adapted, and a norm that trains.

Paper's symbols and where they are: W is ``hadamard_weight``, b is ``hadamard_bias``. What training adds to a norm's own
weight and bias is in ``hadamard_norm_weight`` and ``hadamard_norm_bias``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hadamard_adapter.config import HadamardAdapterConfig
from hadamard_core.adapter_layer import NO_ADAPTER, AdapterLayer
from hadamard_core.functional import Slices, prefers_weight, scale_shift, scaled_linear
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.norm import TrainedNorm
from hadamard_core.orientation import weight_as_linear


class HadamardLayer(AdapterLayer):
    """What both layers are, for peft to know them by."""


class Adapters(NamedTuple):
    """What adapters do before and after a projection together: vectors, or matrices with a row for each adapter.

    Attributes:
        scale_in: W of ``position="context"``, (in_features,); None where there is none, as for the others.
        shift_in: b of ``position="context"``, (in_features,).
        scale_out: W of ``position="projection"``, (out_features,).
        shift_out: b of ``position="projection"``, (out_features,).
    """

    scale_in: Tensor | None
    shift_in: Tensor | None
    scale_out: Tensor | None
    shift_out: Tensor | None


class HadamardLinear(HadamardLayer, ScaledLinear):
    """``y = (x * W + b) W0^T + bias`` (``position="context"``), or ``(x W0^T + bias) * W + b`` (``"projection"``).

    For each adapter ``hadamard_weight`` and ``hadamard_bias`` hold W and b, (in_features,) before the projection and
    (out_features,) after it. Of several active adapters, scales multiply and shifts add up on either side.
    """

    adapter_layer_names = ("hadamard_weight", "hadamard_bias")
    other_param_names = (*ScaledLinear.other_param_names, "position")

    def prepare(self) -> None:
        super().prepare()
        self.position: dict[str, str] = {}

    def create_parameters(self, adapter_name: str, config: HadamardAdapterConfig, sizes: Sequence[int]) -> None:
        self.position[adapter_name] = config.position
        size = self.in_features if config.position == "context" else self.out_features
        spread = 0.0 if config.init_weights else 0.2
        if config.weight:
            self.hadamard_weight[adapter_name] = nn.Parameter(torch.ones(size) + spread * torch.randn(size))
        if config.bias:
            self.hadamard_bias[adapter_name] = nn.Parameter(spread * torch.randn(size))

    def _adapters(self, names: Sequence[str]) -> Adapters:
        # Past the attribute access of modules, which would take as long as the rest of a small layer.
        weights, biases = (self._modules[name]._parameters for name in self.adapter_layer_names)
        if len(names) == 1:
            own = weights.get(names[0]), biases.get(names[0])
            return Adapters(*own, None, None) if self.position[names[0]] == "context" else Adapters(None, None, *own)

        def over(values: dict[str, Tensor], position: str, combine) -> Tensor | None:
            given = [values[name] for name in names if name in values and self.position[name] == position]
            return reduce(combine, given) if given else None

        return Adapters(
            over(weights, "context", torch.mul),
            over(biases, "context", torch.add),
            over(weights, "projection", torch.mul),
            over(biases, "projection", torch.add),
        )

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        if self._by_weight(x, self.compute[adapter_names[0]]):
            vectors, _ = self.combined(adapter_names)
            base = self.get_base_layer()
            return scaled_linear(x, weight_as_linear(base), base.bias, *vectors, compute="weight")
        scale_in, shift_in, scale_out, shift_out = self._adapters(adapter_names)
        return scale_shift(self.base_layer(scale_shift(x, scale_in, shift_in)), scale_out, shift_out)

    def _by_weight(self, x: Tensor, compute: str) -> bool:
        """Whether the weight is scaled rather than activations.

        On a CPU the one pass over activations costs next to nothing beside the product, whatever their number.
        """
        if compute == "activation" or self.computes_itself():
            return False
        weight = self.get_base_layer().weight
        return compute == "weight" or (x.is_cuda and prefers_weight(x.numel() // x.shape[-1], weight))

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        found = [Adapters(None, None, None, None) if n == NO_ADAPTER else self._adapters([n]) for n in adapter_names]
        scale_in, shift_in, scale_out, shift_out = self._side_by_side(found)
        y = self.base_layer(scale_shift(x, scale_in, shift_in, index if scale_in is not shift_in else None))
        return scale_shift(y, scale_out, shift_out, index if scale_out is not shift_out else None)

    def _side_by_side(self, found: Sequence[Adapters]) -> Iterator[Tensor | None]:
        for values, fill in zip(zip(*found, strict=True), (1.0, 0.0, 1.0, 0.0), strict=True):
            like = next((value for value in values if value is not None), None)
            if like is None:
                yield None
            else:
                filler = torch.full_like(like, fill)
                yield torch.stack([filler if value is None else value for value in values])

    def vectors(self, adapter_name: str) -> list[Vectors]:
        return [self.combined([adapter_name])[0]]

    def combined(self, adapter_names: Sequence[str]) -> tuple[Vectors, Slices | None]:
        scale_in, shift_in, scale_out, shift_out = self._adapters(adapter_names)
        if self._original is not None:
            weight, bias, _ = self._original
        else:
            base = self.get_base_layer()
            weight, bias = self.get_base_weight() if self.quantization_backend else weight_as_linear(base), base.bias
        shift = shift_out
        if scale_out is not None and bias is not None:
            shift = _sum(shift, bias * (scale_out - 1))  # scaled_linear leaves the bias unscaled
        if shift_in is not None:
            through = linear(shift_in, weight.to(shift_in.dtype))
            shift = _sum(shift, through if scale_out is None else through * scale_out)
        return Vectors(scale_in, scale_out, shift), None


class HadamardNorm(HadamardLayer, TrainedNorm):
    """A norm of an adapted layer; ``hadamard_norm_weight`` and ``hadamard_norm_bias`` hold what training adds."""

    adapter_layer_names = ("hadamard_norm_weight", "hadamard_norm_bias")


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
