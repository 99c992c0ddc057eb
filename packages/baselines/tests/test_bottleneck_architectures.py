"""Bottleneck adapters on every kind of architecture: where they are, and that all around them goes on working."""

import copy
import functools
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from hadamard_baselines.bottleneck import BottleneckConfig, BottleneckNorm, OutputBottleneck
from hadamard_core.targets import find_targets, module_names

LAYER_KINDS = ("pfeiffer", "lin")
KINDS = ("houlsby", *LAYER_KINDS)


@dataclass(frozen=True, eq=False)
class Case:
    """A tiny model of one architecture: its type, what its configuration needs, whether its norms come first."""

    model_type: str
    auto: type
    pre_norm: bool
    settings: dict = field(default_factory=dict)

    @functools.cached_property
    def model(self):
        """A model with random values where transformers starts with zeros (biases) and ones (norms), too."""
        torch.manual_seed(0)
        model = self.auto.from_config(AutoConfig.for_model(self.model_type, **self.settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    @property
    def attentions(self):
        return len(find_targets(self.model, ["attention_output"]))

    @property
    def layers(self):
        return [name for name, m in self.model.named_modules() if isinstance(m, GradientCheckpointingLayer)]

    def inputs(self):
        generator = torch.Generator().manual_seed(1)
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[1, :2] = 0
        inputs = {"input_ids": torch.randint(5, 40, (2, 6), generator=generator), "attention_mask": mask}
        if self.auto is AutoModelForSeq2SeqLM:
            inputs["decoder_input_ids"] = torch.randint(5, 40, (2, 5), generator=generator)
        return inputs


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 4}
OPT = SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
T5 |= {"decoder_start_token_id": 0}
BART = {"d_model": 16, "vocab_size": 40, "max_position_embeddings": 32}
for stack in ("encoder", "decoder"):
    BART |= {f"{stack}_layers": 2, f"{stack}_attention_heads": 4, f"{stack}_ffn_dim": 24}
DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "pooler_hidden_size": 16,
}


def encoder(model_type, **settings):
    sizes = {} if "dim" in settings else SIZES
    every = sizes | {"num_labels": 3, "pad_token_id": 0} | settings
    return Case(model_type, AutoModelForSequenceClassification, False, every)


def decoder(model_type, settings, pre_norm=True):
    return Case(model_type, AutoModelForCausalLM, pre_norm, settings)


def two_stacks(model_type, settings, pre_norm=True):
    return Case(model_type, AutoModelForSeq2SeqLM, pre_norm, settings)


CASES = {
    "bert": encoder("bert"),
    "roberta": encoder("roberta"),
    "electra": encoder("electra", embedding_size=8),
    "deberta-v3": encoder("deberta-v2", **DEBERTA_V3),
    "distilbert": encoder("distilbert", dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=40),
    "gpt2": decoder("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32}),
    "gpt_neox": decoder("gpt_neox", SIZES),
    "opt": decoder("opt", OPT),
    "opt post-norm": decoder("opt", OPT | {"do_layer_norm_before": False}, pre_norm=False),
    "llama": decoder("llama", GROUPED),
    "mistral": decoder("mistral", GROUPED),
    "qwen3": decoder("qwen3", GROUPED),
    "t5": two_stacks("t5", T5),
    "bart": two_stacks("bart", BART, pre_norm=False),
    "mbart": two_stacks("mbart", BART),
}


def cases(test):
    chosen = {name: case for name, case in CASES.items() if test(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


every_architecture = cases(lambda case: True)
every_kind = pytest.mark.parametrize("kind", KINDS)
both_places = pytest.mark.parametrize("kind", ["houlsby", "lin"])
layer_kinds = pytest.mark.parametrize("kind", LAYER_KINDS)

# What goes on around a layer is its architecture's affair and takes time to test; a projection is called in one way.
GENERATORS = ("gpt2", "gpt_neox", "opt", "llama", "qwen3", "t5", "bart", "mbart")
around_layers = pytest.mark.parametrize(
    ("name", "kind"), [*((name, "lin") for name in GENERATORS), ("gpt2", "houlsby"), ("t5", "houlsby")]
)
TASKS = {
    AutoModelForSequenceClassification: "SEQ_CLS",
    AutoModelForCausalLM: "CAUSAL_LM",
    AutoModelForSeq2SeqLM: "SEQ_2_SEQ_LM",
}


def adapted(case, kind, init_weights=False, **fields):
    """A copy of the model with an adapter of random values."""
    torch.manual_seed(2)
    config = BottleneckConfig(kind=kind, bottleneck=5, init_weights=init_weights, task_type=TASKS[case.auto], **fields)
    return get_peft_model(copy.deepcopy(case.model), config).eval()


@torch.no_grad()
def logits(model, case):
    return model(**case.inputs()).logits


def names(model, kind):
    """The names of the norms that train, or of the modules whose output is adapted."""
    found = [name.removeprefix("base_model.model.") for name, module in model.named_modules() if type(module) is kind]
    return [name.removesuffix(".output_adapter") for name in found]


def by_hand(adapter):
    """What an adapter makes of z, as the papers write it, for adapters on layers."""
    p = {key.removeprefix("bottleneck_"): getattr(adapter, key).get("default") for key in adapter.adapter_layer_names}

    def compute(z):
        x = z
        if p["ln_weight"] is not None:
            x = F.layer_norm(z, z.shape[-1:], 1 + p["ln_weight"], p["ln_bias"])
        return z + torch.relu(x @ p["down"].T + p["down_bias"]) @ p["up"].T + p["up_bias"]

    return compute


@every_architecture
@every_kind
def test_starts_as_the_base_model_bit_for_bit(case, kind):
    assert torch.equal(logits(adapted(case, kind, init_weights=True), case), logits(case.model, case))


@every_architecture
def test_houlsby_is_after_every_attention_and_feed_forward_and_their_norms_train(case):
    model = adapted(case, "houlsby")
    assert names(model, OutputBottleneck) == module_names(case.model, ["attention_output", "ffn_output"])
    assert set(names(model, BottleneckNorm)) == set(module_names(case.model, ["attention_norm", "output_norm"]))
    assert len(names(model, OutputBottleneck)) == case.attentions + len(case.layers)


@every_architecture
@layer_kinds
def test_pfeiffer_and_lin_are_on_every_layer_and_no_norm_trains(case, kind):
    model = adapted(case, kind)
    assert names(model, OutputBottleneck) == case.layers
    assert names(model, BottleneckNorm) == []


@every_architecture
@layer_kinds
def test_layers_return_what_the_adapter_makes_of_their_output(case, kind):
    model, expected = adapted(case, kind), copy.deepcopy(case.model)
    for name in case.layers:
        compute = by_hand(model.get_submodule(f"base_model.model.{name}.output_adapter"))
        expected.get_submodule(name).register_forward_hook(
            lambda _, __, out, f=compute: (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)
        )
    changed = logits(model, case)
    assert_close(changed, logits(expected, case), rtol=1e-4, atol=1e-4)
    assert (changed - logits(case.model, case)).abs().max() > 0.01


@cases(lambda case: not case.pre_norm)
def test_in_post_norm_models_the_adapter_is_on_the_last_norm_of_the_layer(case):
    model = adapted(case, "pfeiffer").base_model.model
    seen = {}
    norms = module_names(case.model, ["output_norm"])
    for norm, layer in zip(norms, case.layers, strict=True):
        model.get_submodule(norm).register_forward_hook(lambda *given, at=norm: seen.update({at: given[-1]}))
        model.get_submodule(f"{layer}.output_adapter").register_forward_hook(
            lambda *given, at=norm: seen.update({f"adapter of {at}": given[1][0]})
        )
    logits(model, case)
    for norm in norms:
        assert torch.equal(seen[norm].flatten(), seen[f"adapter of {norm}"].flatten())


@every_architecture
@both_places
def test_all_of_the_adapter_trains_and_nothing_else(case, kind):
    model = adapted(case, kind)
    model(**case.inputs()).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("bottleneck_" in name or "modules_to_save" in name)
        assert (parameter.grad is not None) == parameter.requires_grad
        assert not parameter.requires_grad or parameter.grad.any(), name


@every_architecture
@both_places
def test_saved_and_loaded_it_is_the_same_bit_for_bit(case, kind, tmp_path):
    model = adapted(case, kind)
    expected = logits(model, case)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path).eval()
    assert torch.equal(logits(loaded, case), expected)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, case), logits(case.model, case))
    assert torch.equal(logits(loaded.unload(), case), logits(case.model, case))


@every_architecture
@both_places
def test_layers_are_chosen_with_their_norms(case, kind):
    every, model = adapted(case, kind, norms=True), adapted(case, kind, norms=True, layers_to_transform=[1])
    second = [name for name in case.layers if name.endswith(".1")]
    for layer in (OutputBottleneck, BottleneckNorm):
        inside = [name for name in names(every, layer) if any(f"{name}.".startswith(f"{at}.") for at in second)]
        assert inside
        assert names(model, layer) == inside


@cases(lambda case: case.auto is AutoModelForSeq2SeqLM)
@both_places
def test_a_stack_is_chosen_with_its_norms(case, kind):
    model = adapted(case, kind, roles=["decoder.ffn_output"], norms=True)
    places = [*names(model, OutputBottleneck), *names(model, BottleneckNorm)]
    assert all("decoder." in name for name in places)
    assert len(places) == 2 + 2 * 3
    if kind == "houlsby":
        model = adapted(case, kind, roles=["cross.attention_output"])
        assert names(model, OutputBottleneck) == module_names(case.model, ["cross.attention_output"])


@every_architecture
def test_recorded_hidden_states_are_what_the_next_layer_gets(case):
    # recorded from before there is an adapter, so that the hooks that record are there first
    base = copy.deepcopy(case.model)
    base(**case.inputs(), output_hidden_states=True)
    torch.manual_seed(2)
    model = get_peft_model(base, BottleneckConfig(kind="lin", bottleneck=5, init_weights=False)).eval()
    stacks = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states"}
    last = [name for name in case.layers if name.endswith(".1")]
    seen = {}
    for name in last:
        own = model.get_submodule(f"base_model.model.{name}")
        own.register_forward_pre_hook(
            lambda _, args, kwargs, at=name: seen.update({at: args[0] if args else kwargs["hidden_states"]}),
            with_kwargs=True,
        )
    with torch.no_grad():
        result = model(**case.inputs(), output_hidden_states=True)
    for name in last:
        two = case.auto is AutoModelForSeq2SeqLM
        states = result[stacks["encoder" if "encoder." in name else "decoder"] if two else "hidden_states"]
        assert len(states) == 3
        assert torch.equal(states[1], seen[name])


@pytest.mark.parametrize(
    ("name", "kind", "reentrant"),
    [
        *((name, "lin", False) for name in (*GENERATORS, "bert", "deberta-v3", "distilbert")),
        *((name, kind, True) for name in ("gpt2", "bert", "t5") for kind in ("houlsby", "lin")),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(name, kind, reentrant):
    case = CASES[name]
    gradients = []
    for checkpointing in (False, True):
        model = adapted(case, kind)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            for dropout in {"p", "dropout", "attention_dropout", "dropout_prob"} & vars(module).keys():
                setattr(module, dropout, 0.0)
        model(**case.inputs()).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "bottleneck_" in name})
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


@around_layers
def test_generates_the_same_with_and_without_a_cache(name, kind):
    case = CASES[name]
    model = adapted(case, kind)
    with_cache = generate(model, case, use_cache=True)
    assert torch.equal(with_cache, generate(model, case, use_cache=False))


@around_layers
def test_generates_with_beams_for_mixed_batches(name, kind):
    case = CASES[name]
    model = adapted(case, kind)
    model.add_adapter("other", BottleneckConfig(kind=kind, bottleneck=3, init_weights=False))
    names = ["other", "default"]
    together = generate(model, case, adapter_names=names)
    for row, name in enumerate(names):
        model.set_adapter(name)
        assert torch.equal(together[row], generate(model, case)[row])


def generate(model, case, **more):
    inputs = {name: tensor for name, tensor in case.inputs().items() if name != "decoder_input_ids"}
    settings = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(**inputs, **settings, **more)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_compiles_to_one_graph_on_whole_layers(name):
    case = CASES[name]
    model = adapted(case, "lin")
    expected = logits(model, case)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(logits(compiled, case), expected, rtol=1e-4, atol=1e-5)
