"""BitFit (Ben Zaken, Goldberg and Ravfogel 2022, arXiv:2106.10199): the biases train, nothing else.

An adapter holds what training adds to each bias, ``y = x W^T + bias + change``: ``bitfit_bias`` for projections,
``bitfit_norm_bias`` for norms, starting at zero. The gradients, and with them what is learned, are those of unfrozen
biases; but biases that train in place are of one task, and peft does not save those of norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hadamard_baselines.everywhere import EverywhereConfig, EverywhereModel
from hadamard_baselines.stock import innermost
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.norm import TrainedNorm, is_norm
from hadamard_core.orientation import is_supported
from hadamard_core.registration import peft_type, register


@dataclass
class BitfitConfig(EverywhereConfig):
    """Configuration of BitFit; further fields as in ``EverywhereConfig`` and ``HadamardConfig``.

    By default the biases of all projections and norms of the backbone train. Whatever is chosen, modules without a bias
    are left out, and a model where none is left is refused. The paper's smaller variant, half of the biases, is
    ``roles=("query", "ffn_input")``.
    """

    package: ClassVar[tuple[str, str, str]] = ("BitFit", "hadamard-baselines", "hadamard_baselines")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("bitfit")


class BitfitLayer(AdapterLayer):
    """What both layers are, for peft to know them by."""


class BitfitLinear(BitfitLayer, ScaledLinear):
    """``y = x W^T + bias + change``; ``bitfit_bias`` holds the changes, (out_features,), slices side by side."""

    adapter_layer_names = ("bitfit_bias",)

    def create_parameters(self, adapter_name: str, config: BitfitConfig, sizes: Sequence[int]) -> None:
        self.bitfit_bias[adapter_name] = _start(sum(sizes), config)

    def vectors(self, adapter_name: str) -> list[Vectors]:
        change, slices = self.bitfit_bias[adapter_name], self.slices[adapter_name]
        if slices is None:
            return [Vectors(shift=change)]
        sizes = [own.size(self.out_features) for own in slices]
        return [Vectors(shift=each) for each in change.split(sizes)]


class BitfitNorm(BitfitLayer, TrainedNorm):
    """A norm whose bias trains; ``bitfit_norm_bias`` holds the changes, (features,)."""

    # The weight, which comes first, is never in its container.
    adapter_layer_names = ("bitfit_norm_weight", "bitfit_norm_bias")

    def add_adapter(self, adapter_name: str, config: BitfitConfig) -> None:
        self.bitfit_norm_bias[adapter_name] = _start(len(self.get_base_layer().weight), config)


class BitfitModel(EverywhereModel):
    """Trains a model's biases; made by ``peft.get_peft_model(model, BitfitConfig(...))``."""

    prefix = "bitfit_"
    tuner_layer_cls = BitfitLayer
    linear_class = BitfitLinear
    norm_class = BitfitNorm
    _chosen: tuple[BitfitConfig, set[str]] | None = None

    def _prepare_adapter_config(self, peft_config: BitfitConfig, model_config: dict) -> BitfitConfig:
        self._chosen = None  # The model may have changed since.
        return super()._prepare_adapter_config(peft_config, model_config)

    def _check_target_module_exists(self, peft_config: BitfitConfig, key: str) -> Any:
        found = super()._check_target_module_exists(peft_config, key)
        return found if not found or key in self._adapted(peft_config) else False

    def _adapted(self, peft_config: BitfitConfig) -> set[str]:
        """The modules that the config names, less those without a bias.

        Raises:
            ValueError: none is left.
        """
        if self._chosen is None or self._chosen[0] is not peft_config:
            check = super()._check_target_module_exists
            named = {name: module for name, module in self.model.named_modules() if name and check(peft_config, name)}
            chosen = {name for name, module in named.items() if not _lacks_bias(innermost(module))}
            if not chosen:
                raise ValueError(
                    f"BitFit trains biases, and none of the {len(named)} modules to adapt in a "
                    f"{type(self.model).__name__} has one (such as {next(iter(named))}); choose modules that have, or "
                    "another method."
                )
            self._chosen = peft_config, chosen
        return self._chosen[1]


def _lacks_bias(module: nn.Module) -> bool:
    """Whether a module could be adapted if it had a bias; others are for the tuner to refuse."""
    return (is_supported(module) or is_norm(module)) and getattr(module, "bias", None) is None


def _start(size: int, config: BitfitConfig) -> nn.Parameter:
    values: Tensor = torch.zeros(size) if config.init_weights else 0.2 * torch.randn(size)
    return nn.Parameter(values)


register("bitfit", BitfitConfig, BitfitModel)
