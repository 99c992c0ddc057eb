"""What BitFit and SSF share: by default they adapt every projection and norm of a model, but not its task's head.

``roles`` or ``target_modules`` choose some of them. Without either, a model's backbone is adapted: of each transformers
model ``base_model`` without its pooler and output embeddings, of any other module all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from hadamard_baselines.stock import innermost
from hadamard_core.accounting import is_head
from hadamard_core.adapter_layer import AdapterLayer
from hadamard_core.config import HadamardConfig
from hadamard_core.norm import is_norm
from hadamard_core.orientation import has_known_forward, is_supported
from hadamard_core.targets import Target
from hadamard_core.tuner import HadamardTuner, check_name


@dataclass
class EverywhereConfig(HadamardConfig):
    """Base of the configs whose default is all projections and norms of the backbone.

    Args:
        roles: what to adapt, by role; everything if neither it nor ``target_modules`` is given. Of a fused projection,
            only the slices that have the role.
        layers_to_transform: indices of the layers to adapt. Of everything, what is in no layer, such as the norm of
            the embeddings, is then left out.
    """

    roles: Sequence[str] | None = field(
        default=None, metadata={"help": "What to adapt, by role; everything without it and target_modules."}
    )

    def adapts_everything(self) -> bool:
        """Whether neither ``roles`` nor ``target_modules`` says what to adapt."""
        return self.roles is None and self.target_modules is None


class EverywhereModel(HadamardTuner):
    """Base of the tuners with an :class:`EverywhereConfig`.

    Subclasses set ``tuner_layer_cls`` to a common base of their two layers.
    """

    linear_class: ClassVar[type[AdapterLayer]]
    norm_class: ClassVar[type[AdapterLayer]]
    # The config whose modules were looked up last, and their names: peft asks about one module at a time.
    _everything: tuple[EverywhereConfig, set[str]] | None = None

    def layer_class(self, target: nn.Module) -> type[AdapterLayer]:
        return self.norm_class if is_norm(target) else self.linear_class

    def _prepare_adapter_config(self, peft_config: EverywhereConfig, model_config: dict) -> EverywhereConfig:
        self._everything = None  # The model may have changed since.
        return super()._prepare_adapter_config(peft_config, model_config)

    def _targets(self, peft_config: EverywhereConfig) -> dict[str, Target]:
        return {} if peft_config.adapts_everything() else super()._targets(peft_config)

    def _check_target_module_exists(self, peft_config: EverywhereConfig, key: str) -> Any:
        if not peft_config.adapts_everything():
            return super()._check_target_module_exists(peft_config, key)
        if self._everything is None or self._everything[0] is not peft_config:
            names = projections_and_norms(self.model)
            asked = peft_config.layers_to_transform
            if asked is not None and asked != []:
                names = _in_layers(names, asked, peft_config.layers_pattern)
            self._everything = peft_config, set(names)
        return check_name(peft_config, key, [key] if key in self._everything[1] else [])


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a projection that can be adapted."""
    return is_supported(module) and has_known_forward(module)


def projections_and_norms(model: nn.Module) -> list[str]:
    """The names of the projections and norms of a model's backbone, in its order.

    An adapted module is found under its own name. What cannot be adapted is left out: modules that peft trains a copy
    of, and those of an ``nn.MultiheadAttention``, which uses its weights without calling them.
    """
    return list(_walk(model, "", set()))


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[str]:
    if module in seen or isinstance(module, (AuxiliaryTrainingWrapper, nn.MultiheadAttention)):
        return
    seen.add(module)
    if is_norm(innermost(module)) or is_projection(innermost(module)):
        yield name
        return
    for own_name, child in module.named_children():
        if not (isinstance(module, PreTrainedModel) and is_head(child, module)):
            yield from _walk(child, f"{name}.{own_name}" if name else own_name, seen)


def _in_layers(names: Sequence[str], asked: Sequence[int] | int, patterns: Sequence[str] | str | None) -> list[str]:
    """Those of the modules that are in these layers, which are counted by peft's rules.

    Raises:
        ValueError: there is no such layer.
    """
    asked = {asked} if isinstance(asked, int) else set(asked)
    numbers = {name: _layer_number(name, patterns) for name in names}
    known = {number for number in numbers.values() if number is not None}
    if not asked <= known:
        raise ValueError(
            f"layers_to_transform is {sorted(asked)}, but the layers with projections or norms are {sorted(known)}; "
            "give some of these."
        )
    return [name for name, number in numbers.items() if number in asked]


def _layer_number(name: str, patterns: Sequence[str] | str | None) -> int | None:
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(\d+)\.", f".{name}.")
        return int(match[1]) if match else None
    patterns = [patterns] if isinstance(patterns, str) else patterns
    matches = (re.match(rf"(?:.*?\.)?(?:{pattern})\.(\d+)\.", f"{name}.") for pattern in patterns)
    return next((int(match[1]) for match in matches if match), None)
