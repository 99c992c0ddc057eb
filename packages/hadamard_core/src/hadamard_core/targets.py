"""Roles: names for the parts of a transformer layer that mean the same on every architecture.

`roles` is this project's addition to peft's `target_modules`. A role names what a module does; the tables below say
which module does it in each architecture of transformers, and which slice of it where a projection is fused:

* `query`, `key`, `value`: the projections of every attention of the model;
* `attention_output`: the projection of the concatenated heads;
* `attention_norm`: the norm of the attention's residual block, after its output in a post-norm model (BERT), before
  its projections in a pre-norm model (GPT-2, Llama, T5);
* `ffn_input`: the up-projection; where the activation is gated (Llama, newer T5), the factor without the activation;
* `ffn_gate`: the other factor, which goes through the activation; only where it is gated;
* `ffn_output`: the down-projection;
* `output_norm`: the norm of the feed-forward's residual block, after or before it as above.

A role covers all attentions, or feed-forwards, of the model. `encoder.` and `decoder.` before a role narrow it to
one stack of an encoder-decoder model, leaving cross-attention out; `cross.` narrows it to cross-attention, wherever
there is one. Embeddings, poolers, final norms and heads have no role.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn
from transformers import PreTrainedModel

from hadamard_core.orientation import OutputSlice

ROLES = (
    "query",
    "key",
    "value",
    "attention_output",
    "attention_norm",
    "ffn_input",
    "ffn_gate",
    "ffn_output",
    "output_norm",
)
SCOPES = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class Target:
    """A module to adapt.

    Attributes:
        name: full name in the model it was found in; on an adapted layer, the name of the whole layer.
        slices: the slices of a fused projection to adapt, by their part; None stands for the whole module.
        layer: the number of its layer, which in an encoder-decoder model both stacks count from 0.
        layer_name: full name of the layer that it is in.
    """

    name: str
    slices: tuple[OutputSlice, ...] | None
    layer: int
    layer_name: str


@dataclass(frozen=True)
class _Fused:
    """Where a fused projection is, and which of its equal parts has the role; in each head where `per_head`."""

    path: str
    part: int
    parts: int
    per_head: bool = False


_Table = dict[str, str | _Fused]


def _below(prefix: str, paths: Mapping[str, str], scope: str = "") -> _Table:
    return {f"{scope}{role}": f"{prefix}{path}" for role, path in paths.items()}


# Paths are regular expressions for the end of a module's name in which "." is a dot and "*" a layer's number.
_BERT_ATTENTION = {
    "query": ".self.query",
    "key": ".self.key",
    "value": ".self.value",
    "attention_output": ".output.dense",
    "attention_norm": ".output.LayerNorm",
}
_BERT_FFN = {
    "ffn_input": ".intermediate.dense",
    "ffn_output": ".output.dense",
    "output_norm": ".output.LayerNorm",
}
_BERT = (
    _below("layer.*.attention", _BERT_ATTENTION)
    | _below("layer.*.crossattention", _BERT_ATTENTION, "cross.")
    | _below("layer.*", _BERT_FFN)
)

_DEBERTA_V2_ATTENTION = _BERT_ATTENTION | {
    "query": ".self.query_proj",
    "key": ".self.key_proj",
    "value": ".self.value_proj",
}
_DEBERTA_V2 = _below("layer.*.attention", _DEBERTA_V2_ATTENTION) | _below("layer.*", _BERT_FFN)

_DISTILBERT = {
    "query": "layer.*.attention.q_lin",
    "key": "layer.*.attention.k_lin",
    "value": "layer.*.attention.v_lin",
    "attention_output": "layer.*.attention.out_lin",
    "attention_norm": "layer.*.sa_layer_norm",
    "ffn_input": "layer.*.ffn.lin1",
    "ffn_output": "layer.*.ffn.lin2",
    "output_norm": "layer.*.output_layer_norm",
}

_GPT2 = {
    "query": _Fused("h.*.attn.c_attn", part=0, parts=3),
    "key": _Fused("h.*.attn.c_attn", part=1, parts=3),
    "value": _Fused("h.*.attn.c_attn", part=2, parts=3),
    "attention_output": "h.*.attn.c_proj",
    "attention_norm": "h.*.ln_1",
    "cross.query": "h.*.crossattention.q_attn",
    "cross.key": _Fused("h.*.crossattention.c_attn", part=0, parts=2),
    "cross.value": _Fused("h.*.crossattention.c_attn", part=1, parts=2),
    "cross.attention_output": "h.*.crossattention.c_proj",
    "cross.attention_norm": "h.*.ln_cross_attn",
    "ffn_input": "h.*.mlp.c_fc",
    "ffn_output": "h.*.mlp.c_proj",
    "output_norm": "h.*.ln_2",
}

_GPT_NEOX = {
    "query": _Fused("layers.*.attention.query_key_value", part=0, parts=3, per_head=True),
    "key": _Fused("layers.*.attention.query_key_value", part=1, parts=3, per_head=True),
    "value": _Fused("layers.*.attention.query_key_value", part=2, parts=3, per_head=True),
    "attention_output": "layers.*.attention.dense",
    "attention_norm": "layers.*.input_layernorm",
    "ffn_input": "layers.*.mlp.dense_h_to_4h",
    "ffn_output": "layers.*.mlp.dense_4h_to_h",
    "output_norm": "layers.*.post_attention_layernorm",
}

_LLAMA = {
    "query": "layers.*.self_attn.q_proj",
    "key": "layers.*.self_attn.k_proj",
    "value": "layers.*.self_attn.v_proj",
    "attention_output": "layers.*.self_attn.o_proj",
    "attention_norm": "layers.*.input_layernorm",
    "ffn_input": "layers.*.mlp.up_proj",
    "ffn_gate": "layers.*.mlp.gate_proj",
    "ffn_output": "layers.*.mlp.down_proj",
    "output_norm": "layers.*.post_attention_layernorm",
}

_BART_ATTENTION = {
    "query": ".q_proj",
    "key": ".k_proj",
    "value": ".v_proj",
    "attention_output": ".out_proj",
    "attention_norm": "_layer_norm",
}
_BART_FFN = {"ffn_input": ".fc1", "ffn_output": ".fc2", "output_norm": ".final_layer_norm"}
_BART = (
    _below("encoder.layers.*.self_attn", _BART_ATTENTION, "encoder.")
    | _below("encoder.layers.*", _BART_FFN, "encoder.")
    | _below("decoder.layers.*.self_attn", _BART_ATTENTION, "decoder.")
    | _below("decoder.layers.*.encoder_attn", _BART_ATTENTION, "cross.")
    | _below("decoder.layers.*", _BART_FFN, "decoder.")
)
_OPT = _below("layers.*.self_attn", _BART_ATTENTION) | _below("layers.*", _BART_FFN)

_T5_ATTENTION = {
    "query": "Attention.q",
    "key": "Attention.k",
    "value": "Attention.v",
    "attention_output": "Attention.o",
}
_T5_FFN = {
    "ffn_input": ".DenseReluDense.(wi|wi_1)",
    "ffn_gate": ".DenseReluDense.wi_0",
    "ffn_output": ".DenseReluDense.wo",
    "output_norm": ".layer_norm",
}
_T5 = (
    _below("encoder.block.*.layer.0.Self", _T5_ATTENTION, "encoder.")
    | {"encoder.attention_norm": "encoder.block.*.layer.0.layer_norm"}
    | _below("encoder.block.*.layer.1", _T5_FFN, "encoder.")
    | _below("decoder.block.*.layer.0.Self", _T5_ATTENTION, "decoder.")
    | {"decoder.attention_norm": "decoder.block.*.layer.0.layer_norm"}
    | _below("decoder.block.*.layer.1.EncDec", _T5_ATTENTION, "cross.")
    | {"cross.attention_norm": "decoder.block.*.layer.1.layer_norm"}
    | _below("decoder.block.*.layer.2", _T5_FFN, "decoder.")
)

# By transformers' model type, written like its folder in transformers.models (deberta_v2 for "deberta-v2").
ARCHITECTURES: dict[str, _Table] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm_roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
    "deberta_v2": _DEBERTA_V2,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "opt": _OPT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "smollm3": _LLAMA,
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    "mbart": _BART,
}


def find_targets(
    model: nn.Module,
    roles: Sequence[str],
    layers_to_transform: Sequence[int] | int | None = None,
    layers_pattern: Sequence[str] | str | None = None,
) -> dict[str, Target]:
    """The modules of `model` that have one of `roles`, by their full name, in the model's order.

    `model` is a transformers model, with or without a head, or any module that contains one or its layers; layers
    that peft has wrapped are found under their own name. Of a model with several transformers models inside, every
    known one is searched.

    Args:
        layers_to_transform: numbers of the layers to search; all of them if None or empty, as in peft.
        layers_pattern: the name of the list that `layers_to_transform` counts in, by peft's rules; if None, the list
            of the layers.

    Raises:
        ValueError: if no layers of an architecture known here are found, if `roles` is empty or a string, if one of
            them is misspelled or not found in `model`, or if there is no such layer or list.
    """
    if isinstance(roles, str):
        raise ValueError(f"roles is the string {roles!r}; give a list of roles, such as [{roles!r}].")
    if not roles:
        raise ValueError(f"roles is empty; give at least one of {', '.join(known_roles(model))}.")
    places = _places(model)
    for role in roles:
        if not any(_covers(role, place.scoped_role) for place in places):
            raise ValueError(_unknown_role(role, model))

    targets: dict[str, Target] = {}
    for place in places:
        if any(_covers(role, place.scoped_role) for role in roles):
            slices = None
            if place.slice is not None:
                before = targets[place.name].slices if place.name in targets else ()
                slices = tuple(sorted({*before, place.slice}, key=lambda own: own.part))
            targets[place.name] = Target(place.name, slices, place.layer, place.layer_name)
    return _in_layers(targets, roles, layers_to_transform, layers_pattern)


def module_names(model: nn.Module, roles: Sequence[str]) -> list[str]:
    """The names of `find_targets`, for use as peft's `target_modules` or `modules_to_save`."""
    return list(find_targets(model, roles))


def known_roles(model: nn.Module) -> tuple[str, ...]:
    """The roles that `find_targets` accepts for `model`: first the plain ones, then those with a scope.

    Raises:
        ValueError: if no layers of an architecture known here are found in `model`.
    """
    scoped_roles = {place.scoped_role for place in _places(model)}
    candidates = [*ROLES, *(f"{scope}.{role}" for scope in SCOPES for role in ROLES)]
    return tuple(role for role in candidates if any(_covers(role, found) for found in scoped_roles))


def fused_parts(model: nn.Module) -> dict[str, dict[str, OutputSlice]]:
    """The fused projections of `model` by their full name: for each role that a part of it has, which part.

    Raises:
        ValueError: if no layers of an architecture known here are found in `model`.
    """
    found: dict[str, dict[str, OutputSlice]] = {}
    for place in _places(model):
        if place.slice is not None:
            found.setdefault(place.name, {})[_plain(place.scoped_role)] = place.slice
    return found


@dataclass(frozen=True)
class _Place:
    name: str
    scoped_role: str
    slice: OutputSlice | None
    layer: int
    layer_name: str


def _places(model: nn.Module) -> list[_Place]:
    """Everything in `model` that has a role, in the model's order."""
    tables = _tables(model)
    places = [
        _Place(name, scoped_role, _slice(where, model, name), int(match["layer"]), name[: match.end("layer")])
        for name, _ in model.named_modules()
        for root, table in tables.items()
        if _is_inside(root, name)
        for scoped_role, where in table.items()
        if (match := _pattern(where if isinstance(where, str) else where.path).fullmatch(name))
    ]
    if not places:
        raise ValueError(
            f"No layers with known roles were found in {_describe(model)}; name its layers by target_modules (roles "
            f"are known for whole models of the types {', '.join(sorted(ARCHITECTURES))})."
        )
    return places


def _tables(model: nn.Module) -> dict[str, _Table]:
    """The names in `model` of the outermost modules of known architectures ("" for itself), with their tables."""
    tables: dict[str, _Table] = {}
    for name, module in model.named_modules():
        kind = next((kind for kind in _kinds(module) if kind in ARCHITECTURES), None)
        if kind and not any(_is_inside(root, name) for root in tables):
            tables[name] = ARCHITECTURES[kind]
    return tables


def _is_inside(root: str, name: str) -> bool:
    return not root or name.startswith(f"{root}.")


def _kinds(module: nn.Module) -> Iterator[str]:
    """What a module says it is: by its configuration, then by the folders of transformers its classes come from."""
    if isinstance(module, PreTrainedModel):
        yield module.config.model_type.replace("-", "_")
    for cls in type(module).__mro__:
        if folder := re.match(r"transformers\.models\.(\w+)\.modeling_", cls.__module__):
            yield folder[1]


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(r"(?:.+\.)?" + path.replace(".", r"\.").replace("*", r"(?P<layer>\d+)"))


def _slice(where: str | _Fused, model: nn.Module, name: str) -> OutputSlice | None:
    if isinstance(where, str):
        return None
    if not where.per_head:
        return OutputSlice(where.part, where.parts)
    attention = model.get_submodule(name.rpartition(".")[0])
    return OutputSlice(where.part, where.parts, groups=attention.config.num_attention_heads)


def _in_layers(
    targets: dict[str, Target],
    roles: Sequence[str],
    layers: Sequence[int] | int | None,
    patterns: Sequence[str] | str | None,
) -> dict[str, Target]:
    asked = [layers] if isinstance(layers, int) else layers or []
    if not asked:
        return targets
    numbers = {name: _number(target, patterns) for name, target in targets.items()}
    known = sorted({number for number in numbers.values() if number is not None})
    if not known:
        raise ValueError(
            f"layers_pattern={patterns!r}, but no module with roles {', '.join(roles)} is in a list of that name; name "
            f"one that contains modules such as {next(iter(targets))}, or leave it out."
        )
    if not set(asked) <= set(known):
        without_gap = known == list(range(known[0], known[-1] + 1))
        written = f"{known[0]} to {known[-1]}" if without_gap else ", ".join(map(str, known))
        raise ValueError(
            f"layers_to_transform={layers}, but the layers with roles {', '.join(roles)} are {written}; "
            "give some of these."
        )
    return {name: target for name, target in targets.items() if numbers[name] in asked}


def _number(target: Target, patterns: Sequence[str] | str | None) -> int | None:
    """The number of the target's layer; if there are patterns, in the first list so named that it is in, as in peft."""
    if not patterns:
        return target.layer
    patterns = [patterns] if isinstance(patterns, str) else patterns
    matches = (re.match(rf"(?:.*?\.)?(?:{pattern})\.(?P<layer>\d+)\.", target.name) for pattern in patterns)
    return next((int(match["layer"]) for match in matches if match), None)


def _plain(scoped_role: str) -> str:
    return scoped_role.rpartition(".")[2]


def _covers(asked: str, scoped_role: str) -> bool:
    return asked in (scoped_role, _plain(scoped_role))


def _unknown_role(role: str, model: nn.Module) -> str:
    scope, _, plain = role.rpartition(".")
    if plain in ROLES and scope in ("", *SCOPES):
        problem = f"No module in the role {role!r} was found in {_describe(model)}"
    else:
        close = difflib.get_close_matches(role, known_roles(model), n=1)
        problem = f"{role!r} is not a role" + (f" (did you mean {close[0]!r}?)" if close else "")
    return f"{problem}; give target_modules, or roles of this model: {', '.join(known_roles(model))}."


def _describe(model: nn.Module) -> str:
    inside = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inside is None:
        return f"a {type(model).__name__}, which contains no transformers model"
    return f"a {type(inside).__name__} (model type {inside.config.model_type!r})"
