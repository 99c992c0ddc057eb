"""Adapters of peft that are values at some positions of frozen parameters, as diff pruning and FAR train them.

Both methods train in two stages. In the first, every value of the parameters concerned may change
(:mod:`~hadamard_baselines.changes`); the changes that are kept then are placed in an adapter, which holds positions and
values and nothing else: :class:`SparseLayer` is what its layers have in common.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import check_adapters_to_merge, check_target_module_exists
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hadamard_baselines.changes import PARAMETERS, Slices, rows_of_slices
from hadamard_core.adapter_layer import AdapterLayer, is_hooked, require_finite
from hadamard_core.config import HadamardConfig
from hadamard_core.functional.operators import cast_for_autocast, is_plain, rows
from hadamard_core.orientation import OutputSlice, features
from hadamard_core.targets import find_targets, known_roles
from hadamard_core.tuner import HadamardTuner


class Entries(NamedTuple):
    """What a sparse adapter holds of one parameter.

    Attributes:
        index: which, as integers; (k,).
        values: what is added there; k is their first dimension.
    """

    index: Tensor
    values: Tensor


class SparseLayer(AdapterLayer):
    """A frozen module whose adapters are values at some positions; a subclass says which and how they are added.

    Attributes:
        index_names: names of the containers of positions, with the tuner's prefix. Positions are buffers: they are
            saved and loaded like parameters, but do not train and are cast by nobody.
    """

    index_names: ClassVar[tuple[str, ...]]

    def prepare(self) -> None:
        super().prepare()
        for name in self.index_names:
            setattr(self, name, BufferDict(persistent=True))

    def update_layer(
        self, adapter_name: str, config: HadamardConfig, slices: Sequence[OutputSlice] | None = None
    ) -> None:
        for name in self.index_names:
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        super().update_layer(adapter_name, config, slices)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        device = self.get_base_layer().weight.device if device is None else device
        for container in (getattr(self, name) for name in self.index_names):
            if adapter_name in container and not container[adapter_name].is_meta:
                container[adapter_name] = container[adapter_name].to(device)

    @abstractmethod
    def place(self, adapter_name: str, found: Mapping[str, Entries]) -> None:
        """Gives an adapter other positions and values, of any number.

        Args:
            found: by the name of the parameter; nothing of a parameter that is left out changes.
        """

    def _store(self, container: str, adapter_name: str, values: Tensor, trains: bool) -> None:
        getattr(self, container)[adapter_name] = nn.Parameter(values.detach().clone(), requires_grad=trains)

    def trains(self, adapter_name: str) -> bool:
        """Whether an adapter's values require a gradient, or would if there were any."""
        containers = [getattr(self, name) for name in self.adapter_layer_names]
        given = [container[adapter_name] for container in containers if adapter_name in container]
        return any(one.requires_grad for one in given) if given else adapter_name in self.active_adapters


class SparseProjection(SparseLayer):
    """A projection whose adapters are added to its weight and bias in places, whether merged or not.

    Merging adds in the adapter's precision and casts once. The original weight and bias are kept as long as something
    is merged, and unmerging puts them back bit for bit.

    Raises:
        ValueError: the projection is quantised.
    """

    def prepare(self) -> None:
        super().prepare()
        base = self.get_base_layer()
        if resolve_quantization_backend(base) is not None:
            raise ValueError(
                f"A {type(base).__name__} is quantised, and single values cannot be added to a quantised weight; load "
                "the model without quantisation, or leave the module out with exclude_modules."
            )
        self.in_features, self.out_features = features(base)
        self._original: tuple[Tensor, Tensor | None] | None = None

    def rows_of(self, adapter_name: str) -> Tensor | None:
        """The output features that an adapter may change, in order; None for all."""
        return rows_of_slices(self.slices[adapter_name], self.out_features)

    @abstractmethod
    def changed(self, adapter_names: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The original weight and bias as the module stores them, with what the adapters add."""

    def original(self) -> tuple[Tensor, Tensor | None]:
        """The module's own weight, as it stores it, and bias, whatever is merged."""
        if self._original is not None:
            return self._original
        base = self.get_base_layer()
        return base._parameters["weight"], base._parameters.get("bias")

    def plain_base(self) -> nn.Module | None:
        """The projection, if its weight says what it computes: not hooked, and no other tuner's layer around it."""
        base = self.get_base_layer()
        return base if self._modules["base_layer"] is base and not is_hooked(base) else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the projection's own weight and bias.

        Args:
            safe_merge: check the merged values first, and leave the layer as it is if one is not finite.
            adapter_names: the active ones if None.

        Raises:
            ValueError: with ``safe_merge``, a merged value is not finite.
        """
        names = self.own_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        with torch.no_grad():
            original = tuple(None if one is None else one.detach() for one in self.original())
            merged = self.changed([*self.merged_adapters, *names])
        if safe_merge:
            for name, values in zip(PARAMETERS, merged, strict=True):
                require_finite(values, name, names)
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

    def _write(self, values: tuple[Tensor, Tensor | None]) -> None:
        base = self.get_base_layer()
        for name, value in zip(PARAMETERS, values, strict=True):
            if value is not None:
                base._parameters[name].data = value.detach()


class SparseTuner(HadamardTuner):
    """A tuner whose default roles are those of them that a model has, and whose adapters get their positions later."""

    tuner_layer_cls: type[SparseLayer]

    def _prepare_adapter_config(self, peft_config: HadamardConfig, model_config: dict) -> HadamardConfig:
        if peft_config.roles is not None:
            peft_config.roles = present_roles(self.model, peft_config.roles, type(peft_config).roles)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(
        self, peft_config: HadamardConfig, adapter_name: str, target: nn.Module, *args: Any, current_key: str
    ) -> None:
        if not isinstance(target, self.tuner_layer_cls) and issubclass(self.layer_class(target), SparseProjection):
            parent = self.model.get_submodule(current_key.rpartition(".")[0])
            self._check_projection(target, current_key, parent)
        super()._create_and_replace(peft_config, adapter_name, target, *args, current_key=current_key)

    def place(self, found: Mapping[str, Mapping[str, Entries]], adapter_name: str = "default") -> None:
        """Gives an adapter its positions and values; they replace what it had.

        Args:
            found: by the name of the module in the base model, then by that of the parameter.

        Raises:
            ValueError: the adapter has modules that are not among these, or the other way round.
        """
        layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, self.tuner_layer_cls) and adapter_name in module.slices
        }
        if odd := sorted(layers.keys() ^ found.keys()):
            raise ValueError(
                f"The adapter {adapter_name!r} and what is placed in it differ in the module {odd[0]}; give the same "
                "modules."
            )
        for name, layer in layers.items():
            layer.place(adapter_name, found[name])


def present_roles(model: nn.Module, roles: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """The roles to look for: those of the default that the model has, and all of them where they were chosen."""
    if tuple(roles) != tuple(default):
        return tuple(roles)
    known = known_roles(model)
    return tuple(role for role in roles if role in known)


def adapted_modules(model: nn.Module, config: HadamardConfig) -> dict[str, Slices]:
    """The names of the modules that a config adapts, before anything is adapted, with the slices that it means.

    Raises:
        ValueError: there are none.
    """
    if config.roles is not None:
        roles = present_roles(model, config.roles, type(config).roles)
        found = find_targets(model, roles, config.layers_to_transform, config.layers_pattern)
        return {name: target.slices for name, target in found.items()}
    names = [name for name, _ in model.named_modules() if name and check_target_module_exists(config, name)]
    if not names:
        raise ValueError(f"target_modules={config.target_modules} was not found in the base model; name modules of it.")
    return dict.fromkeys(names)


def add_at(tensor: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of a tensor with ``values`` (k,) added at ``index`` (k,), positions in the flattened tensor.

    What is added to 16 bits is added in the precision of ``values`` and rounded once.
    """
    dtype = torch.promote_types(tensor.dtype, values.dtype)
    added = tensor.reshape(-1).to(dtype).index_add(0, index, values.to(dtype))
    return added.view(tensor.shape).to(tensor.dtype)


def add_to_weight(weight: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """:func:`add_at` for a weight of any strides whose transpose may be what is contiguous; laid out as it is."""
    if weight.is_contiguous():
        return add_at(weight, index, values)
    out_features, in_features = weight.shape
    transposed = index % in_features * out_features + index // in_features
    return add_at(weight.T, transposed, values).T


def sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, values: Tensor) -> Tensor:
    """``x W'^T + bias``, where W' is ``weight`` with ``values`` added at ``index``; differentiable but for ``weight``.

    The backward pass keeps ``x`` and makes W' again, so that no second set of weights stays in memory. The gradient of
    ``values`` is gathered from the whole product ``g^T x``: it costs what that of a weight costs in full fine-tuning,
    and for a moment its memory.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), any strides.
        bias: (out_features,).
        index: (k,), positions in the flattened weight, as int32 or int64.
        values: (k,).
    """
    x = cast_for_autocast(x)
    if bias is not None:
        bias = bias.to(x.dtype)
    if is_plain(x) and torch.is_grad_enabled():
        return _SparseLinear.apply(x, weight, bias, index, values)
    return linear(x, add_to_weight(weight, index, values).to(x.dtype), bias)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, index, values)
        return linear(x, add_to_weight(weight, index, values).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, index, values = ctx.saved_tensors
        of_x, _, of_bias, _, of_values = ctx.needs_input_grad
        grad_x = grad_bias = grad_values = None
        if of_x:
            grad_x = grad @ add_to_weight(weight, index, values).to(grad.dtype)
        if of_bias:
            grad_bias = rows(grad).sum(0)
        if of_values:
            product = rows(grad).T @ rows(x)
            grad_values = product.reshape(-1).index_select(0, index).to(values.dtype)
        return grad_x, None, grad_bias, None, grad_values
