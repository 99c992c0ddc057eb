"""The tuner that all methods share: finds the modules to adapt, by peft's rules or by role, and wraps them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from torch import nn

from hadamard_core.config import HadamardConfig
from hadamard_core.layer import ScaledLinear
from hadamard_core.orientation import is_supported
from hadamard_core.targets import Target, find_targets


class HadamardTuner(BaseTuner):
    """Base of the tuners of the family.

    Subclasses set ``prefix``, the prefix of their layers' parameter containers, and ``tuner_layer_cls``, a
    :class:`~hadamard_core.layer.ScaledLinear`.
    """

    tuner_layer_cls: type[ScaledLinear]
    # peft's table of default modules for each architecture; roles are the default here.
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: HadamardConfig, model_config: dict) -> HadamardConfig:
        self._targets: dict[str, Target] = {}
        if peft_config.target_modules is None:
            self._targets = find_targets(self.model, peft_config.roles)
        return peft_config

    def _check_target_module_exists(self, peft_config: HadamardConfig, key: str) -> Any:
        if peft_config.target_modules is not None:
            return check_target_module_exists(peft_config, key)
        if key not in self._targets:
            return False
        # A suffix, not the whole name: peft does not look at layers_to_transform where the whole name is given.
        by_suffix = dataclasses.replace(peft_config, roles=None, target_modules=[key.rpartition(".")[2]])
        return check_target_module_exists(by_suffix, key)

    def _create_and_replace(
        self,
        peft_config: HadamardConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        found = self._targets.get(current_key)
        slices = None if found is None else found.slices
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, slices)
            return
        if not is_supported(target):
            raise ValueError(
                f"Target module {current_key} is a {type(target).__name__}, which is not supported; target nn.Linear "
                "or transformers' Conv1D modules, or leave it out with exclude_modules."
            )
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"Target module {current_key} belongs to an nn.MultiheadAttention, which uses its weight without "
                "calling it, so that an adapter would do nothing; leave it out with exclude_modules."
            )
        new_module = self.tuner_layer_cls(target, adapter_name, peft_config, slices)
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._replace_module(parent, target_name, new_module, target)
