"""Positions in front of a text that a frozen model never computes: their keys and values are put into its cache.

A text attends to whatever stands before it through the keys and values of each layer alone, so a cache that is filled
beforehand does the same as more tokens in the sequence, whether these were trained as embeddings (prompt tuning), as
activations (PreLayer) or as keys and values themselves (prefix tuning). A text keeps its length, its logits stand where
its tokens are, a classifier finds its last token, and ``generate`` sees nothing new. The text's own positions are
counted from behind those in front.

Encoders of BERT's kind work the same way as long as positions in front are not read themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

States = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (batch, heads, positions, head size) both."""

CANNOT_MERGE = "Positions in front of the text are no part of a model's weights, so that they cannot be merged."


def kind_of(model: nn.Module) -> Literal["decoder", "encoder"]:
    """What kind of model it is, found out by a forward pass over one position.

    Raises:
        ValueError: its attentions do not all take keys and values from a cache.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        raise ValueError(f"Positions cannot be put in front of a {name}; give a decoder, or an encoder of BERT's kind.")
    # A call without a cache says whether the model makes one, which decoders do; encoders may still take one.
    one = torch.zeros(1, 1, _width(model), device=model.device, dtype=model.dtype)
    with torch.no_grad(), _evaluating(model):
        made = getattr(model.base_model.forward(inputs_embeds=one, use_cache=True), "past_key_values", None)
        states = states_of(model, one)
    if len(states) != model.config.get_text_config().num_hidden_layers:
        raise ValueError(
            f"Positions cannot be put in front of a {name}, whose attentions do not all take keys and values from a "
            "cache; give a decoder, or an encoder such as BERT, RoBERTa or ELECTRA."
        )
    return "encoder" if made is None else "decoder"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _width(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[-1]


def states_of(model: PreTrainedModel, embeddings: Tensor, entering: Mapping[nn.Module, Tensor] = {}) -> States:
    """Keys and values that a model's own layers compute of some positions, differentiable.

    Args:
        embeddings: (batch, positions, width of the embeddings).
        entering: layers, and what replaces the hidden states that enter them, (batch, positions, hidden size).
    """
    cache = DynamicCache()
    with ExitStack() as stack:
        for layer, hidden in entering.items():
            handle = layer.register_forward_pre_hook(partial(_replace, hidden), with_kwargs=True)
            stack.callback(handle.remove)
        # Not through the model's call, which may be hooked by who calls this.
        model.base_model.forward(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers if layer.get_seq_length()]


def states_of_activations(model: PreTrainedModel, activations: Mapping[nn.Module, Tensor]) -> States:
    """Keys and values that each layer computes of the activations that enter it.

    Args:
        activations: layer -> (positions, hidden size); what the layers make of them goes nowhere.
    """
    positions = len(next(iter(activations.values())))
    nothing = torch.zeros(1, positions, _width(model), device=model.device, dtype=model.dtype)
    return states_of(model, nothing, {layer: hidden[None] for layer, hidden in activations.items()})


def _replace(hidden: Tensor, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if not args:
        return args, {**kwargs, "hidden_states": hidden.to(kwargs["hidden_states"].dtype)}
    return (hidden.to(args[0].dtype), *args[1:]), kwargs


def activations_of(model: PreTrainedModel, layers: Sequence[nn.Module], tokens: Tensor) -> list[Tensor]:
    """What enters each of these layers when the model reads tokens, (tokens, hidden size) each, without gradient.

    Args:
        tokens: ids, (tokens,).
    """
    seen: list[Tensor] = []

    def see(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0])

    with ExitStack() as stack, torch.no_grad(), _evaluating(model):
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(see, with_kwargs=True).remove)
        model.base_model.forward(input_ids=tokens[None].to(model.device))
    return seen


def repeated(states: States, batch: int) -> States:
    """States of one sample for each of a batch."""
    # A view whose gradient is a plain sum; that of repeat_interleave depends on the order of atomic additions on CUDA.
    return [tuple(tensor.expand(batch, -1, -1, -1) for tensor in layer) for layer in states]


def with_positions_in_front(
    model: PreTrainedModel, kwargs: Mapping[str, Any], count: int | Tensor, states: Callable[[int], States]
) -> dict[str, Any]:
    """The arguments of a call of a model, changed so that the text has positions in front.

    Args:
        kwargs: as the model takes them, with an empty cache or none if the text begins with this call; with
            ``use_cache=False`` it always does.
        count: how many positions there are; one number for all samples, or (batch,) where samples differ.
        states: returns them for a batch of this size, with as many positions as the longest has; called when a text
            begins.

    Raises:
        ValueError: layers are to be computed again in the backward pass, the context is too short, or the cache is of a
            fixed size.
    """
    given = dict(kwargs)
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    batch, length = tokens.shape[:2]
    width = count if isinstance(count, int) else int(count.max())
    if model.training and torch.is_grad_enabled():
        check_gradient_checkpointing(model)
    # Without use_cache a model may return the cache all the same, and generate hands it in again with the whole text.
    cache = None if given.get("use_cache") is False else given.get("past_key_values")
    mask = given.get("attention_mask")
    is_usual_mask = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if getattr(cache, "is_compileable", False) or not is_usual_mask:
        raise ValueError(
            "Positions in front need a cache that grows and an attention mask of (batch, tokens); generate without "
            "cache_implementation."
        )
    if cache is None:
        cache = DynamicCache(config=model.config)
    before = max(0, cache.get_seq_length() - width)
    if not cache.get_seq_length():
        for number, (keys, values) in enumerate(states(batch)):
            cache.update(keys, values, number)
    check_context(model, width + before + length)
    if isinstance(count, Tensor):
        count = count.to(tokens.device)[:, None]
        if mask is None:
            mask = torch.ones(batch, before + length, dtype=torch.long, device=tokens.device)
        if given.get("position_ids") is None:
            given["position_ids"] = torch.arange(before, before + length, device=tokens.device) + _first(model)
    if mask is not None:
        in_front = torch.arange(width, device=mask.device).expand(batch, -1) < count
        given["attention_mask"] = torch.cat([in_front.to(mask.dtype), mask], dim=1)
    if given.get("position_ids") is not None:
        given["position_ids"] = given["position_ids"] + count
    return {**given, "past_key_values": cache}


def check_gradient_checkpointing(model: nn.Module) -> None:
    """Refuses a model that computes layers again in the backward pass, for which transformers takes the cache away.

    Raises:
        ValueError: it does.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ValueError(
            f"Gradient checkpointing is on in a {type(model).__name__}, and transformers then leaves out the cache "
            "that holds the positions in front; turn it off."
        )


def _first(model: PreTrainedModel) -> int:
    """The number of the first position: models of RoBERTa's kind count from behind that of padding."""
    padding = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def check_context(model: PreTrainedModel, positions: int) -> None:
    """Refuses more positions than a model knows.

    Raises:
        ValueError: there are more.
    """
    known = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(known, int) and known > 0 and positions + _first(model) > known:
        raise ValueError(
            f"The text and the positions in front of it are {positions} positions long and a {type(model).__name__} "
            f"reads {known - _first(model)}; cut the text, or put fewer positions in front."
        )
