"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454): ``h = x W0^T + bias + b * ((d * (x A^T)) B^T)``.

peft's parameters and files; A is ``vera_A`` (r, in_features) and B ``vera_B`` (out_features, r), random, frozen and one
pair for the whole model, of which a layer takes as many columns and rows as it has features. d is ``vera_lambda_d``
(r,), b ``vera_lambda_b`` (out_features,): these are trained.

The layers of one attention block get the same input, so that ``x A^T`` is the same for all of them; it is computed
once, see :class:`~hadamard_baselines.shared_projection.SharedProjection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.vera.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from hadamard_baselines.shared_projection import SharedProjection
from hadamard_baselines.stock import ReadsStockFiles, drops, innermost, is_ordinary, plain_weight, settle_orientation
from hadamard_core.functional import low_rank_linear, prefers_composing
from hadamard_core.functional.operators import working_dtype


@dataclass
class VeraConfig(ReadsStockFiles, peft.VeraConfig, stock_type=PeftType.VERA):
    """``peft.VeraConfig``, whose plain projections become :class:`VeraLinear`.

    Fields, ``peft_type`` and files are those of peft. ``VeraConfig.from_pretrained`` reads any VeRA adapter of peft.
    """

    save_projection: bool = field(
        default=True,
        metadata={
            "help": "Save A and B with the adapter: 4 * r * (largest in_features + largest out_features) bytes, 2.1 MB "
            "for RoBERTa-large at r=256, beside the 0.25 MB that are trained. Without them, they are drawn again from "
            "projection_prng_key when the adapter is loaded, which another release of PyTorch may do differently."
        },
    )


class VeraLinear(Linear):
    """peft's VeRA layer with one op for the projection and its update.

    What the op is not for goes peft's way: several active adapters, merged or disabled ones, quantised or sharded
    weights, and projections whose call somebody has hooked or replaced.

    Attributes:
        block: the name of the module whose child this layer is.
        shared_projection: what the layers of the model share; None for a layer without a model.
    """

    block: str = ""
    shared_projection: SharedProjection | None = None
    cast_input_dtype_enabled: bool = True

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (
            args
            or kwargs
            or self._disable_adapters
            or self.merged_adapters
            or self.quantization_backend is not None
            or not self.cast_input_dtype_enabled
            or not is_ordinary(x)
        ):
            return super().forward(x, *args, **kwargs)
        # Past nn.Module.__getattr__, which would take as long as the rest of this.
        modules = self._modules
        base, scales_down = modules["base_layer"], modules["vera_lambda_d"]
        names = [name for name in self.active_adapters if name in scales_down]
        weight = plain_weight(base)
        if weight is None or len(names) != 1:
            return super().forward(x)
        name = names[0]
        matrix, up = modules["vera_A"]._buffers[name], modules["vera_B"]._buffers[name]
        if matrix.device != x.device or up.device != x.device:
            return super().forward(x)
        scale_down, scale_up = scales_down[name], modules["vera_lambda_b"][name]
        down = matrix if matrix.shape[1] == self.in_features else matrix[:, : self.in_features]
        up = up if up.shape[0] == self.out_features else up[: self.out_features]
        if drops(dropout := modules["vera_dropout"]._modules[name]):
            # In the adapter's dtype as in peft, so that equal seeds drop the same.
            projected, compute = linear(dropout(x.to(scale_down.dtype)), down), "low_rank"
        elif self.shared_projection is None or torch.compiler.is_compiling():
            projected, compute = None, "auto"
        else:
            trains = torch.is_grad_enabled() and scale_down.requires_grad
            projected, compute = self._shared(x, matrix, weight, trains)
        y = low_rank_linear(
            x, weight, base.bias, down, up, 1.0, scale_down, scale_up, projected=projected, compute=compute
        )
        # Under autocast, peft's VeRA returns the dtype it was given.
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def _shared(self, x: Tensor, matrix: Tensor, weight: Tensor, trains: bool) -> tuple[Tensor | None, str]:
        """``x A^T`` that the layers of a block share, None to leave it to the op, and how the op is to compute."""
        composes = not weight.requires_grad and prefers_composing(math.prod(x.shape[:-1]), weight, working_dtype(x))
        if composes and not trains:
            return None, "compose"  # Only the gradients of d and b read the projection then.
        projected = self.shared_projection.get(x, matrix, self.block, self, differentiable=not composes)
        return projected, "compose" if composes else "low_rank"


class VeraModel(peft.VeraModel):
    """peft's tuner for VeRA, which makes :class:`VeraLinear` of plain projections where the config is ours.

    Given a config of peft it makes the layers of peft.
    """

    def _pre_injection_hook(self, model: nn.Module, config: peft.VeraConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self.shared_projection = SharedProjection()

    def _create_and_replace(
        self,
        vera_config: peft.VeraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        super()._create_and_replace(vera_config, adapter_name, target, target_name, parent, current_key, **kwargs)
        layer = getattr(parent, target_name)
        if isinstance(layer, VeraLinear):
            layer.block = current_key.rpartition(".")[0]
            layer.shared_projection = self.shared_projection

    @staticmethod
    def _create_new_module(
        vera_config: peft.VeraConfig, vera_A: Any, vera_B: Any, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> Linear:
        base = innermost(target)
        if not isinstance(vera_config, VeraConfig) or plain_weight(base) is None:
            return peft.VeraModel._create_new_module(vera_config, vera_A, vera_B, adapter_name, target, **kwargs)
        kwargs["is_target_conv_1d_layer"] = settle_orientation(vera_config, base)
        return VeraLinear(target, vera_A, vera_B, adapter_name, config=vera_config, **kwargs)


def register() -> None:
    """Has peft use :class:`VeraModel` for VeRA, so that the class of the config decides about the layers.

    A peft type of its own would decide as well, but peft compares types when a second adapter is added or loaded, and
    the files say VERA. Registering again changes nothing.

    Raises:
        RuntimeError: somebody else has replaced peft's tuner.
    """
    current = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VERA]
    ours = f"{VeraModel.__module__}.{VeraModel.__qualname__}"
    if current is not peft.VeraModel and f"{current.__module__}.{current.__qualname__}" != ours:
        raise RuntimeError(
            f"peft's tuner for VeRA is {current.__module__}.{current.__qualname__} in this process, neither peft's own "
            f"nor {ours}; do not import both packages that replace it."
        )
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VERA] = VeraModel


register()
