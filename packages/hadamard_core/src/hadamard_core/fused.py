"""Takes fused projections apart, for methods that know whole layers only, and stores them as ``nn.Linear``.

GPT-2 keeps query, key and value in one projection, and peft's methods adapt all of it or nothing. After
:func:`split_fused` it is three ``nn.Linear`` side by side, each of which any method can adapt by its name::

    names = split_fused(model, ["query", "value"])  # "transformer.h.0.attn.c_attn.query", ...
    model = get_peft_model(model, LoraConfig(target_modules=names))
    ...
    model = fuse(model.merge_and_unload())  # the architecture as transformers knows it

:func:`as_linear` does the rest for methods that know ``nn.Linear`` alone and not ``Conv1D``.

The function is the same; products of parts may round differently than one product of the whole. Loading an adapter that
was trained so needs a base model that is split the same way: :func:`split_for` reads from the adapter's names which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_core.orientation import OutputSlice, features, is_supported, weight_as_linear
from hadamard_core.targets import find_targets, fused_parts


class SplitProjection(nn.Module):
    """A fused projection as one ``nn.Linear`` for each of its parts, whose children they are, by role.

    Args:
        fused: the projection, ``nn.Linear`` or ``Conv1D``; its weight is copied.
        parts: the slice of each role; together they are all of its output features.
    """

    def __init__(self, fused: nn.Module, parts: dict[str, OutputSlice]) -> None:
        super().__init__()
        in_features, out_features = features(fused)
        weight, bias = weight_as_linear(fused).detach(), fused.bias
        self.roles = tuple(sorted(parts, key=lambda role: parts[role].part))
        self.groups = next(iter(parts.values())).groups
        self.is_conv1d = isinstance(fused, Conv1D)
        for role in self.roles:
            own = parts[role]
            with torch.device(weight.device):
                linear = nn.Linear(in_features, own.size(out_features), bias=bias is not None, dtype=weight.dtype)
            linear.weight = nn.Parameter(own.select(weight, 0).clone(), requires_grad=fused.weight.requires_grad)
            if bias is not None:
                linear.bias = nn.Parameter(own.select(bias.detach(), 0).clone(), requires_grad=bias.requires_grad)
            self.add_module(role, linear)
        self.train(fused.training)

    def forward(self, x: Tensor) -> Tensor:
        """What the fused projection makes of ``x``, (..., in_features)."""
        parts = [getattr(self, role)(x) for role in self.roles]
        if self.groups == 1:
            return torch.cat(parts, dim=-1)
        return torch.stack([part.unflatten(-1, (self.groups, -1)) for part in parts], dim=-2).flatten(-3)

    def fused(self) -> nn.Module:
        """The projection in one piece again, with what the parts hold now.

        Raises:
            ValueError: a part is not an ``nn.Linear`` any more, because an adapter is on it.
        """
        parts = [getattr(self, role) for role in self.roles]
        if any(type(part) is not nn.Linear for part in parts):
            raise ValueError(
                "A part of a split projection carries an adapter; merge or unload the adapters before fusing it."
            )
        out_features, in_features = sum(part.out_features for part in parts), parts[0].in_features
        weight = self._interleaved([part.weight.detach() for part in parts])
        biases = [part.bias for part in parts]
        with torch.device(weight.device):
            if self.is_conv1d:
                whole: nn.Module = Conv1D(out_features, in_features)
            else:
                whole = nn.Linear(in_features, out_features, bias=any(bias is not None for bias in biases))
        trains = parts[0].weight.requires_grad
        whole.weight = nn.Parameter(weight.T.contiguous() if self.is_conv1d else weight, requires_grad=trains)
        if any(bias is not None for bias in biases):  # merging may have given some of the parts one
            filled = [part.weight.new_zeros(part.out_features) if part.bias is None else part.bias for part in parts]
            whole.bias = nn.Parameter(self._interleaved([bias.detach() for bias in filled]), requires_grad=trains)
        return whole.train(self.training)

    def _interleaved(self, parts: Sequence[Tensor]) -> Tensor:
        if self.groups == 1:
            return torch.cat(parts)
        return torch.stack([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 2)


class LinearConv1D(nn.Linear):
    """A ``Conv1D`` that stores its weight as ``nn.Linear`` does."""

    def back(self) -> Conv1D:
        """The ``Conv1D`` again, with what this holds now."""
        with torch.device(self.weight.device):
            conv = Conv1D(self.out_features, self.in_features)
        conv.weight = nn.Parameter(self.weight.detach().T.contiguous(), requires_grad=self.weight.requires_grad)
        conv.bias = nn.Parameter(self.bias.detach(), requires_grad=self.bias.requires_grad)
        return conv.train(self.training)


def as_linear(model: nn.Module, names: Iterable[str]) -> None:
    """Replaces those of the named modules that are a ``Conv1D`` by an ``nn.Linear`` of the same function, in place."""
    for name in names:
        conv = model.get_submodule(name)
        if type(conv) is not Conv1D:
            continue
        with torch.device("meta"):
            linear = LinearConv1D(conv.nx, conv.nf)
        linear.weight = nn.Parameter(conv.weight.detach().T.contiguous(), requires_grad=conv.weight.requires_grad)
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=conv.bias.requires_grad)
        model.set_submodule(name, linear.train(conv.training))


def split_fused(
    model: nn.Module, roles: Sequence[str], layers_to_transform: Sequence[int] | int | None = None
) -> list[str]:
    """Splits the fused projections that have one of ``roles`` in some of their parts, in place.

    Args:
        layers_to_transform: numbers of the layers to look at; all if None.

    Returns:
        the names of the modules with these roles, whole ones and parts, for use as peft's ``target_modules``.

    Raises:
        ValueError: as of :func:`hadamard_core.targets.find_targets`.
    """
    parts = fused_parts(model)
    names = []
    for name, target in find_targets(model, roles, layers_to_transform).items():
        if target.slices is None:
            names.append(name)
            continue
        wanted = [role for role, own in parts[name].items() if own in target.slices]
        _split(model, name, parts[name])
        names += [f"{name}.{role}" for role in wanted]
    return names


def split_for(model: nn.Module, names: Iterable[str]) -> None:
    """Splits the fused projections whose parts are among ``names``, in place, so that these are there."""
    names = set(names)
    try:
        every = fused_parts(model)
    except ValueError:  # no known architecture, so that nothing in it is known to be fused
        return
    for name, parts in every.items():
        if any(f"{name}.{role}" in names for role in parts):
            _split(model, name, parts)


def _split(model: nn.Module, name: str, parts: dict[str, OutputSlice]) -> None:
    fused = model.get_submodule(name)
    if isinstance(fused, SplitProjection):
        return
    if not is_supported(fused):
        raise ValueError(
            f"{name} is a {type(fused).__name__}, which cannot be split into {', '.join(parts)}; unload other adapters "
            "first, or adapt it as a whole."
        )
    model.set_submodule(name, SplitProjection(fused, parts))


def fuse(model: nn.Module) -> nn.Module:
    """Undoes :func:`split_fused` and :func:`as_linear` in place, with what the parts hold now, and returns the model.

    Raises:
        ValueError: an adapter is still on a part.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, SplitProjection):
            model.set_submodule(name, module.fused())
        elif isinstance(module, LinearConv1D):
            model.set_submodule(name, module.back())
    return model
