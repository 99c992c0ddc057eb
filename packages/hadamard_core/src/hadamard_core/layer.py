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
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_core.adapter_layer import AdapterLayer, is_hooked, require_finite
from hadamard_core.config import HadamardConfig
from hadamard_core.functional import (
    Slices,
    scale_in_of_parts,
    scale_shift,
    scaled_linear,
    scaled_weight,
)
from hadamard_core.orientation import OutputSlice, features, weight_as_linear

# A product with so many tokens costs about as much as a pass over the weight.
_FEW_TOKENS = 32


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


class ScaledLinear(AdapterLayer):
    """A frozen projection whose input and output are scaled and shifted: ``scaled_linear`` as a peft layer.

    Several active adapters apply together: their scales multiply and their shifts add up, so that their order does not
    matter and merging them one after another gives the same weights as merging them at once.

    Merging multiplies in the adapter's precision and casts once. The original weight and bias are kept as long as
    something is merged, and unmerging puts them back bit for bit. Where the projection has no bias and an adapter has a
    shift, merging gives it one.

    Args:
        base_layer: ``nn.Linear``, ``Conv1D``, or a quantised layer that peft can dequantise.
        adapter_name: the first adapter.
        config: its config.
        slices: the slices of a fused projection to adapt; None for the whole.
    """

    other_param_names = ("slices", "compute")

    def prepare(self) -> None:
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.in_features, self.out_features = features(self.get_base_layer())
        self.compute: dict[str, str] = {}
        self._original: _Original | None = None

    def add_adapter(self, adapter_name: str, config: HadamardConfig) -> None:
        self.compute[adapter_name] = config.compute
        slices = self.slices[adapter_name]
        sizes = [self.out_features] if slices is None else [own.size(self.out_features) for own in slices]
        self.create_parameters(adapter_name, config, sizes)

    def create_parameters(self, adapter_name: str, config: HadamardConfig, sizes: Sequence[int]) -> None:
        """Creates the parameters of an adapter.

        Args:
            sizes: the number of output features of each adapted slice; one number for a projection that is not fused.
        """
        raise NotImplementedError

    def vectors(self, adapter_name: str) -> list[Vectors]:
        """The adapter's vectors, differentiable with respect to its parameters: one item for each adapted slice."""
        raise NotImplementedError

    def combined(self, adapter_names: Sequence[str]) -> tuple[Vectors, Slices | None]:
        """The vectors of several adapters together, over all output features.

        Returns:
            the vectors and, where slices have a ``scale_in``, which; ``scale_in`` then has a row for each of them.
        """
        if all(self.slices[name] is None for name in adapter_names):
            return reduce(_compose, (self.vectors(name)[0] for name in adapter_names)), None
        by_slice: dict[OutputSlice, Vectors] = {}
        whole = OutputSlice(0, 1)
        for name in adapter_names:
            for own, vectors in zip(self.slices[name] or (whole,), self.vectors(name), strict=True):
                by_slice[own] = _compose(by_slice[own], vectors) if own in by_slice else vectors
        if len({(own.parts, own.groups) for own in by_slice}) > 1:
            raise ValueError(
                f"The active adapters ({', '.join(adapter_names)}) cut a fused projection in different ways, such as "
                "slices of it and all of it; activate or merge them one at a time."
            )
        return self._spread(by_slice)

    def _spread(self, by_slice: dict[OutputSlice, Vectors]) -> tuple[Vectors, Slices | None]:
        """Lays the vectors of slices out over all output features: ones and zeros where no slice is adapted."""
        layout = next(iter(by_slice))
        by_part = {own.part: vectors for own, vectors in by_slice.items()}

        def spread(name: str, fill: float) -> Tensor | None:
            given = {part: getattr(vectors, name) for part, vectors in by_part.items()}
            like = next((vector for vector in given.values() if vector is not None), None)
            if like is None:
                return None
            filler = torch.full_like(like, fill)
            every = [given.get(part) for part in range(layout.parts)]
            by_group = [(filler if one is None else one).unflatten(0, (layout.groups, -1)) for one in every]
            return torch.stack(by_group, 1).flatten()

        adapted = tuple(part for part, vectors in by_part.items() if vectors.scale_in is not None)
        scale_in = torch.stack([by_part[part].scale_in for part in adapted]) if adapted else None
        slices = Slices(adapted, layout.parts, layout.groups) if adapted else None
        return Vectors(scale_in, spread("scale_out", 1.0), spread("shift", 0.0)), slices

    def _combine_mixed(self, adapter_names: Sequence[str]) -> tuple[Vectors, Slices | None]:
        """The vectors of several adapters side by side, a row for each; ones and zeros for one that is not here.

        Returns:
            the vectors and, where slices have a ``scale_in``, which; ``scale_in`` is then (slices, adapters, in).
        """
        found = {name: self.combined([name]) for name in self.own_adapters(dict.fromkeys(adapter_names))}
        layouts = {(slices.parts, slices.groups) for _, slices in found.values() if slices is not None}
        whole = any(v.scale_in is not None and slices is None for v, slices in found.values())
        if len(layouts) + whole > 1:
            raise ValueError(
                f"The adapters of this batch ({', '.join(found)}) cut a fused projection in different ways, such as "
                "slices of it and all of it; give them in batches of their own."
            )

        def stack(vectors: dict[str, Tensor | None], fill: float) -> Tensor | None:
            like = next((vector for vector in vectors.values() if vector is not None), None)
            if like is None:
                return None
            filler = torch.full_like(like, fill)
            rows = [vectors.get(name) for name in adapter_names]
            return torch.stack([filler if row is None else row for row in rows])

        scale_out = stack({name: v.scale_out for name, (v, _) in found.items()}, 1.0)
        shift = stack({name: v.shift for name, (v, _) in found.items()}, 0.0)
        if not layouts:
            return Vectors(stack({name: v.scale_in for name, (v, _) in found.items()}, 1.0), scale_out, shift), None
        scales = {
            name: dict(zip(slices.adapted, v.scale_in, strict=True))
            for name, (v, slices) in found.items()
            if slices is not None
        }
        adapted = tuple(sorted(set().union(*scales.values())))
        by_part = [stack({name: own.get(part) for name, own in scales.items()}, 1.0) for part in adapted]
        return Vectors(torch.stack(by_part), scale_out, shift), Slices(adapted, *layouts.pop())

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        vectors, slices = self.combined(adapter_names)
        # All adapters compute the same function either way; the first one's wish is as good as any.
        compute = self.compute[adapter_names[0]]
        if self._calls_base_layer(x, slices, compute):
            return self._around_base_layer(x, vectors, slices)
        base = self.get_base_layer()
        return scaled_linear(x, weight_as_linear(base), base.bias, *vectors, slices=slices, compute=compute)

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        vectors, slices = self._combine_mixed(adapter_names)
        if self.computes_itself():
            return self._around_base_layer(x, vectors, slices, index)
        base = self.get_base_layer()
        if slices is None:
            return scaled_linear(x, weight_as_linear(base), base.bias, *vectors, index=index)
        return self._part_by_part(x, vectors, slices, index)

    def computes_itself(self) -> bool:
        """Whether the base layer's product is its own affair: where it is quantised, or its call is hooked."""
        return self.quantization_backend is not None or is_hooked(self.get_base_layer())

    def _calls_base_layer(self, x: Tensor, slices: Slices | None, compute: str) -> bool:
        """Whether the product is left to the base layer rather than to ``scaled_linear``.

        With slices in the activation way, each has its own product of the whole, which for few tokens, as in decoding,
        costs less than scaling the weight.
        """
        if self.computes_itself():
            return True
        if slices is None or compute == "weight":
            return False
        return compute == "activation" or math.prod(x.shape[:-1]) * len(slices.adapted) <= _FEW_TOKENS

    def _part_by_part(self, x: Tensor, vectors: Vectors, slices: Slices, index: Tensor) -> Tensor:
        """Many adapters on a fused projection: a product for each part, as large together as the one of the whole."""
        base = self.get_base_layer()
        scales = dict(zip(slices.adapted, vectors.scale_in, strict=True))
        parts = []
        for part in range(slices.parts):
            own = OutputSlice(part, slices.parts, slices.groups)
            bias, scale_out, shift = (
                None if vector is None else own.select(vector, -1)
                for vector in (base.bias, vectors.scale_out, vectors.shift)
            )
            weight = own.select(weight_as_linear(base), 0)
            y = scaled_linear(x, weight, bias, scales.get(part), scale_out, shift, index=index)
            parts.append(y.unflatten(-1, (slices.groups, -1)))
        return torch.stack(parts, dim=-2).flatten(-3)

    def _around_base_layer(
        self, x: Tensor, vectors: Vectors, slices: Slices | None, index: Tensor | None = None
    ) -> Tensor:
        """The activation way around calls of the base layer; with ``index``, vectors have a row for each adapter."""
        scale_in, scale_out, shift = vectors
        bias = self.get_base_layer().bias
        if slices is None:
            y = self.base_layer(scale_shift(x, scale_in, None, index))
        else:
            y = self.base_layer(x)
            parts = torch.arange(slices.parts, device=x.device)
            part_of_feature = parts.repeat_interleave(self.out_features // (slices.parts * slices.groups))
            part_of_feature = part_of_feature.repeat(slices.groups)
            for part, scale in zip(slices.adapted, scale_in, strict=True):
                y = torch.where(part_of_feature == part, self.base_layer(scale_shift(x, scale, None, index)), y)
        correction = shift
        if scale_out is not None and bias is not None:
            correction = bias * (1 - scale_out) if shift is None else bias * (1 - scale_out) + shift
        return scale_shift(y, scale_out, correction, index)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Folds adapters into the base layer.

        Args:
            safe_merge: check the merged values first, and leave the layer as it is if one is not finite.
            adapter_names: the active ones if None.

        Raises:
            ValueError: with ``safe_merge``, a merged value is not finite.
        """
        names = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        base = self.get_base_layer()
        original = self._original or self._keep_original()
        with torch.no_grad():
            (scale_in, scale_out, shift), slices = self.combined([*self.merged_adapters, *names])
            layout = {}
            if slices is not None:
                layout = {"parts": slices.parts, "groups": slices.groups}
                scale_in = scale_in_of_parts(scale_in, slices)
            weight = scaled_weight(original.weight, scale_in, scale_out, **layout)
            bias = original.bias
            if shift is not None:
                bias = (shift if bias is None else bias + shift).to(weight.dtype)
        if safe_merge:
            require_finite(weight, "weight", names)
            require_finite(bias, "bias", names)
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
