"""The layers of bottleneck adapters: one that changes what a module returns, and a norm that trains.

Papers' symbols and where they are, with d features of the module's output and m of the bottleneck: the down-projection
is ``bottleneck_down`` (m, d) and ``bottleneck_down_bias`` (m,), the up-projection ``bottleneck_up`` (d, m) and
``bottleneck_up_bias`` (d,). What training adds to the weight and bias of Lin's own layer norm, which are ones and zeros
at the start, is in ``bottleneck_ln_weight`` and ``bottleneck_ln_bias`` (d,), and what it adds to those of the model's
norms in ``bottleneck_norm_weight`` and ``bottleneck_norm_bias``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, relu

from hadamard_baselines.bottleneck.config import ACTIVATIONS, KINDS, BottleneckConfig
from hadamard_core.adapter_layer import NO_ADAPTER, AdapterLayer
from hadamard_core.norm import TrainedNorm

_FUNCTIONS = dict(zip(ACTIVATIONS, (gelu, relu), strict=True))
_DOWN_STD = 0.02

CHILD = "output_adapter"
"""The name of an adapter among the children of the module whose output it adapts. It is without the method's prefix,
which peft takes for that of parameters."""

CANNOT_MERGE = (
    "A bottleneck adapter is no linear function, so that no weights of the base model can hold it; use the model as it "
    "is, or call unload() to have the base model back."
)


class BottleneckLayer(AdapterLayer):
    """What both layers are, for peft to know them by."""


class ModuleOutput(nn.Module):
    """Stands for what a module returns, as the base layer of an adapter: the identity.

    Attributes:
        width: the number of features, d.
    """

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__()
        self.width = width
        self._module = (module,)  # in a tuple, because it is no part of this one

    @property
    def weight(self) -> Tensor:
        """A parameter of the module, which has the device and dtype of what it returns."""
        return next(self._module[0].parameters())

    def forward(self, x: Tensor) -> Tensor:
        return x


class OutputBottleneck(BottleneckLayer):
    """``z + up(f(down(z)))``, or with a norm of its own ``z + up(f(down(LN(z))))``, where z is what a module returns.

    It is not put around the module: it is a child of it, and a forward hook of the module hands it what is returned.
    So the module keeps its name, its class and its attributes, which transformers reads (a layer's ``attention_type``,
    the dtype of T5's ``wo.weight``), and the modules inside keep their names, so that other adapters find them. What
    is recorded as a layer's hidden state is what the next layer gets.

    Several active adapters apply one after another, in the order in which they are named. The products are computed
    in the dtype of z, or that of autocast, from parameters in fp32; what is returned has the dtype of z.
    """

    adapter_layer_names = (
        "bottleneck_down",
        "bottleneck_down_bias",
        "bottleneck_up",
        "bottleneck_up_bias",
        "bottleneck_ln_weight",
        "bottleneck_ln_bias",
    )
    other_param_names = (*BottleneckLayer.other_param_names, "activation")

    def prepare(self) -> None:
        self.activation: dict[str, str] = {}

    def add_adapter(self, adapter_name: str, config: BottleneckConfig) -> None:
        width, inner = self.get_base_layer().width, config.bottleneck
        spread = 0.0 if config.init_weights else 0.2
        self.activation[adapter_name] = config.activation
        self.bottleneck_down[adapter_name] = _random(spread or _DOWN_STD, inner, width)
        self.bottleneck_down_bias[adapter_name] = _random(spread, inner)
        self.bottleneck_up[adapter_name] = _random(spread, width, inner)
        self.bottleneck_up_bias[adapter_name] = _random(spread, width)
        if KINDS[config.kind].own_norm:
            self.bottleneck_ln_weight[adapter_name] = _random(spread, width)
            self.bottleneck_ln_bias[adapter_name] = _random(spread, width)

    def attach(self, module: nn.Module) -> None:
        """Makes this the child :data:`CHILD` of ``module``, which then returns what this makes of its output."""
        module.add_module(CHILD, self)
        # Before hooks that are there, such as those of transformers that record hidden states.
        self._handle = module.register_forward_hook(_adapt_output, prepend=True)

    def detach_from(self, module: nn.Module) -> None:
        """Undoes :meth:`attach`."""
        self._handle.remove()
        delattr(module, CHILD)

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        for name in adapter_names:
            x = self._adapted_by(x, name)
        return x

    def _adapted_by(self, z: Tensor, adapter_name: str) -> Tensor:
        # Past the attribute access of modules, which would take as long as a small product.
        modules = self._modules
        down, down_bias, up, up_bias, scale, shift = (
            modules[name]._parameters.get(adapter_name) for name in self.adapter_layer_names
        )
        x = z
        if scale is not None:
            # Weight and bias of the norm go into the product, so that they need not be rounded to the dtype of z. The
            # sum is no product of a matrix and a vector, whose last bits depend on where the matrix lies in memory.
            x = layer_norm(z, z.shape[-1:])
            down_bias = down_bias + (down * shift).sum(-1)
            down = torch.addcmul(down, down, scale)
        inner = _FUNCTIONS[self.activation[adapter_name]](linear(x, down.to(z.dtype), down_bias.to(z.dtype)))
        change = linear(inner, up.to(z.dtype), up_bias.to(z.dtype))
        return change.add_(z) if change.dtype == z.dtype else (z + change).to(z.dtype)

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        y = x.clone()
        for number, name in enumerate(adapter_names):
            if name != NO_ADAPTER:
                rows = (index == number).nonzero().squeeze(-1)
                y.index_copy_(0, rows, self._adapted_by(x.index_select(0, rows), name))
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """A bottleneck cannot be merged.

        Raises:
            ValueError: always.
        """
        raise ValueError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged here."""


class BottleneckNorm(BottleneckLayer, TrainedNorm):
    """A norm of the model that trains with the bottlenecks of its layer."""

    adapter_layer_names = ("bottleneck_norm_weight", "bottleneck_norm_bias")


def _adapt_output(module: nn.Module, args: tuple, output: Any) -> Any:
    """A forward hook: hands what a module returns, alone or first in a tuple, to its adapter."""
    adapter = module._modules[CHILD]
    if isinstance(output, Tensor):
        return adapter(output)
    if type(output) is tuple and output and isinstance(output[0], Tensor):
        return (adapter(output[0]), *output[1:])
    raise TypeError(
        f"A {type(module).__name__} returned a {type(output).__name__}, which a bottleneck adapter cannot act on; name "
        "modules that return a tensor, or a tuple that begins with one."
    )


def _random(std: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(std * torch.randn(shape) if std else torch.zeros(shape))
