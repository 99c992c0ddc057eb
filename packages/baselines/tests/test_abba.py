"""ABBA computes W0 + s (B1 A1) * (B2 A2) without a dense update, and keeps every promise of a peft method."""

import copy

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, RobertaConfig, RobertaModel

import hadamard_core.layer
import hadamard_core.orientation
from hadamard_baselines.abba import AbbaConfig, AbbaLinear
from hadamard_baselines.methods.abba import Abba
from hadamard_core.accounting import count_parameters
from hadamard_core.orientation import weight_as_linear
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, TwoLinear, output


class TestAbba(MethodContract):
    config_class = AbbaConfig


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def layers_of(model):
    return {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, AbbaLinear)}


def parameters_of(layer, adapter="default"):
    return [getattr(layer, name)[adapter] for name in layer.adapter_layer_names]


def dense_update(layer):
    """s (B1 A1) * (B2 A2) as written, for each slice."""
    b1, a1, b2, a2 = parameters_of(layer)
    slices = layer.slices["default"]
    if slices is None:
        return 8.0 * (b1 @ a1) * (b2 @ a2)
    update, start = b1.new_zeros(layer.out_features, layer.in_features), 0
    for number, own in enumerate(slices):
        rows = slice(start, start := start + own.size(layer.out_features))
        part = 8.0 * (b1[rows] @ a1[number]) * (b2[rows] @ a2[number])
        update = update.index_put((own.index(layer.out_features),), part)
    return update


def neox():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=40, initializer_range=0.5))


@pytest.mark.parametrize(
    ("build", "fields"),
    [
        pytest.param(MODELS["bert"].build, {}, id="linear"),
        pytest.param(MODELS["gpt2"].build, {}, id="slices of c_attn"),
        pytest.param(MODELS["gpt2"].build, {"roles": ["value"]}, id="one slice"),
        pytest.param(MODELS["gpt2"].build, {"target_modules": ["c_attn", "c_proj"]}, id="Conv1D, whole"),
        pytest.param(neox, {}, id="slices in each head"),
    ],
)
def test_is_the_dense_formula(build, fields):
    base = build().double().eval()
    model = get_peft_model(copy.deepcopy(base), AbbaConfig(r1=2, r2=3, init_weights=False, **fields)).double().eval()
    for name, layer in layers_of(model).items():
        own = base.get_submodule(name)
        x = torch.randn(2, 5, layer.in_features).double().requires_grad_()
        weight = weight_as_linear(own).detach()
        expected = x @ (weight + dense_update(layer)).T + own.bias.detach()
        assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)
        grad = torch.randn_like(expected)
        wanted = [x, *parameters_of(layer)]
        ours, theirs = (torch.autograd.grad(y, wanted, grad) for y in (layer(x), expected))
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, rtol=1e-10, atol=1e-10)
        layer.merge()
        assert_close(weight_as_linear(layer.base_layer).detach(), weight + dense_update(layer).detach())


def test_is_the_loha_of_peft_with_the_same_values():
    base, x = nn.Sequential(nn.Linear(10, 6)), torch.randn(5, 10)
    ours = get_peft_model(copy.deepcopy(base), AbbaConfig(target_modules=["0"], init_weights=False))
    # LoHa multiplies by alpha / r.
    theirs = get_peft_model(base, peft.LoHaConfig(target_modules=["0"], r=4, alpha=8 * 4))
    loha = theirs.base_model.model[0]
    values = parameters_of(layers_of(ours)["0"])
    with torch.no_grad():
        for name, value in zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), values, strict=True):
            getattr(loha, name)["default"].copy_(value)
    assert_close(ours(x), theirs(x))


def test_starts_from_the_largest_singular_values():
    base = nn.Sequential(nn.Linear(40, 30)).requires_grad_(False)
    u, s, v = torch.linalg.svd(base[0].weight.double(), full_matrices=False)
    s = 0.5 ** torch.arange(30).double()
    base[0].weight.copy_((u * s) @ v)
    layer = layers_of(get_peft_model(base, AbbaConfig(target_modules=["0"])))["0"]
    b1, a1, b2, a2 = parameters_of(layer)
    assert_close(b1 @ a1, ((u[:, :4] * s[:4]) @ v[:4]).float(), atol=1e-5, rtol=1e-4)
    assert_close(b1.T @ b1, torch.diag(s[:4]).float(), atol=1e-5, rtol=1e-4)
    assert_close(a1 @ a1.T, torch.diag(s[:4]).float(), atol=1e-5, rtol=1e-4)
    assert not b2.any()
    bound = (6 / 40) ** 0.5
    assert 0.9 * bound < a2.abs().max() <= bound


def test_each_slice_starts_from_its_own_part():
    base = MODELS["gpt2"].build()
    model = get_peft_model(copy.deepcopy(base), AbbaConfig(r1=16))
    for name, layer in layers_of(model).items():
        query, _, value = weight_as_linear(base.get_submodule(name)).split(16)
        b1, a1, _, _ = parameters_of(layer)
        assert_close(torch.cat([b1[:16] @ a1[0], b1[16:] @ a1[1]]), torch.cat([query, value]), atol=1e-5, rtol=1e-4)


def test_an_adapter_added_while_another_is_merged_starts_from_the_base_weight():
    base = nn.Sequential(nn.Linear(6, 5))
    config = AbbaConfig(target_modules=["0"], r1=5, init_weights=False)
    model = get_peft_model(copy.deepcopy(base), config)
    model.merge_adapter()
    model.add_adapter("other", AbbaConfig(target_modules=["0"], r1=5))
    b1, a1, _, _ = parameters_of(layers_of(model)["0"], "other")
    assert_close(b1 @ a1, base[0].weight, atol=1e-5, rtol=1e-4)


def test_where_there_are_fewer_singular_values_than_r1_all_of_it_trains():
    base = nn.Sequential(nn.Linear(6, 3)).requires_grad_(False)
    b1, a1, b2, _ = parameters_of(layer := layers_of(get_peft_model(base, AbbaConfig(target_modules=["0"])))["0"])
    assert_close(b1 @ a1, base[0].weight, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        b2.normal_()
    layer(torch.randn(4, 6)).square().sum().backward()
    assert b1.grad.all()


def test_no_singular_values_are_computed_for_a_file_or_on_the_meta_device(monkeypatch, tmp_path):
    base, x = MODELS["bert"].build().eval(), MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    model = get_peft_model(copy.deepcopy(base), AbbaConfig(init_weights=False)).eval()
    model.save_pretrained(tmp_path)
    start = get_peft_model(copy.deepcopy(base), AbbaConfig()).eval()
    start.save_pretrained(tmp_path / "start")
    monkeypatch.setattr(torch, "svd_lowrank", lambda *args, **kwargs: pytest.fail("computed singular values"))
    for folder, saved in ((tmp_path, model), (tmp_path / "start", start)):
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        assert torch.equal(output(loaded, x), output(saved, x))
        for name, values in peft.get_peft_model_state_dict(saved).items():
            assert torch.equal(peft.get_peft_model_state_dict(loaded)[name], values)
    with torch.device("meta"):
        get_peft_model(MODELS["bert"].build(), AbbaConfig())


@pytest.mark.parametrize(
    ("build", "fields", "lora"),
    [
        pytest.param(
            lambda: RobertaModel(
                RobertaConfig(
                    hidden_size=1024,
                    num_hidden_layers=24,
                    num_attention_heads=16,
                    intermediate_size=4096,
                    vocab_size=50265,
                )
            ),
            {},
            786_432,
            id="RoBERTa-large, as LoRA of r=8",
        ),
        pytest.param(
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
            {"r1": 2, "r2": 2},
            393_216,
            id="GPT-2 medium, as LoRA of r=4",
        ),
    ],
)
def test_parameters_are_those_of_lora_of_twice_the_rank(build, fields, lora):
    with torch.device("meta"):
        model = get_peft_model(build(), AbbaConfig(**fields))
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm, counts.head) == (lora, 0, 0)


def test_an_adapter_that_is_no_number_does_not_reach_the_samples_of_others():
    base, x = TwoLinear().eval(), torch.randn(4, 10)
    config = AbbaConfig(target_modules=["first", "second"], init_weights=False)
    model = get_peft_model(base, config).eval()
    model.add_adapter("broken", config)
    with torch.no_grad():
        for layer in layers_of(model).values():
            parameters_of(layer, "broken")[0].fill_(torch.nan)
    y = model(x, adapter_names=["default", "broken", "__base__", "default"])
    assert y.isfinite().all(1).tolist() == [True, False, True, True]
    y[[0, 2, 3]].sum().backward()
    assert all(p.grad.isfinite().all() for layer in layers_of(model).values() for p in parameters_of(layer))


class RoundedLinear(nn.Linear):
    """Stands for a quantised layer: its weight is kept in int8 steps and only its forward knows what they are."""

    def __init__(self, *args):
        super().__init__(*args)
        self.steps = nn.Parameter((self.weight.data * 100).round().to(torch.int8), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros_like(self.weight, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.steps / 100, self.bias)


class RoundedBackend:
    supports_merge = True
    backend_name = "rounded"

    def get_base_weight(self, base_layer):
        return base_layer.steps / 100

    def set_base_weight(self, peft_layer, weight):
        peft_layer.get_base_layer().steps.data = (weight * 100).round().to(torch.int8)


def test_on_a_quantised_base_the_product_is_its_own_and_unmerging_restores_its_bits(monkeypatch):
    for module in (hadamard_core.layer, hadamard_core.orientation):
        monkeypatch.setattr(
            module,
            "resolve_quantization_backend",
            lambda layer: RoundedBackend() if isinstance(layer, RoundedLinear) else None,
        )
    base, x = nn.Sequential(RoundedLinear(6, 5)), torch.randn(4, 6)
    start = layers_of(get_peft_model(copy.deepcopy(base), AbbaConfig(target_modules=["0"], r1=5)))["0"]
    assert_close(start.abba_B1["default"] @ start.abba_A1["default"], base[0].steps / 100, atol=1e-5, rtol=1e-4)
    model = get_peft_model(copy.deepcopy(base), AbbaConfig(target_modules=["0"], init_weights=False))
    layer = layers_of(model)["0"]
    expected = base(x) + x @ dense_update(layer).T
    assert_close(model(x), expected)
    model.merge_adapter()
    assert_close(model(x), expected, atol=6 * 0.005 * x.abs().max().item(), rtol=0)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().steps, base[0].steps)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r1": 0}, "r1 is 0 in AbbaConfig; it must be an integer of at least 1"),
        ({"r2": 1.5}, "r2 is 1.5 in AbbaConfig"),
        ({"alpha": 0.0}, "alpha is 0.0 in AbbaConfig; it must be a finite number above 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_bad_input(fields, words):
    with pytest.raises(ValueError, match=words):
        AbbaConfig(**fields)
    if fields != {"r2": 1.5}:
        with pytest.raises(ValueError, match="--method"):
            Abba(**fields)


def test_a_selection_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="layers has 'last'"):
        Abba(layers=("last",))


@pytest.mark.parametrize("case_name", ["bert", "gpt2", "llama"])
def test_as_a_method_of_the_harness(case_name, tmp_path):
    case = MODELS[case_name]
    base, x = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    method = Abba(r1=2, r2=2, layers=(1,))
    model = method.apply(copy.deepcopy(base), case.task_type, [case.head]).eval()
    assert layers_of(model)
    assert all(".1." in name for name in layers_of(model))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, x), output(model, x))
    assert not torch.allclose(output(loaded, x), output(base, x), atol=1e-3)
    assert_close(output(method.merge(loaded), x), output(model, x), atol=1e-4, rtol=1e-3)
