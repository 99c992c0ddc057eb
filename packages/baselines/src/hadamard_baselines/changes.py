"""Dense changes of frozen parameters, for the stage in which a method looks for the few that it keeps.

A :class:`Change` is put on a parameter as a parametrisation of ``torch.nn.utils.parametrize``: the frozen value stays
as it is, and whatever uses the parameter sees the sum. Afterwards it goes without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from hadamard_core.orientation import OutputSlice, features

PARAMETERS = ("weight", "bias")
"""The parameters of a module that may change."""


class Change(nn.Module):
    """What training adds to a frozen parameter, dense and in fp32, starting at zero.

    Args:
        original: the frozen parameter.
        name: what it is called in its module. The change has this name here, so that optimisers which spare biases from
            weight decay spare the changes of biases.
        dim: which dimension of the parameter has the output features.
        own_rows: the output features that may change; all if None.
    """

    own_rows: Tensor | None

    def __init__(self, original: Tensor, name: str, dim: int = 0, own_rows: Tensor | None = None) -> None:
        super().__init__()
        self.name, self.dim = name, dim
        self.register_buffer("own_rows", own_rows, persistent=False)
        shape = list(original.shape)
        if own_rows is not None:
            shape[dim] = len(own_rows)
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=original.device)))

    def change(self) -> Tensor:
        """What is added to the rows that may change, laid out as the parameter is."""
        return self._parameters[self.name]

    def by_row(self) -> Tensor:
        """What is added, with the output features first."""
        return self.change().T if self.dim else self.change()

    def features_of(self, index: Tensor) -> Tensor:
        """The output features that some rows of :meth:`by_row` are of."""
        return index if self.own_rows is None else self.own_rows[index]

    def forward(self, original: Tensor) -> Tensor:
        change = self.change()
        if self.own_rows is None:
            return (original + change).to(original.dtype)
        dtype = torch.promote_types(original.dtype, change.dtype)
        return original.to(dtype).index_add(self.dim, self.own_rows, change.to(dtype)).to(original.dtype)


Slices = Sequence[OutputSlice] | None
"""The slices of a fused projection that are adapted; None for all of a module."""


def put_changes(
    model: nn.Module, modules: Mapping[str, Slices] | Sequence[str], make: Callable[..., Change] = Change
) -> None:
    """Freezes a model and lets the weights and biases of some modules change.

    Args:
        modules: their names; with the slices to adapt where it is a mapping.
        make: returns the change of a parameter from the arguments of :class:`Change`.
    """
    model.requires_grad_(False)
    for full_name, slices in (modules if isinstance(modules, Mapping) else dict.fromkeys(modules)).items():
        module = model.get_submodule(full_name)
        own_rows = None if slices is None else rows_of_slices(slices, features(module)[1])
        for name in PARAMETERS:
            if (parameter := module._parameters.get(name)) is not None:
                dim = int(name == "weight" and isinstance(module, Conv1D))
                on_device = None if own_rows is None else own_rows.to(parameter.device)
                change = make(parameter, name, dim, on_device)
                # The checks that are left out compute the sum to see that it has the parameter's shape and dtype.
                parametrize.register_parametrization(module, name, change, unsafe=True)


def rows_of_slices(slices: Slices, out_features: int) -> Tensor | None:
    """The output features in slices of a fused projection, in order; None for all."""
    if slices is None or len(slices) == slices[0].parts:
        return None
    return torch.cat([own.index(out_features) for own in slices]).sort().values


def changes_of(model: nn.Module) -> Iterator[tuple[str, str, Change]]:
    """The changes in a model with the names of their modules and parameters, in the model's order."""
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for parameter, found in module.parametrizations.items():
                if isinstance(found[0], Change):
                    yield name, parameter, found[0]


def take_changes_off(model: nn.Module) -> None:
    """Makes of a model with changes what it was before, the very same parameters included."""
    for name, parameter, _ in list(changes_of(model)):
        parametrize.remove_parametrizations(model.get_submodule(name), parameter, leave_parametrized=False)
