"""What the methods of this package have in common in the harness: where they act, on fused projections too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from hadamard_core.config import DEFAULT_ROLES
from hadamard_core.fused import as_linear, fuse, split_for, split_fused
from hadamard_core.layer_selection import check_selection, layers_to_transform
from hadamard_core.method import PeftMethod
from hadamard_core.targets import known_roles

EVERY_PROJECTION = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_input",
    "ffn_gate",
    "ffn_output",
)
"""All projections of a layer; a model without gates in its feed-forwards has no ``ffn_gate``."""


NO_MIXED_BATCHES = MappingProxyType(
    {"mix": "peft ignores `adapter_names` with it: the whole batch is computed with the active adapter"}
)
"""What most of peft's own methods cannot, for ``cannot`` of a method."""


@dataclass(frozen=True, kw_only=True)
class OnProjections(PeftMethod):
    """A method of peft's that adapts whole projections, by role or by name.

    A part of a fused projection becomes a projection of its own first (:mod:`hadamard_core.fused`), so that query and
    value mean just these on GPT-2, too; merging puts it back.

    Attributes:
        config_class: the method's config.
        linear_only: whether peft's layers take ``nn.Linear`` alone, so that every ``Conv1D`` becomes one.
    """

    config_class: ClassVar[type[PeftConfig]]
    linear_only: ClassVar[bool] = True

    roles: tuple[str, ...] = DEFAULT_ROLES
    """Which projections are adapted, by role: query, key, value, attention_output, ffn_input, ffn_output, ..."""
    target_modules: tuple[str, ...] | None = None
    """Names or suffixes of the modules to adapt, by peft's rules, in place of roles."""
    layers: tuple[int | str, ...] | None = None
    """The layers to adapt: numbers from 0, ranges (2-5), top:N, bottom:N, every:N; all if not given."""

    def __post_init__(self) -> None:
        if self.layers is not None:
            if self.target_modules is not None:
                raise ValueError(
                    "--method.layers chooses among modules by role, and --method.target-modules names them: give one "
                    "of the two"
                )
            check_selection(self.layers)

    def targets(self, model: PreTrainedModel) -> list[str]:
        """The names of the modules to adapt, which are in ``model`` after this."""
        if self.target_modules is not None:
            names = list(self.target_modules)
            if self.linear_only:
                as_linear(model, modules_named(model, names))
            return names
        roles = self.roles
        if "ffn_gate" in roles and "ffn_gate" not in known_roles(model):
            roles = tuple(role for role in roles if role != "ffn_gate")
        layers = layers_to_transform(model, self.layers, roles)
        names = split_fused(model, roles, layers)
        if self.linear_only:
            as_linear(model, names)
        return names

    def load(self, base: PreTrainedModel, directory: Path) -> PeftModel:
        # With the config given, the layers are those of its class where the files are peft's own.
        config = self.config_class.from_pretrained(str(directory))
        self.prepare(base, config)
        return PeftModel.from_pretrained(base, str(directory), config=config)

    def prepare(self, base: PreTrainedModel, config: PeftConfig) -> None:
        """Makes a fresh base model what it was when the adapter that ``config`` is of was put on it."""
        names = config.target_modules
        names = [] if names is None or isinstance(names, str) else list(names)
        split_for(base, names)
        if self.linear_only:
            as_linear(base, modules_named(base, names))

    def merge(self, model: PeftModel) -> nn.Module:
        unwrap_heads(model)
        return fuse(super().merge(model))


def unwrap_heads(model: PeftModel) -> None:
    """Puts the trained heads of the active adapter in the place of peft's wrappers around them.

    In peft 0.21 the ``merge_and_unload`` of some methods leaves the wrappers, and that of others asks a head for its
    weight, which one of several layers, such as RoBERTa's, has not.
    """
    (name,) = model.active_adapters
    inner = model.get_base_model()
    for path, module in list(inner.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            inner.set_submodule(path, module.modules_to_save[name])


def modules_named(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The full names of the modules that these names, or suffixes of names, mean to peft."""
    return [
        full for full, _ in model.named_modules() if any(full == name or full.endswith(f".{name}") for name in names)
    ]


def require_at_least(name: str, value: float, minimum: float) -> None:
    """Raises:
    ValueError: a setting of this name is below its minimum, or not finite.
    """
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"--method.{name} is {value}: it must be at least {minimum}")


def require_positive(name: str, value: float) -> None:
    """Raises:
    ValueError: a setting of this name is not above 0, or not finite.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--method.{name} is {value}: it must be above 0")


def require_share(name: str, value: float) -> None:
    """Raises:
    ValueError: a setting of this name is below 0, or not below 1.
    """
    if not 0 <= value < 1:
        raise ValueError(f"--method.{name} is {value}: it must be at least 0 and below 1")
