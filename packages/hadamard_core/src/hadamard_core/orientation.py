"""How a projection lays out its weight: in one orientation for every layer, and in parts where it is fused.

`nn.Linear` keeps its weight as (out_features, in_features), transformers' `Conv1D` (GPT-2) as (in_features,
out_features). Everything above this file sees (out_features, in_features).

A fused projection computes several projections at once. The two layouts found in transformers, h heads of size s:

* GPT-2's `c_attn`: query, key, value one after the other, each (h * s): 3 parts in 1 group;
* GPT-NeoX's `query_key_value`: for each head its query, key and value, each (s): 3 parts in h groups.

Both are `out_features` read as (groups, parts, size). Fused projections with unequal parts (grouped-query attention
in Phi-3 and its like) are not of this form and `OutputSlice` cannot name them.
"""

from dataclasses import dataclass

import torch
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class OutputSlice:
    """Some of the output features of a fused projection: in each of `groups` groups, part `part` of `parts` equal ones.

    Raises:
        ValueError: if `part` is not in [0, parts), or `groups` is below 1.
    """

    part: int
    parts: int
    groups: int = 1

    def __post_init__(self):
        if not 0 <= self.part < self.parts:
            raise ValueError(f"A slice was given part={self.part} of parts={self.parts}; count parts from 0.")
        if self.groups < 1:
            raise ValueError(f"A slice was given groups={self.groups}; a fused projection has at least 1 group.")

    def size(self, out_features: int) -> int:
        """Number of features in this slice of a projection with `out_features`.

        Raises:
            ValueError: if `out_features` does not divide into equal parts.
        """
        if out_features % (self.groups * self.parts):
            raise ValueError(
                f"A projection with {out_features} output features cannot be cut into {self.parts} equal parts in "
                f"each of {self.groups} groups; check the slice against the model's attention."
            )
        return out_features // self.parts

    def index(self, out_features: int) -> Tensor:
        """The output features of this slice, in order: int64, (size,)."""
        return self.select(torch.arange(out_features, device="cpu"), dim=0)

    def select(self, tensor: Tensor, dim: int) -> Tensor:
        """The slice of `tensor`, whose `dim` has the projection's output features; a view where `groups` is 1."""
        dim = dim % tensor.dim()
        size = self.size(tensor.shape[dim])
        if self.groups == 1:
            return tensor.narrow(dim, self.part * size, size)
        by_group = tensor.unflatten(dim, (self.groups, self.parts, size // self.groups))
        return by_group.select(dim + 1, self.part).flatten(dim, dim + 1)


def is_supported(module: nn.Module) -> bool:
    """Whether `module` is a projection whose orientation is known: `nn.Linear`, `Conv1D`, or a subclass of these."""
    return isinstance(module, (nn.Linear, Conv1D))


def has_known_forward(module: nn.Module) -> bool:
    """Whether a projection's call is that of `nn.Linear` or `Conv1D`, or of a quantised layer that peft knows."""
    known = (nn.Linear.forward, Conv1D.forward)
    return type(module).forward in known or resolve_quantization_backend(module) is not None


def features(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a projection.

    Raises:
        TypeError: if `module` is not an `nn.Linear` or `Conv1D`.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    raise TypeError(
        f"Found a module of type {type(module).__name__}, whose weight has no known orientation; "
        "adapt nn.Linear or transformers' Conv1D modules only."
    )


def weight_as_linear(module: nn.Module) -> Tensor:
    """The weight of a projection as a view of shape (out_features, in_features); writing to it writes to the module.

    Raises:
        TypeError: if `module` is not an `nn.Linear` or `Conv1D`, or if its weight is stored in another shape (packed
            by 4-bit quantisation, or gathered elsewhere), so that no view of it exists.
    """
    in_features, out_features = features(module)
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    if weight.shape != (out_features, in_features):
        raise TypeError(
            f"The weight of a {type(module).__name__} has shape {tuple(module.weight.shape)} in place of "
            f"({out_features}, {in_features}), as quantised or sharded weights do; restore the full weight first."
        )
    return weight
