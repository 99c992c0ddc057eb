"""The layer that all methods share which scale and shift a frozen projection.

A method says which vectors it has (:meth:`ScaledLinear.vectors`) and which parameters they come from
(:meth:`ScaledLinear.create_parameters`); everything peft expects of a layer is here.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_core.config import HadamardConfig
from hadamard_core.functional import prefers_weight, rows_of, scaled_linear, scaled_weight
from hadamard_core.orientation import OutputSlice, features, weight_as_linear


class Vectors(NamedTuple):
    """What an adapter does to one projection, or to one slice of a fused one; None where it does nothing.

    Attributes:
        scale_in: (in_features,).
        scale_out: (out_features of the slice,).
        shift: (out_features of the slice,).
    """

    scale_in: Tensor | None = None
    scale_out: Tensor | None = None
    shift: Tensor | None = None


class ScaledLinear(nn.Module, BaseTunerLayer):
    """A frozen projection whose input and output are scaled and shifted: ``scaled_linear`` as a peft layer.

    Several active adapters apply together: their scales multiply and their shifts add up, so that their order does not
    matter and merging them one after another gives the same weights as merging them at once.

    Merging multiplies in the adapter's precision and casts once. The original weight and bias are kept as long as
    something is merged, and unmerging puts them back bit for bit. Where the projection has no bias and an adapter has a
    shift, merging gives it one.

    Subclasses name their parameter containers in ``adapter_layer_names``, with the prefix of their tuner; one
    ``nn.ParameterDict`` is made for each.

    Args:
        base_layer: ``nn.Linear``, ``Conv1D``, or a quantised layer that peft can dequantise.
        adapter_name: the first adapter.
        config: its config.
        slices: the slices of a fused projection to adapt; None for the whole.
    """

    # What peft empties, beside the parameters, when an adapter is deleted.
    other_param_names = ("slices", "compute")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: HadamardConfig,
        slices: Sequence[OutputSlice] | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.in_features, self.out_features = features(self.get_base_layer())
        self.slices: dict[str, tuple[OutputSlice, ...] | None] = {}
        self.compute: dict[str, str] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._original: _Original | None = None
        self.update_layer(adapter_name, config, slices)

    def update_layer(
        self, adapter_name: str, config: HadamardConfig, slices: Sequence[OutputSlice] | None = None
    ) -> None:
        """Adds an adapter, or replaces the one of this name."""
        self.slices[adapter_name] = None if slices is None else tuple(slices)
        self.compute[adapter_name] = config.compute
        for name in self.adapter_layer_names:
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        sizes = [self.out_features] if slices is None else [s.size(self.out_features) for s in slices]
        self.create_parameters(adapter_name, config, sizes)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Moves an adapter to a device, that of the base layer if None, and leaves its dtype alone.

        peft casts to the dtype of the base layer here and back to fp32 later, in most of its ways to load. A scale of
        1.001 does not survive bf16, which has no number between 1 and 1.0078.
        """
        device = self.get_base_layer().weight.device if device is None else device
        for name in self.adapter_layer_names:
            container = getattr(self, name)
            if adapter_name in container and not container[adapter_name].is_meta:
                container[adapter_name] = container[adapter_name].to(device)

    def cast_adapter_to_base_layer(self, adapter_name: str) -> None:
        """Casts an adapter to the dtype of the base layer: what ``autocast_adapter_dtype=False`` of peft asks for."""
        super()._move_adapter_to_device_of_base_layer(adapter_name)

    def create_parameters(self, adapter_name: str, config: HadamardConfig, sizes: Sequence[int]) -> None:
        """Creates the parameters of an adapter.

        Args:
            sizes: the number of output features of each adapted slice; one number for a projection that is not fused.
        """
        raise NotImplementedError

    def vectors(self, adapter_name: str) -> list[Vectors]:
        """The adapter's vectors, differentiable with respect to its parameters: one item for each adapted slice."""
        raise NotImplementedError

    def _own_adapters(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.slices]

    def _combine(self, adapter_names: Sequence[str]) -> tuple[Vectors, Tensor | None]:
        """The vectors of several adapters together, over all output features.

        Returns:
            the vectors, with ``scale_in`` of shape (parts, in_features) where slices are adapted, and then for each
            output feature its part (-1: none), else None.
        """
        if all(self.slices[name] is None for name in adapter_names):
            return reduce(_compose, (self.vectors(name)[0] for name in adapter_names)), None
        by_slice: dict[OutputSlice, Vectors] = {}
        whole = OutputSlice(0, 1)
        for name in adapter_names:
            for own, vectors in zip(self.slices[name] or (whole,), self.vectors(name), strict=True):
                by_slice[own] = _compose(by_slice[own], vectors) if own in by_slice else vectors
        if whole in by_slice and len(by_slice) > 1:
            raise ValueError(
                f"Of the active adapters ({', '.join(adapter_names)}) some adapt slices of a fused projection and "
                "others all of it; activate or merge them one at a time."
            )
        return self._spread(by_slice)

    def _spread(self, by_slice: dict[OutputSlice, Vectors]) -> tuple[Vectors, Tensor | None]:
        """Lays the vectors of slices out over all output features: ones and zeros where no slice is adapted."""
        weight = self.get_base_layer().weight
        parts = torch.full((self.out_features,), -1, device=weight.device)
        indices = [own.index(self.out_features).to(weight.device) for own in by_slice]
        for part, index in enumerate(indices):
            parts[index] = part

        def spread(name: str, fill: float) -> Tensor | None:
            vectors = [getattr(v, name) for v in by_slice.values()]
            if all(v is None for v in vectors):
                return None
            like = next(v for v in vectors if v is not None)
            full = like.new_full((self.out_features,), fill)
            for index, vector in zip(indices, vectors, strict=True):
                if vector is not None:
                    full = full.index_copy(0, index, vector)
            return full

        scales_in = [v.scale_in for v in by_slice.values()]
        if all(scale is None for scale in scales_in):
            return Vectors(None, spread("scale_out", 1.0), spread("shift", 0.0)), None
        like = next(scale for scale in scales_in if scale is not None)
        scale_in = torch.stack([torch.ones_like(like) if scale is None else scale for scale in scales_in])
        return Vectors(scale_in, spread("scale_out", 1.0), spread("shift", 0.0)), parts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = self._own_adapters(self.active_adapters)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged or not active:
            return self.base_layer(x, *args, **kwargs)
        vectors, parts = self._combine(active)
        # All adapters compute the same function either way; the first one's wish is as good as any.
        compute = self.compute[active[0]]
        if self._calls_base_layer(x, vectors.scale_in, parts, compute):
            return self._around_base_layer(x, vectors, parts)
        base = self.get_base_layer()
        return scaled_linear(x, weight_as_linear(base), base.bias, *vectors, parts=parts, compute=compute)

    def _calls_base_layer(self, x: Tensor, scale_in: Tensor | None, parts: Tensor | None, compute: str) -> bool:
        """Whether the product is left to the base layer rather than to ``scaled_linear``.

        Its product is its own affair where it is quantised or somebody has hooked or replaced its call, as accelerate
        does to move weights. With parts in the activation way, each part has its own product of the whole, which for
        few tokens costs less than scaling the weight.
        """
        base = self.get_base_layer()
        hooked = base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base)
        if self.quantization_backend is not None or hooked:
            return True
        if parts is None or compute == "weight":
            return False
        tokens = (len(scale_in) + 1) * math.prod(x.shape[:-1])
        return compute == "activation" or not prefers_weight(tokens, weight_as_linear(base))

    def _around_base_layer(self, x: Tensor, vectors: Vectors, parts: Tensor | None) -> Tensor:
        """The activation way around calls of the base layer."""
        scale_in, scale_out, shift = vectors
        bias = self.get_base_layer().bias
        if parts is None:
            y = self.base_layer(x if scale_in is None else (x * scale_in).to(x.dtype))
        else:
            y = self.base_layer(x)
            for part, scale in enumerate(scale_in):
                y = torch.where(parts == part, self.base_layer((x * scale).to(x.dtype)), y)
        scaled = y if scale_out is None else y * scale_out
        if scale_out is not None and bias is not None:
            scaled = scaled + bias * (1 - scale_out)
        return (scaled if shift is None else scaled + shift).to(y.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds adapters into the base layer.

        Args:
            safe_merge: check the merged values first, and leave the layer as it is if one is not finite.
            adapter_names: the active ones if None.

        Raises:
            ValueError: with ``safe_merge``, a merged value is not finite.
        """
        names = self._own_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        base = self.get_base_layer()
        original = self._original or self._keep_original()
        with torch.no_grad():
            vectors, parts = self._combine([*self.merged_adapters, *names])
            weight = scaled_weight(original.weight, rows_of(vectors.scale_in, parts), vectors.scale_out)
            bias = original.bias
            if vectors.shift is not None:
                bias = (vectors.shift if bias is None else bias + vectors.shift).to(weight.dtype)
        if safe_merge:
            for kind, values in (("weight", weight), ("bias", bias)):
                if values is not None and not torch.isfinite(values).all():
                    raise ValueError(
                        f"NaNs detected in the merged {kind}: the adapter {', '.join(names)} seems to be broken; load "
                        "it anew, or merge without safe_merge to see the values."
                    )
        if bias is not None and original.bias is None:
            warnings.warn(
                "Merging gives a bias to layers that had none, because the adapter has a shift. The model in memory is "
                "exact, but a class that has no such biases would drop them on save_pretrained and from_pretrained.",
                stacklevel=2,
            )
        self._original = original
        if self.quantization_backend is not None:
            self.set_base_weight(weight)
        else:
            _set_data(base, weight)
        _set_bias(self.get_base_layer(), bias, weight)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the original weight and bias back, bit for bit; all merged adapters are unmerged."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self._original.quantized is not None:
            self.base_layer = self._original.quantized
        else:
            _set_data(self.get_base_layer(), self._original.weight)
            _set_bias(self.get_base_layer(), self._original.bias, self._original.weight)
        self._original = None
        self.merged_adapters.clear()

    def _keep_original(self) -> _Original:
        base = self.get_base_layer()
        bias = None if base.bias is None else base.bias.detach()
        if self.quantization_backend is None:
            return _Original(weight_as_linear(base).detach(), bias, None)
        # Quantising anew what was dequantised does not give the same bits, so that the whole layer is kept.
        return _Original(self.get_base_weight(), bias, copy.deepcopy(base))


class _Original(NamedTuple):
    """What a merged layer was before: weight as (out_features, in_features), bias, and the layer if it is quantised."""

    weight: Tensor
    bias: Tensor | None
    quantized: nn.Module | None


def _set_data(base: nn.Module, weight: Tensor) -> None:
    """Gives a layer this weight, (out_features, in_features), keeping its device and dtype."""
    weight = weight.to(base.weight.device, base.weight.dtype)
    base.weight.data = weight.T if isinstance(base, Conv1D) else weight


def _set_bias(base: nn.Module, bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        base.bias = None
    elif base.bias is None:
        base.bias = nn.Parameter(bias.to(weight.device, weight.dtype), requires_grad=False)
    else:
        base.bias.data = bias.to(base.bias.device, base.bias.dtype)


def _compose(first: Vectors, second: Vectors) -> Vectors:
    def combine(a: Tensor | None, b: Tensor | None, operation) -> Tensor | None:
        return (a if b is None else b) if a is None or b is None else operation(a, b)

    return Vectors(
        combine(first.scale_in, second.scale_in, torch.mul),
        combine(first.scale_out, second.scale_out, torch.mul),
        combine(first.shift, second.shift, torch.add),
    )
