"""The layer that methods share which train the norms of a frozen model.

A norm that is unfrozen in place is silently left out when peft saves an adapter. Here each adapter holds what its
training adds to the norm's weight and bias, so that norms are saved, loaded, switched, mixed in one batch and merged
like everything else of an adapter. The gradients, and with them what is learned, are those of an unfrozen norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import layer_norm

from hadamard_core.adapter_layer import NO_ADAPTER, AdapterLayer, is_hooked, require_finite
from hadamard_core.config import HadamardConfig
from hadamard_core.functional import scale_shift
from hadamard_core.functional.operators import is_plain


class TrainedNorm(AdapterLayer):
    """A norm whose weight and bias train: ``nn.LayerNorm``, or any norm over the last dimension, such as an RMSNorm.

    An adapter holds a change of the weight and, where the norm has one, of the bias, each (features,), starting at
    zero. The changes of several active adapters add up.

    Subclasses give two names in ``adapter_layer_names``: of the container for the weight and of that for the bias.

    Raises:
        ValueError: the module is no such norm.
    """

    def prepare(self) -> None:
        base = self.get_base_layer()
        if not is_norm(base):
            raise ValueError(
                f"A {type(base).__name__} is no norm over the last dimension with a weight of its own; name norms such "
                "as nn.LayerNorm."
            )
        self._original: _Values | None = None

    def add_adapter(self, adapter_name: str, config: HadamardConfig) -> None:
        base = self.get_base_layer()
        for container, parameter in zip(self.adapter_layer_names, (base.weight, _bias(base)), strict=True):
            if parameter is not None:
                start = torch.zeros(len(parameter)) if config.init_weights else 0.2 * torch.randn(len(parameter))
                getattr(self, container)[adapter_name] = nn.Parameter(start)

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        return self._normalised(x, self._values(adapter_names))

    def _values(self, adapter_names: Sequence[str]) -> _Values:
        """Weight and bias with what the adapters add to them, in the dtype of the norm."""
        # Past the attribute access of modules, which would take as long as a small norm.
        containers = [self._modules[name]._parameters for name in self.adapter_layer_names]
        if self._original is None:
            base = self.get_base_layer()
            values = (base._parameters["weight"], _bias(base))
        else:
            values = self._original
        found = []
        for value, container in zip(values, containers, strict=True):
            changes = [container[name] for name in adapter_names if name in container]
            found.append(sum(changes, value).to(value.dtype) if changes else value)
        return _Values(*found)

    def _normalised(self, x: Tensor, values: _Values) -> Tensor:
        base = self.get_base_layer()
        if _is_plain_layer_norm(base):
            return layer_norm(x, base.normalized_shape, values.weight, values.bias, base.eps)
        if torch.is_grad_enabled() and is_plain(x) and not is_hooked(base):
            return _Recomputed.apply(base, x, *values)
        return _call(base, x, *values)

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        values = [self._values([] if name == NO_ADAPTER else [name]) for name in adapter_names]
        base = self.get_base_layer()
        if _is_plain_layer_norm(base):
            bare = layer_norm(x, base.normalized_shape, None, None, base.eps)
            weights = torch.stack([each.weight for each in values])
            biases = None if _bias(base) is None else torch.stack([each.bias for each in values])
            with torch.autocast(x.device.type, enabled=False):  # a norm keeps its dtype
                return scale_shift(bare, weights, biases, index)
        # What another kind of norm does with its weight is its own affair, so each adapter's samples go through it.
        parts = [self._normalised(x[index == number], each) for number, each in enumerate(values)]
        y = torch.empty_like(x, dtype=parts[0].dtype)
        for number, part in enumerate(parts):
            y[index == number] = part
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the adapters' changes to the norm's own weight and bias.

        Args:
            safe_merge: check the merged values first, and leave the norm as it is if one is not finite.
            adapter_names: the active ones if None.

        Raises:
            ValueError: with ``safe_merge``, a merged value is not finite.
        """
        names = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        base = self.get_base_layer()
        bias = _bias(base)
        with torch.no_grad():
            original = self._original or _Values(base.weight.data, None if bias is None else bias.data)
            merged = self._values([*self.merged_adapters, *names])
        if safe_merge:
            require_finite(merged.weight, "weight", names)
            require_finite(merged.bias, "bias", names)
        self._original = original
        self._write(merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the original weight and bias back, bit for bit; all merged adapters are unmerged."""
        if self._original is None:
            return
        self._write(self._original)
        self._original = None
        self.merged_adapters.clear()

    def _write(self, values: _Values) -> None:
        base = self.get_base_layer()
        base.weight.data = values.weight.data
        if values.bias is not None:
            base.bias.data = values.bias.data


class _Recomputed(torch.autograd.Function):
    """A norm that keeps its input alone for the backward pass, and computes the rest anew.

    With a weight that trains, autograd would keep the normalised activations besides, as large as the input, which the
    frozen norm does not.
    """

    @staticmethod
    def forward(ctx, base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.base = base
        ctx.save_for_backward(x, weight, bias)
        return _call(base, x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        needs = ctx.needs_input_grad[1:]
        inputs = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, needs, strict=True)
        ]
        with torch.enable_grad():
            y = _call(ctx.base, *inputs)
        found = iter(torch.autograd.grad(y, [i for i, needed in zip(inputs, needs, strict=True) if needed], grad))
        return None, *(next(found) if needed else None for needed in needs)


def _call(base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return functional_call(base, given, (x,))


class _Values(NamedTuple):
    """What a norm multiplies by and adds: (features,) each; ``bias`` is None for a norm without one."""

    weight: Tensor
    bias: Tensor | None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm over the last dimension whose weight can be trained."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or isinstance(module, nn.modules.batchnorm._NormBase):
        return False
    return "norm" in type(module).__name__.lower()


def _is_plain_layer_norm(base: nn.Module) -> bool:
    """Whether a norm computes what ``nn.LayerNorm`` does."""
    return type(base) is nn.LayerNorm and not is_hooked(base)


def _bias(base: nn.Module) -> Tensor | None:
    return base._parameters.get("bias")
