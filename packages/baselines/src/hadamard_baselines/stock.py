"""Where this package meets peft's own layers and configs: what the op may take over, and whose files these are."""

from __future__ import annotations

import warnings
from typing import Any

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def plain_weight(module: nn.Module) -> Tensor | None:
    """The weight of a projection, (out_features, in_features), if the op may stand for calling the module, else None.

    It may where the module computes what its weight says, its weight is an ordinary tensor, and nobody has hooked or
    replaced its call, as accelerate and DeepSpeed do to move weights. Quantised layers are subclasses of ``nn.Linear``
    (bitsandbytes) or have a weight that is one of ``Tensor`` (torchao; sharded weights are, too).
    """
    kind = type(module)
    if kind is not nn.Linear and kind is not Conv1D:
        return None
    weight = module.weight
    if not is_ordinary(weight) or "forward" in module.__dict__:
        return None
    if module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks:
        return None
    return weight if kind is nn.Linear else weight.T


def is_ordinary(tensor: Tensor) -> bool:
    """Whether ``tensor`` is of no subclass with a behaviour of its own."""
    kind = type(tensor)
    return kind is Tensor or kind is nn.Parameter


def drops(dropout: nn.Module) -> bool:
    """Whether an adapter's dropout does anything; peft has ``nn.Identity`` where the probability is zero."""
    return dropout.training and type(dropout) is not nn.Identity


def innermost(target: nn.Module) -> nn.Module:
    """The projection itself, where ``target`` may already be an adapted one."""
    return target.get_base_layer() if isinstance(target, BaseTunerLayer) else target


def settle_orientation(config: PeftConfig, base_layer: nn.Module) -> bool:
    """Makes ``config.fan_in_fan_out`` what the layer is, as peft does, and returns it: True for ``Conv1D``."""
    is_conv1d = isinstance(base_layer, Conv1D)
    if config.fan_in_fan_out != is_conv1d:
        warnings.warn(
            f"fan_in_fan_out is {config.fan_in_fan_out}, but the target module is a {type(base_layer).__name__}; "
            f"it is set to {is_conv1d}.",
            stacklevel=2,
        )
        config.fan_in_fan_out = is_conv1d
    return is_conv1d


class ReadsStockFiles:
    """Makes ``from_pretrained`` of a config that subclasses one of peft return the subclass.

    The files say peft's own type, so that peft's own reading returns peft's own class. Subclasses have no fields of
    their own.
    """

    def __init_subclass__(cls, *, stock_type: PeftType, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._stock_type = stock_type

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """As peft's.

        Raises:
            ValueError: the attributes are those of another method.
        """
        found = kwargs.get("peft_type", cls._stock_type)
        if found != cls._stock_type:
            raise ValueError(
                f"The peft_type of this adapter is {getattr(found, 'value', found)}, and {cls.__module__}."
                f"{cls.__qualname__} reads {cls._stock_type.value}; use the config class of that method."
            )
        config = super().from_peft_type(**kwargs)
        if not isinstance(config, cls):
            # It went through peft's __post_init__ already, whose warnings are not to be repeated.
            stock, config = config, cls.__new__(cls)
            vars(config).update(vars(stock))
            config.choose_layers()
        return config

    def choose_layers(self) -> None:
        """Says which layers this config creates, where the tuner does not see that from the class."""
