"""Models with random weights, of any architecture of transformers, that share their frozen weights in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from benchmarks.efficiency.settings import ModelSettings
from hadamard_core.targets import find_targets
from harness.errors import UserError, one_line
from harness.registry import closest

ROLES = ("query", "value")
"""What the methods adapt."""

# Shapes of well-known models by their model type and what differs from its defaults. The vocabulary is cut: the cost of
# a step does not depend on it where the embeddings are frozen, and nobody wants 200 MB of them in a benchmark.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm-l6": (
        "bert",
        {
            "vocab_size": 1000,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "roberta-base": ("roberta", {"vocab_size": 1000}),
    "roberta-large": (
        "roberta",
        {
            "vocab_size": 1000,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "gpt2-medium": (
        "gpt2",
        {
            "vocab_size": 1000,
            "n_embd": 1024,
            "n_layer": 24,
            "n_head": 16,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
}
# How configurations name the number of layers of a stack, where `num_hidden_layers` does not lead to it.
_FURTHER_LAYERS = ("num_decoder_layers", "decoder_layers")


def build_frozen(settings: ModelSettings, attention: str | None = None) -> PreTrainedModel:
    """Returns the frozen model that the settings describe, without a head, without dropout, with random weights.

    Args:
        settings: what the command line says.
        attention: transformers' implementation of attention; its own choice if None.

    Raises:
        UserError: the configuration cannot be read or built, or its architecture's queries and values are not known.
    """
    config = build_config(settings.model_config, settings.override, settings.layers, settings.length)
    torch.manual_seed(settings.seed)
    try:
        model = AutoModel.from_config(config, **({} if attention is None else {"attn_implementation": attention}))
        find_targets(model, ROLES)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"--model-config {settings.model_config}: {one_line(error)[:300]}") from error
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None  # it belongs to a head
    # Biases start at zero, which those of trained models are not.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    return model.to(settings.torch_device, settings.torch_dtype).requires_grad_(False).train()


def build_config(name: str, override: Sequence[str], layers: int | None, length: int) -> PreTrainedConfig:
    """Returns the configuration of a model without dropout and without a cache of keys and values.

    Args:
        name: one of ``SHAPES``, the path of a ``config.json`` or of its folder, or a model type of transformers.
        override: ``KEY=VALUE`` each, the value as in JSON where it is, else as a string.
        layers: number of layers of each stack; None for the configuration's.
        length: tokens in a sequence; positions are added where the configuration has too few.

    Raises:
        UserError: the configuration cannot be read or built.
    """
    model_type, fields = _named_fields(name)
    if model_type not in CONFIG_MAPPING:
        known = ", ".join(SHAPES)
        raise UserError(
            f"--model-config {name}: transformers has no model type {model_type}{closest(model_type, CONFIG_MAPPING)}; "
            f"give one, a path, or one of {known}"
        )
    defaults = CONFIG_MAPPING[model_type]()
    for key, value in map(_override, override):
        if not hasattr(defaults, key):
            near = closest(key, defaults.to_dict())
            raise UserError(f"--override {key}: no such field in a configuration of {model_type}{near}")
        fields[key] = value
    if layers is not None:
        fields.pop("layer_types", None)  # one for each layer; the class makes them anew
        fields["num_hidden_layers"] = layers
    try:
        config = AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"--model-config {name}: {one_line(error)[:300]}") from error
    if layers is not None:
        # Where a file gives the architecture's own name (n_layer), that would win over the common one.
        for field in ("num_hidden_layers", *_FURTHER_LAYERS):
            if hasattr(config, field):
                setattr(config, field, layers)
    # RoBERTa counts its positions from the padding token's number, which is 1.
    if getattr(config, "max_position_embeddings", None) and config.max_position_embeddings < length + 2:
        config.max_position_embeddings = length + 2
    for field, value in config.to_dict().items():
        if "drop" in field and isinstance(value, float):
            setattr(config, field, 0.0)
    config.use_cache = False
    return config


def _named_fields(name: str) -> tuple[str, dict[str, Any]]:
    if name in SHAPES:
        model_type, fields = SHAPES[name]
        return model_type, dict(fields)
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise UserError(f"--model-config {name}: there is no such file")
        return name, {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return fields.pop("model_type"), fields
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"--model-config {path}: this is not a configuration of transformers with a model_type"
        ) from error


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"--override {text}: write KEY=VALUE, such as hidden_size=512")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def share_weights(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """Returns a copy of a model that has its modules for itself and its parameters and buffers in common with it.

    Args:
        own: names of modules whose parameters are copied, because they will be changed in place.
    """
    copied = {id(tensor) for name in own for tensor in model.get_submodule(name).parameters()}
    shared = (tensor for tensor in [*model.parameters(), *model.buffers()] if id(tensor) not in copied)
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def with_own_gradients(model: nn.Module) -> nn.Module:
    """Returns a copy all of whose parameters train; their values, which a benchmark never updates, stay shared."""
    trained = {id(p): nn.Parameter(p.detach(), requires_grad=True) for p in model.parameters()}
    buffers = {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, trained | buffers)


def compiled(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Returns the models through ``torch.compile``; each has a graph of its own."""
    # The models are of one class, so that their graphs fill one cache, whose limit is 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(models))
    return {name: torch.compile(model) for name, model in models.items()}


class Batch:
    """One batch of random tokens, and a loss that depends on every output; all models get the same.

    Args:
        model: any of the models that are compared, or their base.
    """

    def __init__(self, model: nn.Module, batch_size: int, length: int, seed: int) -> None:
        embedding = model.get_input_embeddings()
        generator = torch.Generator().manual_seed(seed)
        size = (batch_size, length)
        device, dtype = embedding.weight.device, embedding.weight.dtype
        self.ids = torch.randint(embedding.weight.shape[0], size, generator=generator).to(device)
        hidden = model.config.hidden_size
        self.target = torch.randn(*size, hidden, generator=generator).to(device, dtype)
        self._decoder = bool(model.config.is_encoder_decoder)

    def outputs(self, model: nn.Module, embedding: nn.Module, **arguments: Any) -> Tensor:
        """Returns the last hidden states: (batch, length, hidden).

        Gradients reach the embeddings' outputs whatever trains, as they do where something trains below.
        """
        embedded = embedding(self.ids)
        if torch.is_grad_enabled() and not embedded.requires_grad:
            embedded.requires_grad_()
        inputs = {"inputs_embeds": embedded}
        if self._decoder:
            inputs["decoder_inputs_embeds"] = embedded
        return model(**inputs, **arguments).last_hidden_state

    def loss(self, model: nn.Module, embedding: nn.Module, **arguments: Any) -> Callable[[], Tensor]:
        """Returns a function that runs the forward pass and returns a scalar."""
        return lambda: (self.outputs(model, embedding, **arguments) * self.target).sum()
