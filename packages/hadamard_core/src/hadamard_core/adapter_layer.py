"""What every layer that carries adapters has in common, whatever it adapts: a projection or a norm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from hadamard_core.config import HadamardConfig
from hadamard_core.orientation import OutputSlice

# What peft calls a sample without adapter in ``adapter_names``.
NO_ADAPTER = "__base__"


class AdapterOfSamples(list):
    """The adapter of each sample of a batch, by name; keeps their numbers on the device for all layers."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._numbered: dict[tuple, tuple[list[str], Tensor]] = {}

    def numbered(self, known: Container[str], device: torch.device) -> tuple[list[str], Tensor]:
        """The names, each once, those that are not ``known`` as one without adapter; and each sample's place there."""
        names = [name if name in known else NO_ADAPTER for name in self]
        key = (*names, device)
        if key not in self._numbered:
            unique = list(dict.fromkeys(names))
            index = torch.tensor([unique.index(name) for name in names], device=device)
            self._numbered[key] = unique, index
        return self._numbered[key]


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A frozen module with adapters: which of them are active, merged, or mixed in one batch.

    Subclasses name their parameter containers in ``adapter_layer_names``, with the prefix of their tuner; one
    ``nn.ParameterDict`` is made for each. They say what adapters compute (:meth:`adapted`, :meth:`adapted_mixed`) and
    how they are merged.

    Args:
        base_layer: the frozen module.
        adapter_name: the first adapter.
        config: its config.
        slices: the slices of a fused projection to adapt; None for the whole.

    Attributes:
        slices: by adapter, the slices it adapts; None for the whole. Its keys are the adapters that are here.
    """

    # What peft empties, beside the parameters, when an adapter is deleted.
    other_param_names = ("slices",)

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
        self.slices: dict[str, tuple[OutputSlice, ...] | None] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.prepare()
        self.update_layer(adapter_name, config, slices)

    def prepare(self) -> None:
        """Sets up what a subclass needs before the first adapter is added."""

    def update_layer(
        self, adapter_name: str, config: HadamardConfig, slices: Sequence[OutputSlice] | None = None
    ) -> None:
        """Adds an adapter, or replaces the one of this name."""
        self.slices[adapter_name] = None if slices is None else tuple(slices)
        for name in self.adapter_layer_names:
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]
        self.add_adapter(adapter_name, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @abstractmethod
    def add_adapter(self, adapter_name: str, config: HadamardConfig) -> None:
        """Creates the parameters of an adapter."""

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

    def own_adapters(self, names: Sequence[str]) -> list[str]:
        """Those of the names that this layer has an adapter of."""
        return [name for name in names if name in self.slices]

    def get_base_layer(self) -> nn.Module:
        """The innermost module, past other tuners' layers."""
        # peft's asks whether there is an attribute, which costs a module without one an exception with its message.
        base = self._modules["base_layer"]
        while "base_layer" in base._modules:
            base = base._modules["base_layer"]
        return base

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """What the adapted module makes of ``x``, (..., features).

        Args:
            adapter_names: the adapter of each sample, ``"__base__"`` for none, in place of the active adapters; see
                ``HadamardTuner``.
        """
        if self._disable_adapters:
            if self.merged:
                self.unmerge()
        elif adapter_names is not None:
            return self._forward_mixed(x, adapter_names)
        elif not self.merged_adapters and (active := self.own_adapters(self.active_adapters)):
            return self.adapted(x, active)
        return self.base_layer(x, *args, **kwargs)

    @abstractmethod
    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        """What the module makes of ``x``, (..., features), adapted by these adapters, one at least, together."""

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        """What the module makes of ``x``, (batch, ..., features), adapted sample by sample.

        Here the samples of each adapter go through it together; a subclass may know better.

        Args:
            adapter_names: each once; ``"__base__"`` stands for none.
            index: (batch,), each sample's place in ``adapter_names``.
        """
        y = None
        for number, name in enumerate(adapter_names):
            own = (index == number).nonzero().flatten()
            part = self.base_layer(x[own]) if name == NO_ADAPTER else self.adapted(x[own], [name])
            y = part.new_zeros(len(x), *part.shape[1:]) if y is None else y
            y = y.index_copy(0, own, part)
        return y

    def _forward_mixed(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        if self.merged:
            raise ValueError(
                f"adapter_names is given, but {', '.join(self.merged_adapters)} is merged; unmerge it before adapters "
                "are mixed in one batch."
            )
        if len(adapter_names) != len(x):
            raise ValueError(f"adapter_names has {len(adapter_names)} names for {len(x)} samples; give one for each.")
        if not isinstance(adapter_names, AdapterOfSamples):
            adapter_names = AdapterOfSamples(adapter_names)
        names, index = adapter_names.numbered(self.slices, x.device)
        if names == [NO_ADAPTER]:
            return self.base_layer(x)
        if len(names) == 1:
            return self.adapted(x, names)
        return self.adapted_mixed(x, names, index)


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody has hooked or replaced a module's call, as accelerate does to move weights."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def require_finite(values: Tensor | None, what: str, adapter_names: Sequence[str]) -> None:
    """Refuses to merge values that are not finite.

    Raises:
        ValueError: naming the adapters.
    """
    if values is not None and not torch.isfinite(values).all():
        raise ValueError(
            f"NaNs detected in the merged {what}: the adapter {', '.join(adapter_names)} seems to be broken; load it "
            "anew, or merge without safe_merge to see the values."
        )
