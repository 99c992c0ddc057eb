"""PreLayer: trained activations at positions in front of the text, in every layer.

"Prefix-layer tuning" of the LoRA paper (Hu et al. 2021, arXiv:2106.09685, section 5.1): the activations after the
embeddings and after every layer are trained at ``l_p`` special positions in front of the text, those computed by the
layers before are replaced; ``L * d_model * l_p`` parameters. (The paper also has ``l_i`` such positions behind the
prompt, which are none here.)

Since what a layer computes at these positions is thrown away, they act through the keys and values alone that each
frozen layer computes of the activations entering it: one pass of the frozen layers over the ``l_p`` positions fills a
cache, which the text then reads (:mod:`hadamard_baselines.positions_in_front`). In the code the activations entering a
layer are ``prelayer_activations``, (positions, hidden size), held by the projection that makes its keys.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.positions_in_front import (
    CANNOT_MERGE,
    States,
    activations_of,
    check_gradient_checkpointing,
    kind_of,
    repeated,
    states_of_activations,
    with_positions_in_front,
)
from hadamard_core.adapter_layer import NO_ADAPTER, AdapterLayer
from hadamard_core.config import HadamardConfig, require_at_least
from hadamard_core.registration import peft_type, register
from hadamard_core.tuner import HadamardTuner

_ROLES = ("key",)


@dataclass
class PrelayerConfig(HadamardConfig):
    """How many positions are put in front; they are in every layer, so nothing else can be chosen.

    Args:
        num_virtual_tokens: the positions, ``l_p``.
        init_weights: True starts from what the frozen model computes of as many tokens drawn from its vocabulary,
            which is how Li and Liang start prefixes; False from normal random numbers.

    Raises:
        ValueError: there is no position, or modules or layers are chosen.
    """

    package: ClassVar[tuple[str, str, str] | None] = ("PreLayer", "hadamard-baselines", "hadamard_baselines")

    num_virtual_tokens: int = field(default=14, metadata={"help": "Positions in front of the text."})
    roles: Sequence[str] | None = field(
        default=_ROLES, metadata={"help": "Not to be chosen: the projections that hold the activations."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("prelayer")
        require_at_least(self, "num_virtual_tokens", 1)
        for name in ("target_modules", "exclude_modules", "layers_to_transform"):
            if getattr(self, name) is not None:
                raise ValueError(f"PreLayer puts positions in front of the text in every layer; leave {name} out.")
        if self.roles != _ROLES:
            raise ValueError("PreLayer puts positions in front of the text in every layer; leave roles out.")


class PrelayerLayer(AdapterLayer):
    """The projection that makes a layer's keys, unchanged; holds the activations that enter the layer."""

    adapter_layer_names = ("prelayer_activations",)

    def add_adapter(self, adapter_name: str, config: PrelayerConfig) -> None:
        base = self.get_base_layer()
        hidden = base.nx if isinstance(base, Conv1D) else base.in_features
        self.prelayer_activations[adapter_name] = nn.Parameter(torch.randn(config.num_virtual_tokens, hidden))

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        # of one sample where it computes keys for what is in front, whatever the batch of adapter_names
        return self.base_layer(x, *args, **kwargs)

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        return self.base_layer(x)

    def adapted_mixed(self, x: Tensor, adapter_names: Sequence[str], index: Tensor) -> Tensor:
        return self.base_layer(x)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(CANNOT_MERGE)


class PrelayerModel(HadamardTuner):
    """Puts positions in front of a model's text; made by ``peft.get_peft_model(model, PrelayerConfig(...))``.

    Works on decoders, and on encoders whose attentions take a cache (BERT, RoBERTa, ELECTRA). Several active adapters
    stand one behind another; in a batch with ``adapter_names``, each sample has its own in front.
    """

    prefix = "prelayer_"
    tuner_layer_cls = PrelayerLayer

    def _prepare_adapter_config(self, peft_config: PrelayerConfig, model_config: dict) -> PrelayerConfig:
        kind_of(self.model)
        check_gradient_checkpointing(self.model)
        return super()._prepare_adapter_config(peft_config, model_config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if _put_in_front not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_put_in_front, with_kwargs=True)
        config = self.peft_config[adapter_name]
        if config.init_weights and not config.inference_mode:
            self._start_from_tokens(model, adapter_name)

    def _start_from_tokens(self, model: PreTrainedModel, adapter_name: str) -> None:
        layers = _layers(model)
        parameters = [holder.prelayer_activations[adapter_name] for holder in layers.values()]
        if any(parameter.is_meta for parameter in parameters):
            return
        vocabulary = model.get_input_embeddings().weight.shape[0]
        tokens = torch.randint(vocabulary, (len(parameters[0]),))
        with torch.no_grad():
            for parameter, start in zip(parameters, activations_of(model, list(layers), tokens), strict=True):
                parameter.copy_(start)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            raise ValueError(CANNOT_MERGE)
        model = super()._unload_and_optionally_merge(merge=False, **kwargs)
        for number, hook in list(model._forward_pre_hooks.items()):
            if hook is _put_in_front:
                del model._forward_pre_hooks[number], model._forward_pre_hooks_with_kwargs[number]
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            if names is None:
                yield
                return

            beams = kwargs.get("num_beams") or 1  # the model sees each sample as often
            names = [name for name in names for _ in range(beams)]

            def add(model: nn.Module, args: tuple, given: dict) -> tuple[tuple, dict]:
                return args, {**given, "adapter_names": names}

            handle = self.model.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
            try:
                yield
            finally:
                handle.remove()


def _layers(model: nn.Module) -> dict[nn.Module, PrelayerLayer]:
    """The layers of a model, in order, and what holds the activations that enter them."""
    modules = dict(model.named_modules())
    return {
        modules[re.match(r"(.*?\b\d+)\.", name)[1]]: module
        for name, module in modules.items()
        if isinstance(module, PrelayerLayer)
    }


def _put_in_front(model: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Changes the arguments of a call of the model; a hook, so that ``generate`` comes by it too."""
    names = kwargs.pop("adapter_names", None)
    layers = _layers(model)
    holder = next(iter(layers.values()), None)
    if holder is None or holder.disable_adapters:
        return args, kwargs
    given = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
    if names is not None:
        return (), _of_each_sample(model, layers, given, names)
    active = holder.own_adapters(holder.active_adapters)
    if not active:
        return args, kwargs
    count = sum(len(holder.prelayer_activations[name]) for name in active)
    return (), with_positions_in_front(
        model, given, count, lambda batch: repeated(_states(model, layers, active), batch)
    )


def _of_each_sample(
    model: PreTrainedModel, layers: dict[nn.Module, PrelayerLayer], given: dict[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """The arguments of a call in which each sample has an adapter of its own, or none."""
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    if len(names) != len(tokens):
        raise ValueError(f"adapter_names has {len(names)} names for {len(tokens)} samples; give one for each.")
    held = next(iter(layers.values())).prelayer_activations
    counts = {name: len(held[name]) for name in names if name != NO_ADAPTER}
    if not counts:
        return given
    places = {name: place for place, name in enumerate(counts)}
    width = max(counts.values())

    def states(batch: int) -> States:
        # of a sample without adapter any will do: all of it is masked
        index = torch.tensor([places.get(name, 0) for name in names], device=tokens.device)
        own = [_states(model, layers, [name]) for name in counts]
        return [
            tuple(_as_long(kind, width)[index] for kind in zip(*layer, strict=True)) for layer in zip(*own, strict=True)
        ]

    return with_positions_in_front(model, given, torch.tensor([counts.get(name, 0) for name in names]), states)


def _as_long(states: Sequence[Tensor], width: int) -> Tensor:
    return torch.cat([F.pad(each, (0, 0, 0, width - each.shape[2])) for each in states])


def _states(model: PreTrainedModel, layers: dict[nn.Module, PrelayerLayer], names: Sequence[str]) -> States:
    return states_of_activations(
        model,
        {layer: torch.cat([holder.prelayer_activations[n] for n in names]) for layer, holder in layers.items()},
    )


register("prelayer", PrelayerConfig, PrelayerModel)
