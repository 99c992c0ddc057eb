"""Bottleneck adapters as a peft tuner."""

from __future__ import annotations

from typing import Any, NoReturn

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from hadamard_baselines.bottleneck.config import KINDS, BottleneckConfig
from hadamard_baselines.bottleneck.layer import (
    CANNOT_MERGE,
    CHILD,
    BottleneckLayer,
    BottleneckNorm,
    ModuleOutput,
    OutputBottleneck,
)
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.norm import is_norm
from hadamard_core.orientation import features, is_supported
from hadamard_core.registration import register
from hadamard_core.targets import Target, find_targets
from hadamard_core.tuner import HadamardTuner, check_name

NORM_ROLES = ("attention_norm", "output_norm")


class BottleneckModel(HadamardTuner):
    """Adapts a model with bottlenecks; made by ``peft.get_peft_model(model, BottleneckConfig(...))``."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    _found_norms: tuple[BottleneckConfig, set[str]] | None = None

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict) -> BottleneckConfig:
        self._found_norms = None  # The model may have changed since.
        return super()._prepare_adapter_config(peft_config, model_config)

    def _targets(self, peft_config: BottleneckConfig) -> dict[str, Target]:
        found = super()._targets(peft_config)
        if KINDS[peft_config.kind].on_layers:
            return {target.layer_name: target for target in found.values()}
        return found

    def _norms(self, config: BottleneckConfig) -> set[str]:
        """The names of the norms that train: all in the layers that are adapted, or in which something is."""
        if self._found_norms is None or self._found_norms[0] is not config:
            self._found_norms = config, self._find_norms(config) if config.norms else set()
        return self._found_norms[1]

    def _find_norms(self, config: BottleneckConfig) -> set[str]:
        adapted = list(self._targets(config))
        if config.target_modules is not None:
            adapted = [name for name, _ in self.model.named_modules() if check_target_module_exists(config, name)]
        try:
            norms = find_targets(self.model, NORM_ROLES)
        except ValueError as error:
            raise ValueError(
                f"norms=True means norms by their role, and there are no known roles in a {type(self.model).__name__}; "
                "give norms=False."
            ) from error
        return {
            name for name, norm in norms.items() if any(f"{own}.".startswith(f"{norm.layer_name}.") for own in adapted)
        }

    def _check_target_module_exists(self, peft_config: BottleneckConfig, key: str) -> Any:
        if key in self._norms(peft_config):
            return check_name(peft_config, key, [key])
        child = f"{key}.{CHILD}"
        if key.endswith(f".{CHILD}"):  # a regular expression may match it
            return False
        return super()._check_target_module_exists(peft_config, key) and check_name(peft_config, child, [child])

    def layer_class(self, target: nn.Module) -> type[AdapterLayer]:
        return BottleneckNorm

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        trains = current_key in self._norms(peft_config)
        adapter = target._modules.get(CHILD)
        named = peft_config.target_modules is not None and check_target_module_exists(peft_config, current_key)
        if (adapter is not None or named) if trains else isinstance(target, BottleneckNorm):
            raise ValueError(
                f"Module {current_key} is to be trained as a norm and to have its output adapted, by one adapter or by "
                "two of a model; leave it out of one with exclude_modules or norms=False."
            )
        if trains:
            super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)
        elif adapter is not None:
            adapter.update_layer(adapter_name, peft_config)
        else:
            output = ModuleOutput(target, self._width(peft_config, target, parent, current_key))
            adapter = OutputBottleneck(output, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                adapter.requires_grad_(False)
            adapter.attach(target)

    def _width(self, config: BottleneckConfig, target: nn.Module, parent: nn.Module, key: str) -> int:
        """The number of features of what a module returns."""
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"Target module {key} belongs to an nn.MultiheadAttention, which uses its weight without calling it, "
                "so that an adapter would do nothing; leave it out with exclude_modules."
            )
        if config.target_modules is None:
            target = self.model.get_submodule(self._targets(config)[key].name)
        if is_supported(target):
            return features(target)[1]
        if is_norm(target):
            return len(target.weight)
        raise ValueError(
            f"Target module {key} is a {type(target).__name__}, of which it is not known how many features it returns; "
            "target nn.Linear, transformers' Conv1D or norm modules, or leave it out with exclude_modules."
        )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, OutputBottleneck):  # peft unloads it
            child.detach_from(parent)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> NoReturn:
        raise ValueError(CANNOT_MERGE)


register("bottleneck", BottleneckConfig, BottleneckModel)
