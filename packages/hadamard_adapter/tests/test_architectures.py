"""On every kind of architecture: which modules are adapted, and that the promises of a peft method hold there."""

import contextlib
import copy
import functools
from dataclasses import dataclass, field

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hadamard_adapter import HadamardAdapterConfig, HadamardLinear, HadamardNorm

ATTENTION = "attention_output"
ALL = ("projection", "norm", "output_norm")
NORMS = {"attention": ["norm"], "output": ["output_norm"], "both": ["norm", "output_norm"], "none": []}


@dataclass(frozen=True)
class Attention:
    """Names of an attention's projection, its norm and its feed-forward's norm; # is the layer's number."""

    projection: str
    norm: str
    output_norm: str


@dataclass(frozen=True, eq=False)
class Case:
    """A tiny model of one architecture.

    Attributes:
        prefix: what the names of its layers begin with.
        attentions: by the role that names it alone.
        gains_bias: merging b gives its projections a bias that they lack.
    """

    model_type: str
    auto: type
    prefix: str
    attentions: dict[str, Attention]
    settings: dict = field(default_factory=dict)
    gains_bias: bool = False

    @property
    def two_stacks(self):
        return len(self.attentions) > 1

    @functools.cached_property
    def model(self):
        """A model with random values where transformers starts with zeros (biases) and ones (norms), too."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **self.settings)
        model = self.auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    def inputs(self):
        generator = torch.Generator().manual_seed(1)
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[1, 4:] = 0
        inputs = {"input_ids": torch.randint(5, 40, (2, 6), generator=generator), "attention_mask": mask}
        if self.two_stacks:
            inputs["decoder_input_ids"] = torch.randint(5, 40, (2, 5), generator=generator)
        return inputs

    def names(self, *kinds, roles=None, layers=(0, 1)):
        """The names of what these attentions (all if None) have: "projection", "norm", "output_norm"."""
        chosen = [self.attentions[role] for role in roles or self.attentions]
        paths = [getattr(attention, kind) for attention in chosen for kind in kinds]
        return {self.prefix + path.replace("#", str(layer)) for path in paths for layer in layers}


BERT_LAYER = Attention(
    "layer.#.attention.output.dense", "layer.#.attention.output.LayerNorm", "layer.#.output.LayerNorm"
)
LLAMA_LAYER = Attention("layers.#.self_attn.o_proj", "layers.#.input_layernorm", "layers.#.post_attention_layernorm")
T5_LAYERS = {
    f"encoder.{ATTENTION}": Attention(
        "encoder.block.#.layer.0.SelfAttention.o",
        "encoder.block.#.layer.0.layer_norm",
        "encoder.block.#.layer.1.layer_norm",
    ),
    f"decoder.{ATTENTION}": Attention(
        "decoder.block.#.layer.0.SelfAttention.o",
        "decoder.block.#.layer.0.layer_norm",
        "decoder.block.#.layer.2.layer_norm",
    ),
    f"cross.{ATTENTION}": Attention(
        "decoder.block.#.layer.1.EncDecAttention.o",
        "decoder.block.#.layer.1.layer_norm",
        "decoder.block.#.layer.2.layer_norm",
    ),
}
BART_LAYERS = {
    f"{role}.{ATTENTION}": Attention(
        f"{stack}.layers.#.{attention}.out_proj",
        f"{stack}.layers.#.{attention}_layer_norm",
        f"{stack}.layers.#.final_layer_norm",
    )
    for role, stack, attention in (
        ("encoder", "encoder", "self_attn"),
        ("decoder", "decoder", "self_attn"),
        ("cross", "decoder", "encoder_attn"),
    )
}

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40}
CLASSES = {"num_labels": 3, "pad_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 4}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
BART = {"d_model": 16, "vocab_size": 40, "max_position_embeddings": 16}
for stack in ("encoder", "decoder"):
    BART |= {f"{stack}_layers": 2, f"{stack}_attention_heads": 4, f"{stack}_ffn_dim": 24}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": 40}


def encoder(model_type, prefix, attention=BERT_LAYER, **settings):
    sizes = {} if "dim" in settings else SIZES
    return Case(
        model_type, AutoModelForSequenceClassification, prefix, {ATTENTION: attention}, sizes | CLASSES | settings
    )


def decoder(model_type, prefix, attention, settings, **more):
    return Case(model_type, AutoModelForCausalLM, prefix, {ATTENTION: attention}, settings, **more)


CASES = {
    "bert": encoder("bert", "bert.encoder."),
    "roberta": encoder("roberta", "roberta.encoder."),
    "electra": encoder("electra", "electra.encoder.", embedding_size=8),
    "deberta-v2": encoder("deberta-v2", "deberta.encoder.", pooler_hidden_size=16),
    "deberta-v3": encoder("deberta-v2", "deberta.encoder.", pooler_hidden_size=16, **DEBERTA_V3),
    "distilbert": encoder(
        "distilbert",
        "distilbert.transformer.",
        Attention("layer.#.attention.out_lin", "layer.#.sa_layer_norm", "layer.#.output_layer_norm"),
        **DISTILBERT,
    ),
    "gpt2": decoder(
        "gpt2",
        "transformer.",
        Attention("h.#.attn.c_proj", "h.#.ln_1", "h.#.ln_2"),
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 16},
    ),
    "opt": decoder(
        "opt",
        "model.decoder.",
        Attention("layers.#.self_attn.out_proj", "layers.#.self_attn_layer_norm", "layers.#.final_layer_norm"),
        SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
    ),
    "llama": decoder("llama", "model.", LLAMA_LAYER, GROUPED, gains_bias=True),
    "mistral": decoder("mistral", "model.", LLAMA_LAYER, GROUPED, gains_bias=True),
    "qwen3": decoder("qwen3", "model.", LLAMA_LAYER, GROUPED, gains_bias=True),
    "t5": Case("t5", AutoModelForSeq2SeqLM, "", T5_LAYERS, T5, gains_bias=True),
    "t5 gated": Case(
        "t5", AutoModelForSeq2SeqLM, "", T5_LAYERS, T5 | {"feed_forward_proj": "gated-gelu"}, gains_bias=True
    ),
    "bart": Case("bart", AutoModelForSeq2SeqLM, "model.", BART_LAYERS, BART),
}

every_architecture = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
both_positions = pytest.mark.parametrize("position", ["context", "projection"])
two_stacks = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.two_stacks],
    ids=[k for k, case in CASES.items() if case.two_stacks],
)


def adapted(base, **fields):
    """A copy of the model with an adapter; norms of both blocks, unless the fields say otherwise."""
    torch.manual_seed(2)
    return get_peft_model(copy.deepcopy(base), HadamardAdapterConfig(**{"norm": "both", **fields})).eval()


@torch.no_grad()
def logits(model, case):
    return model(**case.inputs()).logits


def names(model, kind):
    layers = [name for name, module in model.named_modules() if isinstance(module, kind)]
    return {name.removeprefix("base_model.model.") for name in layers}


def warns_of_new_biases(case):
    if case.gains_bias:
        return pytest.warns(UserWarning, match="Merging gives a bias to layers that had none")
    return contextlib.nullcontext()


@every_architecture
@both_positions
def test_starts_as_the_base_model_bit_for_bit(case, position):
    base = case.model
    assert torch.equal(logits(adapted(base, position=position), case), logits(base, case))


@every_architecture
@both_positions
def test_merging_keeps_the_function(case, position):
    base = case.model
    model = adapted(base, position=position, init_weights=False)
    expected = logits(model, case)
    assert (expected - logits(base, case)).abs().max() > 0.1
    with warns_of_new_biases(case):
        merged = model.merge_and_unload()
    assert type(merged) is type(base)
    assert not any("hadamard" in name for name in merged.state_dict())
    assert_close(logits(merged, case), expected, rtol=1e-5, atol=1e-5)


@every_architecture
@both_positions
@pytest.mark.filterwarnings("ignore:Merging gives a bias")
def test_unmerging_restores_every_bit(case, position):
    model = adapted(case.model, position=position, init_weights=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model, case)
    model.merge_adapter()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.get(name, tensor))]
    assert len(changed) >= len(names(model, (HadamardLinear, HadamardNorm)))
    model.unmerge_adapter()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model, case), expected)


@every_architecture
@both_positions
def test_saved_and_loaded_it_is_the_same_bit_for_bit(case, position, tmp_path):
    model = adapted(case.model, position=position, init_weights=False)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path).eval()
    assert torch.equal(logits(loaded, case), logits(model, case))


@every_architecture
@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_of_every_attention_and_the_norms_asked_for(case, norm):
    model = adapted(case.model, norm=norm)
    assert names(model, HadamardLinear) == case.names("projection")
    assert names(model, HadamardNorm) == case.names(*NORMS[norm])


@every_architecture
def test_only_norms(case):
    model = adapted(case.model, weight=False, bias=False)
    assert names(model, HadamardLinear) == set()
    assert names(model, HadamardNorm) == case.names("norm", "output_norm")


@every_architecture
def test_layers_are_chosen_with_their_norms(case):
    model = adapted(case.model, layers_to_transform=[1])
    assert names(model, (HadamardLinear, HadamardNorm)) == case.names(*ALL, layers=[1])


@two_stacks
@pytest.mark.parametrize("scopes", [["encoder"], ["decoder"], ["cross"], ["decoder", "cross"]], ids="+".join)
@pytest.mark.parametrize("norm", ["attention", "output"])
def test_stacks_are_chosen_with_their_norms(case, norm, scopes):
    roles = [f"{scope}.{ATTENTION}" for scope in scopes]
    model = adapted(case.model, norm=norm, roles=roles)
    assert names(model, HadamardLinear) == case.names("projection", roles=roles)
    assert names(model, HadamardNorm) == case.names(*NORMS[norm], roles=roles)


def test_a_norm_without_bias_gets_no_b_and_the_norms_of_heads_are_left_alone():
    model = adapted(CASES["qwen3"].model)
    norms = [module for module in model.modules() if isinstance(module, HadamardNorm)]
    assert all(len(norm.hadamard_norm_weight) == 1 and len(norm.hadamard_norm_bias) == 0 for norm in norms)
    assert any(name.endswith("q_norm") for name, _ in model.named_modules())
    assert not any(name.endswith(("q_norm", "k_norm")) for name in names(model, HadamardNorm))


def test_before_a_projection_of_grouped_heads_there_is_a_number_for_each_query_head():
    model = adapted(CASES["mistral"].model)
    projection = model.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    value = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj")
    assert (len(projection.hadamard_weight["default"]), value.out_features) == (16, 8)
