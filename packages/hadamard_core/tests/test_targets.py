"""What a role finds is checked by what the module does in the model, on every architecture, not by its name alone."""

import itertools
import re
from dataclasses import dataclass, field

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.bert.modeling_bert import BertEncoder

from hadamard_core.orientation import OutputSlice, features, is_supported, weight_as_linear
from hadamard_core.targets import ARCHITECTURES, ROLES, find_targets, known_roles, module_names

TOKENS = 6
MOVED = 1  # the position whose query, key or value the tests change


@dataclass(frozen=True)
class Case:
    """A tiny model of one architecture: its type, what its configuration needs, whether its norms come first."""

    model_type: str
    pre_norm: bool
    settings: dict = field(default_factory=dict)
    two_stacks: bool = False
    gated: bool = False

    @property
    def attentions(self) -> int:
        return 6 if self.two_stacks else 4 if self.settings.get("add_cross_attention") else 2


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
CROSS = {"is_decoder": True, "add_cross_attention": True}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
BART = {"d_model": 32, "vocab_size": 50, "max_position_embeddings": 32}
for stack in ("encoder", "decoder"):
    BART |= {f"{stack}_layers": 2, f"{stack}_attention_heads": 4, f"{stack}_ffn_dim": 48}
OPT = SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32}
DEBERTA_V3 = SIZES | {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}

CASES = {
    "bert": Case("bert", False, SIZES),
    "bert cross": Case("bert", False, SIZES | CROSS),
    "roberta": Case("roberta", False, SIZES),
    "xlm-roberta": Case("xlm-roberta", False, SIZES),
    "camembert": Case("camembert", False, SIZES),
    "electra": Case("electra", False, SIZES | {"embedding_size": 16}),
    "electra cross": Case("electra", False, SIZES | {"embedding_size": 16} | CROSS),
    "distilbert": Case(
        "distilbert", False, {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50}
    ),
    "deberta-v3": Case("deberta-v2", False, DEBERTA_V3),
    "gpt2": Case("gpt2", True, GPT2),
    "gpt2 cross": Case("gpt2", True, GPT2 | CROSS),
    "gpt_neox": Case("gpt_neox", True, SIZES),
    "gpt_neox sequential": Case("gpt_neox", True, SIZES | {"use_parallel_residual": False}),
    "opt": Case("opt", True, OPT),
    "opt post-norm": Case("opt", False, OPT | {"do_layer_norm_before": False}),
    "llama": Case("llama", True, DECODER, gated=True),
    "mistral": Case("mistral", True, DECODER, gated=True),
    "qwen2": Case("qwen2", True, DECODER, gated=True),
    "qwen3": Case("qwen3", True, DECODER, gated=True),
    "gemma": Case("gemma", True, DECODER, gated=True),
    "smollm3": Case("smollm3", True, DECODER | {"pad_token_id": 0, "no_rope_layers": [1, 0]}, gated=True),
    "t5": Case("t5", True, T5, two_stacks=True),
    "t5 gated": Case("t5", True, T5 | {"feed_forward_proj": "gated-gelu"}, two_stacks=True, gated=True),
    "mt5": Case("mt5", True, T5 | {"feed_forward_proj": "gated-gelu"}, two_stacks=True, gated=True),
    "bart": Case("bart", False, BART, two_stacks=True),
    "mbart": Case("mbart", True, BART, two_stacks=True),
}

every_architecture = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
gated_architectures = pytest.mark.parametrize(
    "case", [case for case in CASES.values() if case.gated], ids=[name for name, case in CASES.items() if case.gated]
)


def tiny_model(case, auto=AutoModel):
    """A model with random weights, also where transformers starts with zeros (biases) or ones (norms)."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(case.model_type, **case.settings)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def observe(case, model):
    """Runs `model` once: the first input and the first output of every module, by its name."""
    torch.manual_seed(1)
    inputs = {"input_ids": torch.randint(5, 50, (2, TOKENS))}
    if case.two_stacks:
        inputs["decoder_input_ids"] = torch.randint(5, 50, (2, TOKENS))
    if case.settings.get("add_cross_attention"):
        inputs["encoder_hidden_states"] = torch.randn(2, TOKENS, 32, dtype=torch.float64)

    seen_inputs, seen_outputs, hooks = {}, {}, []
    for name, module in model.named_modules():

        def record(_, args, output, name=name):
            if args and isinstance(output, torch.Tensor):
                seen_inputs.setdefault(name, args[0])
                seen_outputs.setdefault(name, output)

        hooks.append(module.register_forward_hook(record))
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen_inputs, seen_outputs


def features_of(model, target):
    """The output features of a target with one slice, or of a whole module."""
    out_features = features(model.get_submodule(target.name))[1]
    return target.slices[0].index(out_features) if target.slices else torch.arange(out_features)


@torch.no_grad()
def zero(model, role):
    for target in find_targets(model, [role]).values():
        module, chosen = model.get_submodule(target.name), features_of(model, target)
        weight_as_linear(module)[chosen] = 0
        if module.bias is not None:
            module.bias[chosen] = 0


def contexts_moved(case, model, role):
    """For each attention, the positions at which its context changes when `role` changes at one position only."""
    before, _ = observe(case, model)
    moved = []
    pairs = zip(find_targets(model, [role]).values(), module_names(model, ["attention_output"]), strict=True)
    for target, attention_output in pairs:
        chosen, calls = features_of(model, target), []

        def move(_, __, output, chosen=chosen, calls=calls):
            calls.append(output)
            if len(calls) > 1:  # DeBERTa projects its relative positions with the same module, after the tokens
                return output
            output = output.clone()
            output[:, MOVED, chosen] += torch.linspace(1, 2, len(chosen), dtype=output.dtype)
            return output

        hook = model.get_submodule(target.name).register_forward_hook(move)
        after, _ = observe(case, model)
        hook.remove()
        change = (after[attention_output] - before[attention_output]).abs().amax(dim=(0, 2))
        moved.append({position for position in range(TOKENS) if change[position] > 1e-9})
    return moved


@every_architecture
def test_every_layer_of_a_model_has_a_role_and_nothing_else_has(case):
    model = tiny_model(case)
    in_layers = {
        name
        for name, module in model.named_modules()
        if re.search(r"\.\d+\.", name) and (is_supported(module) or type(module).__name__.endswith("Norm"))
    }
    per_head_norms = {name for name in in_layers if name.endswith(("q_norm", "k_norm"))}

    assert set(module_names(model, known_roles(model))) == in_layers - per_head_norms


@every_architecture
def test_targets_come_in_the_models_order_under_their_full_names(case):
    model = tiny_model(case)
    order = [name for name, _ in model.named_modules()]
    targets = find_targets(model, ROLES if case.gated else [role for role in ROLES if role != "ffn_gate"])

    assert list(targets) == sorted(targets, key=order.index)
    assert all(name == target.name for name, target in targets.items())
    for role in ROLES[:5]:
        assert len(find_targets(model, [role])) == case.attentions


@every_architecture
def test_the_query_of_a_position_acts_on_its_own_context_only(case):
    moved = contexts_moved(case, tiny_model(case), "query")

    assert moved == [{MOVED}] * case.attentions


@every_architecture
@pytest.mark.parametrize("role", ["key", "value"])
def test_keys_and_values_act_on_later_positions(case, role):
    moved = contexts_moved(case, tiny_model(case), role)

    assert len(moved) == case.attentions
    assert all(TOKENS - 1 in positions for positions in moved)


@every_architecture
def test_without_queries_the_keys_do_not_matter(case):
    model = tiny_model(case)
    zero(model, "query")

    assert contexts_moved(case, model, "key") == [set()] * case.attentions


@every_architecture
def test_without_values_the_attention_output_projects_zero(case):
    model = tiny_model(case)
    with_values, _ = observe(case, model)
    zero(model, "value")
    without_values, _ = observe(case, model)

    names = module_names(model, ["attention_output"])
    assert len(names) == case.attentions
    assert all((without_values[name] == 0).all() and (with_values[name] != 0).any() for name in names)


@every_architecture
def test_the_attention_norm_belongs_to_the_attention(case):
    model = tiny_model(case)
    inputs, outputs = observe(case, model)
    roles = ("attention_norm", "query", "attention_output")

    for norm, query, attention_output in zip(*(module_names(model, [role]) for role in roles), strict=True):
        assert_norm_of_block(case, inputs, outputs, norm, query, attention_output)


@every_architecture
def test_the_output_norm_belongs_to_the_feed_forward(case):
    model = tiny_model(case)
    inputs, outputs = observe(case, model)
    roles = ("output_norm", "ffn_input", "ffn_output")

    for norm, ffn_input, ffn_output in zip(*(module_names(model, [role]) for role in roles), strict=True):
        assert_norm_of_block(case, inputs, outputs, norm, ffn_input, ffn_output)


def assert_norm_of_block(case, inputs, outputs, norm, first, last):
    if case.pre_norm:
        torch.testing.assert_close(outputs[norm].reshape(-1, 32), inputs[first].reshape(-1, 32), rtol=0, atol=0)
    else:
        residual_sum = outputs[last].reshape(-1, 32) + inputs[first].reshape(-1, 32)
        torch.testing.assert_close(inputs[norm].reshape(-1, 32), residual_sum)


@every_architecture
def test_without_its_input_the_feed_forward_projects_zero(case):
    for role in ["ffn_input", "ffn_gate"] if case.gated else ["ffn_input"]:
        model = tiny_model(case)
        with_input, _ = observe(case, model)
        zero(model, role)
        without_input, _ = observe(case, model)

        names = module_names(model, ["ffn_output"])
        assert len(names) == (4 if case.two_stacks else 2)
        assert all((without_input[name] == 0).all() and (with_input[name] != 0).any() for name in names)


@gated_architectures
def test_the_gate_is_the_factor_with_the_activation(case):
    model = tiny_model(case)
    before, _ = observe(case, model)

    def ratio_when_doubled(name, ffn_output):
        hook = model.get_submodule(name).register_forward_hook(lambda _, __, output: 2 * output)
        after, _ = observe(case, model)
        hook.remove()
        return after[ffn_output] / before[ffn_output]

    roles = ("ffn_input", "ffn_gate", "ffn_output")
    for ffn_input, ffn_gate, ffn_output in zip(*(module_names(model, [role]) for role in roles), strict=True):
        doubled = torch.full_like(before[ffn_output], 2)
        torch.testing.assert_close(ratio_when_doubled(ffn_input, ffn_output), doubled)
        assert (ratio_when_doubled(ffn_gate, ffn_output) - 2).abs().max() > 0.01


def test_every_architecture_of_the_table_is_tested():
    assert {case.model_type.replace("-", "_") for case in CASES.values()} == set(ARCHITECTURES)


def test_names_of_the_first_layers():
    first = {name: module_names(tiny_model(case), ["query", "attention_norm"])[:2] for name, case in CASES.items()}

    assert first["bert"] == ["encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.LayerNorm"]
    assert first["roberta"] == first["electra"] == first["bert"]
    assert first["distilbert"] == ["transformer.layer.0.attention.q_lin", "transformer.layer.0.sa_layer_norm"]
    assert first["deberta-v3"][0] == "encoder.layer.0.attention.self.query_proj"
    assert first["gpt2"] == ["h.0.ln_1", "h.0.attn.c_attn"]
    assert set(first["gpt_neox"]) == {"layers.0.input_layernorm", "layers.0.attention.query_key_value"}
    assert first["opt"] == ["decoder.layers.0.self_attn.q_proj", "decoder.layers.0.self_attn_layer_norm"]
    assert first["llama"][0] == first["qwen2"][0] == "layers.0.self_attn.q_proj"
    assert first["t5"] == ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.0.layer_norm"]
    assert first["bart"] == ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn_layer_norm"]


def test_roles_on_one_fused_projection_make_one_target():
    targets = find_targets(tiny_model(CASES["gpt2"]), ["value", "query"])

    assert list(targets) == ["h.0.attn.c_attn", "h.1.attn.c_attn"]
    assert targets["h.0.attn.c_attn"].slices == (OutputSlice(0, 3), OutputSlice(2, 3))
    assert find_targets(tiny_model(CASES["gpt2"]), ["query", "value", "query"]) == targets


def test_heads_of_a_fused_projection_are_the_models():
    targets = find_targets(tiny_model(CASES["gpt_neox"]), ["key"])

    assert targets["layers.1.attention.query_key_value"].slices == (OutputSlice(1, 3, groups=4),)


def test_a_whole_module_has_no_slices():
    target = find_targets(tiny_model(CASES["bert"]), ["query", "query"])["encoder.layer.0.attention.self.query"]

    assert target.slices is None


@every_architecture
def test_a_layer_has_its_number_in_every_stack(case):
    model = tiny_model(case)
    every = find_targets(model, known_roles(model))
    layers = [find_targets(model, known_roles(model), number) for number in (0, 1)]

    assert set(layers[1]) == {name.replace(".0.", ".1.", 1) for name in layers[0]}
    assert {name: target.layer for name, target in every.items()} == dict.fromkeys(layers[0], 0) | dict.fromkeys(
        layers[1], 1
    )
    assert find_targets(model, known_roles(model), [0, 1]) == every
    assert find_targets(model, known_roles(model), []) == every


@every_architecture
def test_a_target_names_its_layer(case):
    model = tiny_model(case)
    layers = {name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)}

    assert {target.layer_name for target in find_targets(model, known_roles(model)).values()} == layers


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_scopes_part_the_attentions_of_an_encoder_decoder(name):
    model = tiny_model(CASES[name])
    scoped = {scope: module_names(model, [f"{scope}.query"]) for scope in ("encoder", "decoder", "cross")}

    assert [len(names) for names in scoped.values()] == [2, 2, 2]
    assert sorted(itertools.chain(*scoped.values())) == sorted(module_names(model, ["query"]))
    assert all(name.startswith("encoder.") for name in scoped["encoder"])
    assert all("EncDecAttention" in name or "encoder_attn" in name for name in scoped["cross"])
    assert find_targets(model, ["query", "cross.query"]) == find_targets(model, ["query"])


def test_the_scope_of_cross_attention_in_one_stack():
    assert module_names(tiny_model(CASES["gpt2 cross"]), ["cross.query", "cross.value"]) == [
        "h.0.crossattention.c_attn",
        "h.0.crossattention.q_attn",
        "h.1.crossattention.c_attn",
        "h.1.crossattention.q_attn",
    ]
    assert module_names(tiny_model(CASES["bert cross"]), ["cross.query"]) == [
        "encoder.layer.0.crossattention.self.query",
        "encoder.layer.1.crossattention.self.query",
    ]


@pytest.mark.parametrize(
    ("name", "auto", "prefix"),
    [
        ("bert", AutoModelForSequenceClassification, "bert."),
        ("bert", AutoModelForMaskedLM, "bert."),
        ("roberta", AutoModelForSequenceClassification, "roberta."),
        ("roberta", AutoModelForMaskedLM, "roberta."),
        ("electra", AutoModelForSequenceClassification, "electra."),
        ("distilbert", AutoModelForSequenceClassification, "distilbert."),
        ("deberta-v3", AutoModelForMaskedLM, "deberta."),
        ("gpt2", AutoModelForCausalLM, "transformer."),
        ("gpt_neox", AutoModelForCausalLM, "gpt_neox."),
        ("opt", AutoModelForCausalLM, "model."),
        ("llama", AutoModelForSequenceClassification, "model."),
        ("t5", AutoModelForSequenceClassification, "transformer."),
        ("bart", AutoModelForSequenceClassification, "model."),
    ],
)
def test_a_head_adds_a_prefix_and_no_target(name, auto, prefix):
    bare = tiny_model(CASES[name])

    with_head = module_names(tiny_model(CASES[name], auto), known_roles(bare))

    assert with_head == [prefix + found for found in module_names(bare, known_roles(bare))]


class Classifier(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.query = nn.Linear(32, 2)


def test_a_model_inside_another_module_is_found():
    backbone = tiny_model(CASES["bert"])

    assert module_names(Classifier(backbone), ["query"]) == [
        "backbone.encoder.layer.0.attention.self.query",
        "backbone.encoder.layer.1.attention.self.query",
    ]


def test_a_layer_is_not_taken_for_a_list_around_its_model():
    targets = find_targets(nn.ModuleList([nn.Linear(2, 2), tiny_model(CASES["bert"])]), ["query"])

    assert [target.layer_name for target in targets.values()] == ["1.encoder.layer.0", "1.encoder.layer.1"]


def test_every_known_model_inside_is_searched():
    both = nn.ModuleDict({"text": tiny_model(CASES["bert"]), "writer": tiny_model(CASES["gpt2"])})
    encoder_decoder = EncoderDecoderModel(
        EncoderDecoderConfig.from_encoder_decoder_configs(
            AutoConfig.for_model("bert", **SIZES), AutoConfig.for_model("bert", **SIZES)
        )
    )

    assert len(module_names(both, ["query"])) == 4
    assert module_names(both, ["query"])[-1] == "writer.h.1.attn.c_attn"
    assert len(module_names(encoder_decoder, ["query"])) == 6
    assert len(module_names(encoder_decoder, ["cross.query"])) == 2


def test_layers_without_a_model_are_known_by_their_class():
    layers = BertEncoder(AutoConfig.for_model("bert", **SIZES))

    assert module_names(layers, ["query"]) == ["layer.0.attention.self.query", "layer.1.attention.self.query"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "gpt_neox"])
def test_layers_that_peft_wrapped_keep_their_names(name):
    model = tiny_model(CASES[name])
    roles = ["query", "value", "ffn_output"]
    before = find_targets(model, roles)

    adapted = get_peft_model(
        model,
        LoraConfig(
            target_modules=module_names(model, roles),
            modules_to_save=module_names(model, ["attention_norm"]),
            fan_in_fan_out=name == "gpt2",
        ),
    )

    assert find_targets(adapted.base_model.model, roles) == before
    assert module_names(adapted, roles) == [f"base_model.model.{name}" for name in before]
    assert len(module_names(adapted, ["attention_norm"])) == CASES[name].attentions


def test_known_roles_are_those_of_the_model_at_hand():
    assert known_roles(tiny_model(CASES["bert"])) == tuple(role for role in ROLES if role != "ffn_gate")
    assert known_roles(tiny_model(CASES["llama"])) == ROLES
    assert "ffn_gate" not in known_roles(tiny_model(CASES["t5"]))
    assert "decoder.ffn_gate" in known_roles(tiny_model(CASES["t5 gated"]))
    assert "cross.ffn_input" not in known_roles(tiny_model(CASES["t5"]))
    assert "cross.query" in known_roles(tiny_model(CASES["bert cross"]))


def test_an_unknown_architecture_is_named():
    config = AutoConfig.for_model("albert", **SIZES, embedding_size=16)

    with pytest.raises(ValueError, match=r"AlbertModel \(model type 'albert'\); name its layers by target_modules"):
        find_targets(AutoModel.from_config(config), ["query"])
    with pytest.raises(ValueError, match="a Sequential, which contains no transformers model"):
        known_roles(nn.Sequential(nn.Linear(2, 2)))


def test_a_stack_taken_out_of_its_model_is_named():
    with pytest.raises(ValueError, match=r"BartEncoder \(model type 'bart'\).*target_modules"):
        find_targets(tiny_model(CASES["bart"]).encoder, ["query"])


@pytest.mark.parametrize("role", ["ffn_gate", "encoder.query", "cross.query", "cross.ffn_input"])
def test_a_role_that_the_architecture_lacks_is_refused_with_those_it_has(role):
    with pytest.raises(ValueError, match=rf"'{role}' was found in a BertModel .*query, key, value"):
        find_targets(tiny_model(CASES["bert"]), ["query", role])


@pytest.mark.parametrize(
    ("role", "close"), [("qeury", "query"), ("attention_outputs", "attention_output"), ("encodr.key", "encoder.key")]
)
def test_a_misspelled_role_is_answered_with_the_nearest(role, close):
    with pytest.raises(ValueError, match=rf"'{role}' is not a role \(did you mean '{close}'\?\)"):
        find_targets(tiny_model(CASES["bart"]), [role])


@pytest.mark.parametrize("asked", [99, [99], [0, 99], [-1]])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(asked):
    found = re.escape(f"layers_to_transform={asked}, but the layers with roles query, value are 0 to 1;")

    with pytest.raises(ValueError, match=found):
        find_targets(tiny_model(CASES["bert"]), ["query", "value"], asked)


def test_layers_that_are_not_in_a_row_are_all_named():
    model = nn.ModuleDict({"a": tiny_model(CASES["bert"]), "b": tiny_model(CASES["t5"])})
    model["a"].encoder.layer = nn.ModuleDict({"3": model["a"].encoder.layer[0]})

    with pytest.raises(ValueError, match=r"the layers with roles query are 0, 1, 3;"):
        find_targets(model, ["query"], [2])


def test_layers_are_counted_in_the_list_that_a_pattern_names():
    t5 = tiny_model(CASES["t5"])
    both = nn.ModuleDict({"text": tiny_model(CASES["bert"]), "writer": tiny_model(CASES["gpt2"])})

    assert list(find_targets(t5, ["query"], 1, "block")) == list(find_targets(t5, ["query"], 1))
    assert list(find_targets(t5, ["query"], [1], ["layer"])) == module_names(t5, ["cross.query"])
    assert list(find_targets(both, ["query"], [1], "h")) == ["writer.h.1.attn.c_attn"]
    assert list(find_targets(both, ["query"], [1], ["h", "encoder.layer"])) == [
        "text.encoder.layer.1.attention.self.query",
        "writer.h.1.attn.c_attn",
    ]


@pytest.mark.parametrize("pattern", ["nolayer", "ayer", ["decoder", "nolayer"]])
def test_a_pattern_that_names_no_list_of_the_layers_is_refused(pattern):
    refused = f"layers_pattern={pattern!r}, but no module with roles query is in a list of that name; name one that "

    with pytest.raises(ValueError, match=re.escape(refused) + r"contains modules such as encoder\.layer\.0\.attention"):
        find_targets(tiny_model(CASES["bert"]), ["query"], [0], pattern)


def test_roles_must_be_a_list_with_something_in_it():
    model = tiny_model(CASES["bert"])

    with pytest.raises(ValueError, match=r"roles is empty; give at least one of query, key"):
        find_targets(model, [])
    with pytest.raises(ValueError, match=r"roles is the string 'query'"):
        find_targets(model, "query")


ROBERTA_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 50265,
}
GPT2_MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}


def full_size_model(model_type, **settings):
    """A model of a published size, without weights."""
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(model_type, **settings))


def test_query_and_value_of_roberta_large():
    model = full_size_model("roberta", **ROBERTA_LARGE)
    found = find_targets(model, ["query", "value"])

    assert len(found) == 48
    assert {features(model.get_submodule(name)) for name in found} == {(1024, 1024)}
    assert {target.slices for target in found.values()} == {None}


def test_query_and_value_of_gpt2_medium():
    model = full_size_model("gpt2", **GPT2_MEDIUM)
    found = find_targets(model, ["query", "value"])

    assert len(found) == 24
    for target in found.values():
        in_features, out_features = features(model.get_submodule(target.name))
        assert in_features == 1024
        assert [part.size(out_features) for part in target.slices] == [1024, 1024]


def test_attention_outputs_and_norms_of_bert_base():
    model = full_size_model("bert")

    assert len(module_names(model, ["attention_output"])) == 12
    norms = [model.get_submodule(name) for name in module_names(model, ["attention_norm"])]
    assert [norm.normalized_shape for norm in norms] == [(768,)] * 12
