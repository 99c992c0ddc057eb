"""Bottleneck adapters: what they compute, what they count, what they refuse, and the promises of a peft method."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from hadamard_baselines.bottleneck import BottleneckConfig, BottleneckNorm, OutputBottleneck
from hadamard_baselines.methods.bottleneck import Houlsby, Lin, Pfeiffer
from hadamard_core.accounting import count_parameters
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, output

KINDS = ("houlsby", "pfeiffer", "lin")
METHODS = {"houlsby": Houlsby, "pfeiffer": Pfeiffer, "lin": Lin}
MERGES = "It merges, and a bottleneck is no linear function."

every_kind = pytest.mark.parametrize("kind", KINDS)


class TestBottleneck(MethodContract):
    config_class = BottleneckConfig
    variants = ({"kind": "lin", "bottleneck": 6},)
    exempt = dict.fromkeys(
        (
            "test_merging_keeps_the_function_and_unmerging_restores_every_bit",
            "test_merge_and_unload_gives_a_plain_model",
            "test_safe_merge_refuses_values_that_are_not_finite",
            "test_merging_in_every_order_gives_the_same",
            "test_disabling_unmerges",
            "test_mixed_batches_that_cannot_be_are_refused",
            "test_modules_to_save_train_and_come_back",
            "test_generates_with_beams_as_the_merged_model_does",
        ),
        MERGES,
    )


def adapted(name, seed=0, **fields):
    """One of the small models, and a copy of it with an adapter of random values."""
    torch.manual_seed(seed)
    case = MODELS[name]
    base = case.build().eval()
    config = BottleneckConfig(**{**case.adapt, "init_weights": False, "task_type": case.task_type, **fields})
    return base, get_peft_model(copy.deepcopy(base), config).eval()


def ids(name="gpt2"):
    return MODELS[name].inputs(torch.Generator().manual_seed(1))


def parameters(layer, name="default"):
    return {key.removeprefix("bottleneck_"): getattr(layer, key).get(name) for key in layer.adapter_layer_names}


def reference(layer, activation, name="default"):
    """``z -> z + up(f(down(z)))`` from a layer's parameters, as the papers write it."""
    p = parameters(layer, name)

    def compute(z):
        x = z
        if p["ln_weight"] is not None:
            x = F.layer_norm(z, z.shape[-1:], 1 + p["ln_weight"], p["ln_bias"])
        inner = activation(x @ p["down"].T + p["down_bias"])
        return z + inner @ p["up"].T + p["up_bias"]

    return compute


def trained_norm(layer):
    base, p = layer.base_layer, parameters(layer)
    return lambda x: F.layer_norm(x, x.shape[-1:], base.weight + p["norm_weight"], base.bias + p["norm_bias"], base.eps)


# -- what is computed ------------------------------------------------------------------------------------------------


def test_houlsby_in_a_pre_norm_layer():
    base, model = adapted("gpt2")
    plain, own = base.transformer.h[0], model.base_model.model.transformer.h[0]
    after_attention = reference(own.attn.c_proj.output_adapter, F.gelu)
    after_ffn = reference(own.mlp.c_proj.output_adapter, F.gelu)
    x = torch.randn(2, 5, 16)
    h = x + after_attention(plain.attn(trained_norm(own.ln_1)(x))[0])
    assert_close(own(x), h + after_ffn(plain.mlp(trained_norm(own.ln_2)(h))), rtol=1e-4, atol=1e-4)


def test_houlsby_in_a_post_norm_layer():
    base, model = adapted("bert")
    plain, own = base.bert.encoder.layer[0], model.base_model.model.bert.encoder.layer[0]
    after_attention = reference(own.attention.output.dense.output_adapter, F.gelu)
    after_ffn = reference(own.output.dense.output_adapter, F.gelu)
    x = torch.randn(2, 5, 16)
    attention = plain.attention.output.dense(plain.attention.self(x)[0])
    h = trained_norm(own.attention.output.LayerNorm)(after_attention(attention) + x)
    expected = trained_norm(own.output.LayerNorm)(after_ffn(plain.output.dense(plain.intermediate(h))) + h)
    assert_close(own(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pfeiffer", "lin"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_pfeiffer_and_lin_on_what_layers_return(name, kind):
    base, model = adapted(name, kind=kind)
    x = ids(name)
    backbone, own = base.base_model, model.base_model.model.base_model
    layers = {"gpt2": "h", "bert": "encoder.layer", "llama": "layers"}[name]
    for plain, layer in zip(backbone.get_submodule(layers), own.get_submodule(layers), strict=True):
        compute = reference(layer.output_adapter, F.relu)
        plain.register_forward_hook(lambda _, __, z, compute=compute: compute(z))
    assert_close(output(model, x), output(base, x), rtol=1e-4, atol=1e-3)


def test_activations():
    for kind, activation in (("houlsby", "relu"), ("pfeiffer", "gelu")):
        _, model = adapted("linear", kind=kind, activation=activation)
        layer = model.base_model.model.first.output_adapter
        z = torch.randn(3, 24)
        assert_close(layer(z), reference(layer, getattr(F, activation))(z))


@every_kind
def test_gradients(kind):
    _, model = adapted("linear", kind=kind, bottleneck=3)
    layer = model.base_model.model.first.output_adapter.double()
    own = list(layer.parameters())
    z = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)

    def compute(z, *values):
        return torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), values, strict=True)), (z,))

    assert torch.autograd.gradcheck(compute, (z, *own))


@every_kind
def test_start(kind):
    _, model = adapted("bert", kind=kind, init_weights=True, bottleneck=64)
    values = [parameters(layer) for layer in model.modules() if isinstance(layer, OutputBottleneck)]
    down = torch.cat([p["down"].flatten() for p in values])
    assert math.isclose(down.std().item(), 0.02, rel_tol=0.1)
    assert all(not p[name].any() for p in values for name in p if name != "down" and p[name] is not None)


def test_active_adapters_apply_one_after_another():
    _, model = adapted("linear")
    model.add_adapter("other", BottleneckConfig(target_modules=["first"], init_weights=False, kind="lin"))
    layer = model.base_model.model.first.output_adapter
    z = torch.randn(3, 24)
    first, second = reference(layer, F.gelu), reference(layer, F.relu, "other")
    model.base_model.set_adapter(["default", "other"])
    assert_close(layer(z), second(first(z)))
    model.base_model.set_adapter(["other", "default"])
    assert_close(layer(z), first(second(z)))


@every_kind
def test_products_in_bf16_round_the_change_and_not_more(kind):
    _, model = adapted("linear", kind=kind)
    layer = model.base_model.model.first.output_adapter
    z = (20 * torch.randn(50, 24)).bfloat16()
    exact = reference(layer, F.gelu if kind == "houlsby" else F.relu)(z.float())
    unit = 2.0**-8  # half of the distance of neighbours in bf16, relative
    error = (layer(z).float() - exact).norm()
    assert error <= unit * exact.norm() + 4 * unit * (exact - z.float()).norm()


@every_kind
def test_autocast_does_not_round_what_goes_past_the_bottleneck(kind):
    _, model = adapted("linear", kind=kind, init_weights=True)
    layer = model.base_model.model.first.output_adapter
    z = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(z), z)


def test_what_a_module_returned_is_not_changed_in_place():
    _, model = adapted("linear")
    z = torch.randn(5, 24)
    before = z.clone()
    model.base_model.model.first.output_adapter(z)
    assert torch.equal(z, before)


def test_a_diverged_adapter_leaves_the_other_samples_of_a_batch_alone():
    _, model = adapted("bert", kind="pfeiffer")
    model.add_adapter("other", BottleneckConfig(kind="pfeiffer", init_weights=False))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, OutputBottleneck):
                layer.bottleneck_up["other"].fill_(torch.nan)
    x = ids("bert")
    y = output(model, x, adapter_names=["default", "other", "__base__", "default"])
    assert y[[0, 2, 3]].isfinite().all()
    assert y[1].isnan().all()


# -- what is counted -------------------------------------------------------------------------------------------------

ROBERTA_LARGE = AutoConfig.for_model(
    "roberta",
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    vocab_size=50265,
)
GPT2_MEDIUM = AutoConfig.for_model("gpt2", n_embd=1024, n_layer=24, n_head=16)
ROBERTA_NORMS = GPT2_NORMS = 24 * 2 * 2048


@pytest.mark.parametrize(
    ("config", "method", "adapter", "norms"),
    [
        (ROBERTA_LARGE, Houlsby(64), 6_343_680, ROBERTA_NORMS),
        (ROBERTA_LARGE, Houlsby(8), 835_968, ROBERTA_NORMS),
        (ROBERTA_LARGE, Houlsby(8, norms=False), 835_968, 0),
        (ROBERTA_LARGE, Pfeiffer(64), 3_171_840, 0),
        (ROBERTA_LARGE, Pfeiffer(16), 811_392, 0),
        (GPT2_MEDIUM, Houlsby(112), 11_064_576, GPT2_NORMS),
        (GPT2_MEDIUM, Lin(6), 368_784, 0),
        (GPT2_MEDIUM, Lin(224), 11_089_152, 0),
    ],
    ids=lambda value: value.model_type if hasattr(value, "model_type") else str(value),
)
def test_parameters_of_the_papers_models(config, method, adapter, norms):
    with torch.device("meta"):
        model = AutoModel.from_config(config)
        every = sum(parameter.numel() for parameter in model.parameters())
        counts = count_parameters(method.apply(model, "FEATURE_EXTRACTION"))
    assert (counts.adapter, counts.norm, counts.head) == (adapter, norms, 0)
    assert counts.frozen == every


@every_kind
def test_no_bias_is_decayed(kind):
    _, model = adapted("bert", kind=kind)
    containers = {name: p for name, m in model.named_modules() if isinstance(m, nn.ParameterDict) for p in m.values()}
    biases = [name for name in containers if name.endswith("_bias")]
    assert len(biases) == sum(name.endswith(("up", "down", "weight")) for name in containers)
    assert all(containers[name].dim() == 1 for name in biases)


# -- several adapters and files ----------------------------------------------------------------------------------------


def test_adapters_of_all_kinds_share_a_model_and_their_files_load_alone(tmp_path):
    base, model = adapted("gpt2")
    model.add_adapter("pfeiffer", BottleneckConfig(kind="pfeiffer", init_weights=False, norms=True))
    model.add_adapter("lin", BottleneckConfig(kind="lin", init_weights=False, bottleneck=3))
    x = ids()
    outputs = {}
    for name in ("lin", "default", "pfeiffer"):
        model.set_adapter(name)
        outputs[name] = output(model, x)
    model.save_pretrained(tmp_path)
    for name, expected in outputs.items():
        folder = tmp_path if name == "default" else tmp_path / name
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        assert torch.equal(output(loaded, x), expected)
    names = ["lin", "default", "pfeiffer", "__base__"]
    together = output(model, x, adapter_names=names)
    for row, name in enumerate(names):
        assert_close(together[row], outputs.get(name, output(base, x))[row], rtol=1e-4, atol=1e-4)


@every_kind
def test_unloading_leaves_nothing_behind(kind):
    base, model = adapted("gpt2", kind=kind)
    expected = output(model, ids())
    plain = copy.deepcopy(model).unload()
    assert torch.equal(output(model, ids()), expected)
    assert {name: type(m) for name, m in plain.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    assert not any(module._forward_hooks for module in plain.modules())
    assert torch.equal(output(plain, ids()), output(base, ids()))


def test_modules_to_save_come_back(tmp_path):
    base, model = adapted("bert", modules_to_save=["classifier"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                assert parameter.requires_grad
                parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, ids("bert")), output(model, ids("bert")))


def test_without_autocasting_adapters_have_the_dtype_of_the_base():
    torch.manual_seed(0)
    base = MODELS["gpt2"].build().bfloat16()
    for kind in KINDS:
        config = BottleneckConfig(kind=kind, init_weights=False)
        model = get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
        assert output(model, ids()).isfinite().all()


# -- what is refused -------------------------------------------------------------------------------------------------


@every_kind
def test_merging_is_refused_in_one_sentence_and_changes_nothing(kind):
    _, model = adapted("bert", kind=kind)
    x = ids("bert")
    before = output(model, x)
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.merge_and_unload):
        with pytest.raises(ValueError, match=r"^A bottleneck adapter is no linear function[^.]*\.$"):
            merge()
    layer = next(module for module in model.modules() if isinstance(module, OutputBottleneck))
    with pytest.raises(ValueError, match="no linear function"):
        layer.merge()
    model.unmerge_adapter()
    assert torch.equal(output(model, x), before)


def test_mixed_batches_that_cannot_be_are_refused():
    _, model = adapted("bert")
    x = ids("bert")
    for wrong, words in ((["defualt"] * 4, "'defualt', which"), (["default"] * 3, "give one for each")):
        with pytest.raises(ValueError, match=words):
            model(x, adapter_names=wrong)
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(x, adapter_names=["default"] * 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "hadapter"}, "kind is 'hadapter'.*'houlsby', 'pfeiffer', 'lin'"),
        ({"bottleneck": 0}, "bottleneck is 0.*at least 1"),
        ({"activation": "swish"}, "activation is 'swish'.*'gelu', 'relu'"),
        ({"compute": "weight"}, "compute is 'weight'"),
        ({"roles": ["query"]}, "roles has 'query'.*'attention_output' and 'ffn_output'"),
        ({"kind": "lin", "roles": ["attention_output"]}, "acts on 'ffn_output'"),
        ({"roles": ["ffn_output"], "target_modules": ["dense"]}, "both given"),
    ],
    ids=str,
)
def test_configs_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        BottleneckConfig(**fields)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize(
    ("inner", "fields", "words"),
    [
        (nn.Conv2d(8, 8, 1), {"target_modules": ["inner"]}, "inner is a Conv2d.*how many features"),
        (nn.MultiheadAttention(8, 2), {"target_modules": ["inner.out_proj"]}, "belongs to an nn.MultiheadAttention"),
        (nn.Linear(8, 8), {"target_modules": ["inner"], "norms": True}, "give norms=False"),
        (nn.Linear(8, 8), {}, "No layers with known roles"),
    ],
    ids=str,
)
def test_modules_that_cannot_be_adapted_are_refused(inner, fields, words):
    with pytest.raises(ValueError, match=words):
        get_peft_model(Wrapped(inner), BottleneckConfig(**fields))


def test_the_output_of_a_norm_can_be_adapted_if_it_does_not_train_as_a_norm():
    norms = BottleneckConfig(target_modules=["ln_1"], init_weights=False)
    _, model = adapted("gpt2", target_modules=["ln_1"])
    assert_close(
        model.base_model.model.transformer.h[0].ln_1.output_adapter(torch.ones(2, 16)).shape, torch.Size([2, 16])
    )
    with pytest.raises(ValueError, match=r"Module transformer\.h\.0\.ln_1 is to be trained as a norm"):
        model.add_adapter("other", BottleneckConfig())
    with pytest.raises(ValueError, match=r"Module transformer\.h\.0\.ln_1 is to be trained as a norm"):
        adapted("gpt2")[1].add_adapter("other", norms)
    with pytest.raises(ValueError, match=r"Module transformer\.h\.0\.ln_1 is to be trained as a norm"):
        adapted("gpt2", target_modules=["ln_1"], norms=True)


def test_a_module_that_returns_no_tensor_is_refused():
    _, model = adapted("linear")
    model.base_model.model.first.forward = lambda x: {"y": x}
    with pytest.raises(TypeError, match="A Linear returned a dict"):
        model(torch.randn(2, 10))


# -- as methods of the harness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_name", ["bert", "gpt2", "llama"])
@every_kind
def test_applied_saved_loaded_and_scored(kind, case_name, tmp_path):
    method, case = METHODS[kind](4), MODELS[case_name]
    torch.manual_seed(0)
    base = case.build()
    model = method.apply(copy.deepcopy(base), case.task_type, [case.head]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, ids(case_name)), output(model, ids(case_name)))
    with pytest.raises(ValueError, match="no weights of the base model can hold it"):
        method.merge(loaded)


@every_kind
def test_methods_act_as_their_papers_say(kind):
    method = METHODS[kind]()
    config = method.peft_config(MODELS["bert"].build(), "SEQ_CLS")
    assert config == BottleneckConfig(kind=kind, task_type="SEQ_CLS")
    assert {key.partition(".")[2] for key in method.search_space} == {"learning_rate", "bottleneck"}
    assert {field.name for field in dataclasses.fields(method)} == {
        "bottleneck",
        "activation",
        "norms",
        "layers",
        "target_modules",
    }


@every_kind
def test_layers_and_targets_are_chosen(kind):
    model = METHODS[kind](4, layers=("top:1",)).apply(MODELS["bert"].build(), "SEQ_CLS")
    names = [name for name, m in model.named_modules() if isinstance(m, (OutputBottleneck, BottleneckNorm))]
    assert names
    assert all(".layer.1." in name for name in names)
    model = METHODS[kind](4, target_modules=("query",)).apply(MODELS["bert"].build(), "SEQ_CLS")
    adapters = [name for name, m in model.named_modules() if isinstance(m, OutputBottleneck)]
    assert [name.rpartition("encoder.")[2] for name in adapters] == [
        f"layer.{number}.attention.self.query.output_adapter" for number in (0, 1)
    ]
    norms = sum(isinstance(m, BottleneckNorm) for m in model.modules())
    assert norms == (4 if kind == "houlsby" else 0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"bottleneck": 0}, "--method.bottleneck is 0: it must be at least 1"), ({"layers": ("first",)}, "'first'")],
)
@every_kind
def test_settings_that_make_no_sense_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        METHODS[kind](**fields)
