"""LoRA (Hu et al. 2021, arXiv 2106.09685): ``h = x W0^T + bias + (alpha / r) (x A^T) B^T``.

peft's tuner, parameters and files; A is ``lora_A.<adapter>.weight`` (r, in_features), B ``lora_B.<adapter>.weight``
(out_features, r), alpha / r (alpha / sqrt(r) with ``use_rslora``) ``scaling[<adapter>]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftType
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.stock import ReadsStockFiles, drops, innermost, is_ordinary, plain_weight, settle_orientation
from hadamard_core.functional import low_rank_linear


class LoraLinear(Linear):
    """peft's LoRA layer with one op for the projection and its updates.

    What the op is not for goes peft's way: variants such as DoRA, ``lora_bias``, mixed batches (``adapter_names``),
    merged or disabled adapters, quantised or sharded weights, and modules whose call somebody has hooked or replaced.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (
            args
            or kwargs
            or self._disable_adapters
            or self.merged_adapters
            or not self.cast_input_dtype_enabled
            or not is_ordinary(x)
        ):
            return super().forward(x, *args, **kwargs)
        # Past nn.Module.__getattr__, which would take as long as the rest of this.
        modules = self._modules
        base, all_down, all_up = modules["base_layer"], modules["lora_A"]._modules, modules["lora_B"]._modules
        names = [name for name in self.active_adapters if name in all_down]
        weight = plain_weight(base)
        downs = [plain_weight(all_down[name]) for name in names]
        ups = [plain_weight(all_up[name]) for name in names]
        if (
            weight is None
            or not names
            or any(down is None or up is None for down, up in zip(downs, ups, strict=True))
            or any(name in self.lora_variant or self.lora_bias[name] for name in names)
        ):
            return super().forward(x)
        projected = self._projected(x, names)
        if len(names) == 1:
            down, up, scaling = downs[0], ups[0], self.scaling[names[0]]
        else:
            # Side by side, several updates are one of a larger rank.
            down = torch.cat(downs)
            up = torch.cat([up * self.scaling[name] for name, up in zip(names, ups, strict=True)], dim=1)
            scaling = 1.0
        return low_rank_linear(x, weight, base.bias, down, up, scaling, projected=projected)

    def _projected(self, x: Tensor, names: Sequence[str]) -> Tensor | None:
        """``dropout(x) A^T`` of all adapters side by side; None if no adapter drops anything.

        Dropout sees the input in the adapter's dtype and the adapters take turns as in peft, so that equal seeds drop
        the same.
        """
        dropouts = self._modules["lora_dropout"]._modules
        if not any(drops(dropouts[name]) for name in names):
            return None
        downs = self.lora_A
        dropped = [downs[name](dropouts[name](x.to(downs[name].weight.dtype))) for name in names]
        return dropped[0] if len(dropped) == 1 else torch.cat(dropped, dim=-1)


def create_lora_linear(
    target: nn.Module, adapter_name: str, config: LoraConfig, parameter_name: str | None = None, **kwargs: Any
) -> LoraLinear | None:
    """A :class:`LoraLinear` around ``target``; None, which leaves the choice to peft, if it is no plain projection."""
    base = innermost(target)
    if parameter_name is not None or plain_weight(base) is None:
        return None
    is_conv1d = settle_orientation(config, base)
    return LoraLinear(target, adapter_name, config=config, is_target_conv_1d_layer=is_conv1d, **kwargs)


@dataclass
class LoraConfig(ReadsStockFiles, peft.LoraConfig, stock_type=PeftType.LORA):
    """``peft.LoraConfig``, whose plain projections become :class:`LoraLinear`.

    Fields, ``peft_type`` and files are those of peft. ``LoraConfig.from_pretrained`` reads any LoRA adapter of peft.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choose_layers()

    def choose_layers(self) -> None:
        # A function in place of a class: peft also offers quantised layers here, where they are subclasses of
        # nn.Linear, and takes None for an answer.
        self._register_custom_module({nn.Linear: create_lora_linear, Conv1D: create_lora_linear})
