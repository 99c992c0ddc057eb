"""SSF computes gamma * y + beta after every projection and norm, and keeps every promise of a peft method."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

from hadamard_baselines.everywhere import projections_and_norms
from hadamard_baselines.methods.ssf import Ssf
from hadamard_baselines.ssf import SsfConfig, SsfLayer, SsfNorm
from hadamard_core.accounting import count_parameters
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, ModelCase, TwoLinear, output


class TestSsf(MethodContract):
    config_class = SsfConfig

    def config(self, case: ModelCase, variant: Mapping[str, Any] = {}, **fields: Any) -> SsfConfig:
        return self.config_class(**{**variant, **fields})  # without target_modules, everything


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def gemma():
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    return GemmaForCausalLM(GemmaConfig(**sizes, vocab_size=40, num_key_value_heads=1, head_dim=8))


BUILDS = {name: MODELS[name].build for name in ("bert", "gpt2", "llama")} | {"gemma": gemma}


def randomised(base):
    """The base model with norms and biases of any value, which transformers starts at ones and zeros."""
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return base.double().eval()


# Gemma's norms compute in fp32, whatever they are given.
TOLERANCE = {"bert": 1e-9, "gpt2": 1e-9, "llama": 1e-9, "gemma": 1e-5}


@pytest.mark.parametrize("compute", ["weight", "activation"])
@pytest.mark.parametrize("name", BUILDS)
def test_is_gamma_times_the_output_plus_beta(name, compute):
    base, x = randomised(BUILDS[name]()), MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    model = get_peft_model(copy.deepcopy(base), SsfConfig(init_weights=False, compute=compute)).double().eval()
    found = output(model, x)
    grad = torch.randn_like(found)
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, SsfLayer)}
    parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]

    def scale_and_shift(gamma, beta):
        return lambda _module, _args, y: y * gamma + (0 if beta is None else beta)

    reference = copy.deepcopy(base)
    for path, layer in layers.items():
        beta = layer.ssf_bias.get("default", None)
        reference.get_submodule(path).register_forward_hook(scale_and_shift(layer.ssf_scale["default"], beta))
    expected = output(reference, x)
    close = {"rtol": TOLERANCE[name], "atol": TOLERANCE[name]}
    assert_close(found, expected, **close)
    gradients = [torch.cat(torch.autograd.grad(y, parameters, grad)) for y in (found, expected)]
    scale = gradients[1].abs().max()
    assert_close(gradients[0] / scale, gradients[1] / scale, **close)
    assert_close(output(model.merge_and_unload(), x), expected, **close)


def test_roles_mean_slices_of_a_fused_projection():
    base = randomised(MODELS["gpt2"].build())
    config = SsfConfig(roles=["query", "value"], init_weights=False)
    model = get_peft_model(copy.deepcopy(base), config).double()
    layer, own = (m.transformer.h[0].attn.c_attn for m in (model.base_model.model, base))
    assert count_parameters(model).adapter == 2 * 2 * 2 * 16
    gamma, beta = layer.ssf_scale["default"], layer.ssf_bias["default"]
    x = torch.randn(3, 16).double()
    query, key, value = own(x).split(16, -1)
    expected = torch.cat([query * gamma[:16] + beta[:16], key, value * gamma[16:] + beta[16:]], -1)
    assert_close(layer(x), expected)
    layer.merge()
    assert_close(layer(x), expected)


def test_several_adapters_scale_by_the_product_and_shift_by_the_sum():
    base, x = TwoLinear().double().eval(), torch.randn(5, 10).double()
    config = SsfConfig(target_modules=["first", "norm"], init_weights=False)
    model = get_peft_model(copy.deepcopy(base), config)
    model.add_adapter("other", config)
    model.base_model.set_adapter(["default", "other"])
    model = model.double()
    for name in ("first", "norm"):
        layer, own = getattr(model.base_model.model, name), getattr(base, name)
        y = torch.randn(5, own.weight.shape[-1]).double()
        gamma, beta = layer.ssf_scale, layer.ssf_bias
        expected = own(y) * gamma["default"] * gamma["other"] + beta["default"] + beta["other"]
        assert_close(layer(y), expected, rtol=1e-12, atol=1e-12)
    expected = model(x)
    model.merge_adapter(adapter_names=["other"])
    model.merge_adapter(adapter_names=["default"])
    assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_parameters_on_roberta_large():
    config = RobertaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50265
    )
    with torch.device("meta"):
        model = get_peft_model(RobertaForSequenceClassification(config), SsfConfig())
    counts = count_parameters(model)
    features = 24 * (4 * 1024 + 4096 + 1024)
    norms = 24 * 2 * 1024 + 1024
    assert (counts.adapter, counts.norm, counts.head) == (2 * features, 2 * norms, 0)
    assert counts.trained == 542_720


def test_an_rms_norm_has_a_scale_alone_also_on_the_meta_device():
    with torch.device("meta"):
        model = get_peft_model(gemma(), SsfConfig())
    norms = [module for module in model.modules() if isinstance(module, SsfNorm)]
    assert len(norms) == 5
    assert all("default" in norm.ssf_scale and "default" not in norm.ssf_bias for norm in norms)


def test_the_papers_start_is_near_the_identity():
    base, x = MODELS["bert"].build().eval(), MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    model = get_peft_model(copy.deepcopy(base), SsfConfig(init="normal")).eval()
    values = {
        kind: torch.cat([p for name, p in model.named_parameters() if f".{kind}." in name])
        for kind in ("ssf_scale", "ssf_bias")
    }
    for kind, center in (("ssf_scale", 1.0), ("ssf_bias", 0.0)):
        assert abs(values[kind].mean() - center) < 0.005
        assert abs(values[kind].std() - 0.02) < 0.005
    assert not torch.equal(output(model, x), output(base, x))


def test_heads_poolers_and_what_cannot_be_adapted_are_left_out():
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_ff=32, num_layers=1, d_kv=8, num_heads=2, vocab_size=40))
    names = projections_and_norms(t5)
    assert "lm_head" not in names
    assert "decoder.final_layer_norm" in names
    assert len(names) == (4 + 2 + 2 + 1) + (8 + 2 + 3 + 1)
    inside = nn.ModuleDict({"text": MODELS["bert"].build(), "more": nn.Linear(3, 3)})
    names = projections_and_norms(inside)
    assert "more" in names
    assert not any("pooler" in name or "classifier" in name for name in names)
    assert projections_and_norms(nn.TransformerEncoderLayer(8, 2, 16)) == ["linear1", "linear2", "norm1", "norm2"]


def test_a_second_adapter_is_put_on_the_same_modules():
    model = get_peft_model(MODELS["bert"].build(), SsfConfig(modules_to_save=["classifier"]))
    before = [name for name, module in model.named_modules() if isinstance(module, SsfLayer)]
    model.add_adapter("other", SsfConfig())
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SsfLayer)}
    assert list(layers) == before
    assert all("other" in layer.ssf_scale for layer in layers.values())


def test_a_norm_that_multiplies_by_1_plus_its_weight():
    base = NemotronLayerNorm1P(6).requires_grad_(False)
    for parameter in base.parameters():
        parameter.normal_()
    layer = SsfNorm(copy.deepcopy(base), "default", SsfConfig(init_weights=False))
    x = torch.randn(4, 6)
    expected = base(x) * layer.ssf_scale["default"] + layer.ssf_bias["default"]
    assert_close(layer(x), expected)
    layer.merge()
    assert_close(layer(x), expected)


class OddNorm(nn.RMSNorm):
    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.square())


def test_bad_input():
    with pytest.raises(ValueError, match="init is 'zeros' in SsfConfig"):
        SsfConfig(init="zeros")
    with pytest.raises(ValueError, match="init is 'zeros': it must be one of identity, normal"):
        Ssf(init="zeros")
    with pytest.raises(ValueError, match="layers has 'last'"):
        Ssf(layers=("last",))
    with pytest.raises(ValueError, match="A OddNorm multiplies neither by its weight"):
        get_peft_model(nn.Sequential(nn.Linear(4, 6), OddNorm(6)), SsfConfig())


@pytest.mark.parametrize("case_name", ["bert", "gpt2", "llama"])
def test_as_a_method_of_the_harness(case_name, tmp_path):
    case = MODELS[case_name]
    base, x = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    method = Ssf(init="normal", layers=(0,))
    model = method.apply(copy.deepcopy(base), case.task_type, [case.head]).eval()
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, x), output(model, x))
    assert not torch.equal(output(loaded, x), output(base, x))
    with pytest.warns(UserWarning, match="Merging gives a bias") if case_name == "llama" else nullcontext():
        merged = method.merge(loaded)
    assert_close(output(merged, x), output(model, x), atol=1e-5, rtol=1e-4)
