"""The Hadamard adapter as a peft tuner."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from hadamard_adapter.config import HadamardAdapterConfig
from hadamard_adapter.layer import HadamardLayer, HadamardLinear, HadamardNorm
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.norm import is_norm
from hadamard_core.targets import Target, find_targets, known_roles
from hadamard_core.tuner import HadamardTuner, check_name


class HadamardAdapterModel(HadamardTuner):
    """Adapts the attention outputs of a model; made by ``peft.get_peft_model(model, HadamardAdapterConfig(...))``."""

    prefix = "hadamard_"
    tuner_layer_cls = HadamardLayer
    _found_norms: tuple[HadamardAdapterConfig, set[str]] | None = None

    def _prepare_adapter_config(self, peft_config: HadamardAdapterConfig, model_config: dict) -> HadamardAdapterConfig:
        self._found_norms = None  # The model may have changed since.
        return super()._prepare_adapter_config(peft_config, model_config)

    def layer_class(self, target: nn.Module) -> type[AdapterLayer]:
        return HadamardNorm if is_norm(target) else HadamardLinear

    def _check_target_module_exists(self, peft_config: HadamardAdapterConfig, key: str) -> Any:
        if key in self._norms(peft_config):
            return check_name(peft_config, key, [key])
        if peft_config.weight or peft_config.bias:
            return super()._check_target_module_exists(peft_config, key)
        return check_name(peft_config, key, [])

    def _create_and_replace(
        self, peft_config: HadamardAdapterConfig, adapter_name: str, target: nn.Module, *args: Any, current_key: str
    ) -> None:
        base = target.get_base_layer() if isinstance(target, HadamardLayer) else target
        trains_as_norm = current_key in self._norms(peft_config)
        if trains_as_norm and not is_norm(base):
            raise ValueError(
                f"Module {current_key} is named as a norm and is a {type(base).__name__}, which is no norm over the "
                "last dimension with a weight of its own; name others by norm_modules, or give norm='none'."
            )
        if is_norm(base) and not trains_as_norm:
            raise ValueError(
                f"Target module {current_key} is a {type(base).__name__}, a norm; name it in norm_modules, or leave it "
                "out with exclude_modules."
            )
        super()._create_and_replace(peft_config, adapter_name, target, *args, current_key=current_key)

    # peft reads a field ``bias`` of any config as its own, which says whether the base model's biases train; here it
    # says whether b does. The four places where it does so:

    def _check_new_adapter_config(self, config: HadamardAdapterConfig) -> None:
        pass

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        own, self.peft_config = self.peft_config, dict.fromkeys(self.peft_config)
        try:
            super()._mark_only_adapters_as_trainable(model)
        finally:
            self.peft_config = own

    def disable_adapter_layers(self) -> None:
        self._enable_adapter_layers(enabled=False)

    @classmethod
    def _get_learnable_bias_state_dict(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def _norms(self, config: HadamardAdapterConfig) -> set[str]:
        """The names of the norms that train."""
        if self._found_norms is None or self._found_norms[0] is not config:
            self._found_norms = config, set(self._find_norms(config))
        return self._found_norms[1]

    def _find_norms(self, config: HadamardAdapterConfig) -> list[str]:
        if config.norm == "none":
            return []
        every = [name for name, _ in self.model.named_modules()]
        adapted = [] if config.target_modules is None else [n for n in every if check_target_module_exists(config, n)]
        if config.target_modules is not None and not adapted:
            return []  # peft says so
        if config.norm_modules is not None:
            rules = {}
            if not isinstance(config.norm_modules, str):
                rules = {name: getattr(config, name) for name in ("layers_to_transform", "layers_pattern")}
            names = [name for name in every if check_name(config, name, config.norm_modules, **rules)]
            if not names:
                given = config.norm_modules
                words = repr(given) if isinstance(given, str) else ", ".join(sorted(given))
                raise ValueError(f"norm_modules={words} was not found in the base model; name modules that it has.")
            return names
        roles = self._norm_roles(config)
        if config.target_modules is None:
            return list(find_targets(self.model, roles, config.layers_to_transform, config.layers_pattern))
        norms = find_targets(self.model, roles).values()
        return [norm.name for norm in norms if any(name.startswith(_layer(norm)) for name in adapted)]

    def _norm_roles(self, config: HadamardAdapterConfig) -> list[str]:
        """The roles of the norms that ``config.norm`` means, each with the scope of its attention."""
        try:
            known = known_roles(self.model)
        except ValueError as error:
            raise ValueError(
                f"norm={config.norm!r} names norms by role, and there are no known roles in a "
                f"{type(self.model).__name__}; name them by norm_modules, or give norm='none'."
            ) from error
        kinds = ("attention", "output") if config.norm == "both" else (config.norm,)
        found = []
        for scope in dict.fromkeys(role.rpartition(".")[0] for role in config.roles or ("",)):
            for kind in kinds:
                # A feed-forward is nobody's cross-attention, but of the stack that has one.
                scopes = ("decoder", "") if (scope, kind) == ("cross", "output") else (scope,)
                candidates = [f"{each}.{kind}_norm".lstrip(".") for each in scopes]
                role = next((candidate for candidate in candidates if candidate in known), None)
                if role is None:
                    raise ValueError(
                        f"norm={config.norm!r} asks for modules in the role {candidates[0]!r}, which this "
                        f"{type(self.model).__name__} does not have; name norms by norm_modules, or give norm='none' "
                        f"(roles of this model: {', '.join(known)})."
                    )
                found.append(role)
        return found


def _layer(target: Target) -> str:
    """The name of the layer that a module is in, with a dot behind it."""
    return re.match(rf".*?\b{target.layer}\.", target.name)[0]
