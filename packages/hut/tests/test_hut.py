"""HUT computes the paper's equations, with the paper's parameter counts, on every way to adapt a model."""

import copy

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hadamard_core.accounting import count_parameters
from hadamard_core.testing_models import MODELS, output
from hut import HutConfig, HutLinear
from hut.method import Hut


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def one_layer(bias=True, **fields):
    model = nn.Sequential(nn.Linear(6, 5, bias=bias)).double()
    adapted = get_peft_model(copy.deepcopy(model), HutConfig(target_modules=["0"], init_weights=False, **fields))
    return model[0], adapted.double()


@pytest.mark.parametrize("compute", ["weight", "activation"])
@pytest.mark.parametrize("bias", [True, False])
def test_equations_8_to_10(compute, bias):
    base, adapted = one_layer(bias=bias, r=3, compute=compute)
    layer = adapted.base_model.model[0]
    m_a, m_b, gamma, beta = (getattr(layer, name)["default"] for name in layer.adapter_layer_names)
    # Equation 8 in the paper's orientation, W0 of shape (d, k), with the row and column of ones written out.
    w_new = (m_a @ torch.ones(3, 5).double() / 3) * base.weight.T * (torch.ones(6, 3).double() @ m_b / 3)
    x = torch.randn(4, 6).double()
    expected = gamma * (x @ w_new) + beta
    if bias:
        expected = expected + base.bias
    assert_close(adapted(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model_class", "config", "r", "expected"),
    [
        pytest.param(
            RobertaForSequenceClassification,
            RobertaConfig(
                hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50265
            ),
            8,
            884_736,
            id="RoBERTa-large, printed 0.9M",
        ),
        pytest.param(
            GPT2LMHeadModel,
            GPT2Config(n_embd=1024, n_layer=24, n_head=16),
            4,
            491_520,
            id="GPT-2 medium, printed 0.45M",
        ),
    ],
)
def test_parameters_on_the_papers_models(model_class, config, r, expected):
    with torch.device("meta"):
        model = get_peft_model(model_class(config), HutConfig(r=r))
    counts = count_parameters(model)
    assert (counts.adapter, counts.norm, counts.head) == (expected, 0, 0)


def test_only_query_and_value_of_a_fused_projection_change():
    base = MODELS["gpt2"].build()
    adapted = get_peft_model(copy.deepcopy(base), HutConfig(init_weights=False))
    merged = adapted.merge_and_unload()
    for before, after in zip(base.transformer.h, merged.transformer.h, strict=True):
        query, key, value = (
            [(a != b).all().item() for a, b in ((x, u), (y, v))]
            for x, u, y, v in zip(
                before.attn.c_attn.weight.split(16, 1),
                after.attn.c_attn.weight.split(16, 1),
                before.attn.c_attn.bias.split(16),
                after.attn.c_attn.bias.split(16),
                strict=True,
            )
        )
        assert query == [True, True]
        assert value == [True, True]
        assert key == [False, False]
        assert torch.equal(before.attn.c_attn.weight[:, 16:32], after.attn.c_attn.weight[:, 16:32])


def train(model, x, target, steps, **settings):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **settings)
    losses = []
    for _ in range(steps):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("r", [2, 8, 64])
def test_the_rank_is_nominal(r):
    """Under AdamW the loss curve does not depend on r: the fact that the config's documentation states."""
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    x, target = torch.randn(32, 6).double(), torch.randn(32, 5).double()
    curves = []
    for rank in (1, r):
        model = get_peft_model(copy.deepcopy(base), HutConfig(r=rank, target_modules=["0", "2"])).double()
        curves.append(train(model, x, target, steps=200, lr=1e-2, eps=1e-15))
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("r", [1, 3, 7, 8, 49, 64, 100])
def test_starts_as_the_identity_for_every_rank(r):
    base = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(4, 6)
    adapted = get_peft_model(copy.deepcopy(base), HutConfig(r=r, target_modules=["0"]))
    assert torch.equal(adapted(x), base(x))


@pytest.mark.parametrize("case", ["gpt2", "bert"])
def test_compact_form_is_the_same_function_in_fewer_bytes(case, tmp_path):
    base = MODELS[case].build().eval()
    x = MODELS[case].inputs(torch.Generator().manual_seed(1))
    model = get_peft_model(copy.deepcopy(base), HutConfig(r=8, init_weights=False)).eval()
    expected = output(model, x)
    model.save_pretrained(tmp_path / "full")
    model.base_model.compact()
    assert_close(output(model, x), expected, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path / "compact")
    sizes = [
        sum(t.numel() for t in load_file(tmp_path / kind / "adapter_model.safetensors").values())
        for kind in ("full", "compact")
    ]
    assert sizes[0] == 6 * sizes[1]
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "compact").eval()
    assert torch.equal(output(loaded, x), output(model, x))
    assert (PeftConfig.from_pretrained(tmp_path / "compact").r, loaded.peft_config["default"].scale) == (1, False)


def test_compact_refuses_what_it_cannot_do():
    _, model = one_layer()
    with pytest.raises(ValueError, match="no adapter 'other'"):
        model.base_model.compact("other")
    model.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        model.base_model.compact()


def test_model_card_says_what_to_import(tmp_path):
    _, model = one_layer()
    model.save_pretrained(tmp_path)
    assert "import hut" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_scale_and_shift_can_be_left_out(scale, shift):
    _, model = one_layer(r=2, scale=scale, shift=shift)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * (6 + 5) + 5 * (scale + shift)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, "r is 0 in HutConfig"),
        ({"r": -3}, "r is -3"),
        ({"r": 2.5}, "r is 2.5"),
        ({"init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_config_refuses(fields, words):
    with pytest.raises(ValueError, match=words):
        HutConfig(**fields)


def test_a_role_that_the_architecture_lacks_is_named():
    with pytest.raises(ValueError, match="ffn_gate"):
        get_peft_model(MODELS["bert"].build(), HutConfig(roles=("ffn_gate",)))


def test_modules_that_cannot_be_adapted_are_named():
    with pytest.raises(ValueError, match=r"embedding is a Embedding"):
        get_peft_model(MODELS["conv1d"].build(), HutConfig(target_modules=["embedding"]))
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"attention\.out_proj belongs to an nn\.MultiheadAttention"):
        get_peft_model(attention, HutConfig(target_modules=["out_proj"]))


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def test_a_projection_with_a_forward_of_its_own_is_refused():
    with pytest.raises(ValueError, match="module 0 is a Halved, whose forward is its own"):
        get_peft_model(nn.Sequential(Halved(4, 4)), HutConfig(target_modules=["0"]))


@pytest.mark.parametrize("bias", [True, False])
def test_hooks_on_the_base_layer_run(bias):
    base = nn.Sequential(nn.Linear(6, 5, bias=bias))
    base[0].register_forward_pre_hook(lambda module, inputs: inputs[0] + 1)
    x = torch.randn(3, 6)
    model = get_peft_model(copy.deepcopy(base), HutConfig(target_modules=["0"]))
    assert torch.equal(model(x), base(x))


@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("groups", ["c_attn", "query_key_value"])
def test_all_ways_compute_slices_of_a_fused_projection_alike(groups, tokens):
    config = {"vocab_size": 40, "initializer_range": 0.5}
    if groups == "c_attn":
        base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=300, **config))
    else:
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        base = GPTNeoXForCausalLM(GPTNeoXConfig(**small, **config))
    ids = torch.randint(40, (1, tokens))
    outcomes = []
    for compute in ("weight", "activation", "auto"):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), HutConfig(compute=compute, init_weights=False)).eval()
        logits = model(ids).logits
        logits.square().sum().backward()
        outcomes.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_safe_merge_sees_a_bias_that_overflows():
    base = nn.Sequential(nn.Linear(4, 4)).half()
    nn.init.constant_(base[0].bias, 6e4)
    model = get_peft_model(base, HutConfig(target_modules=["0"]))
    nn.init.constant_(model.base_model.model[0].hut_beta["default"], 3e4)
    with pytest.raises(ValueError, match="merged bias"):
        model.merge_adapter(safe_merge=True)


def test_merging_a_shift_into_layers_without_bias_is_exact_and_said():
    _, model = one_layer(bias=False)
    x = torch.randn(4, 6).double()
    expected = model(x)
    with pytest.warns(UserWarning, match="gives a bias to layers that had none"):
        merged = model.merge_and_unload()
    assert_close(merged(x), expected, rtol=1e-12, atol=1e-12)
    _, model = one_layer(bias=False, shift=False)
    assert model.merge_and_unload()[0].bias is None


def test_several_adapters_of_different_rank_and_parts():
    model = get_peft_model(MODELS["gpt2"].build(), HutConfig(r=2, init_weights=False)).eval()
    model.add_adapter("key_only", HutConfig(r=5, roles=("key",), shift=False, init_weights=False))
    x = MODELS["gpt2"].inputs(torch.Generator().manual_seed(1))
    model.base_model.set_adapter(["default", "key_only"])
    expected = output(model, x)
    model.merge_adapter()
    assert_close(output(model, x), expected, atol=1e-5, rtol=1e-4)


def test_as_a_method_of_the_harness(tmp_path):
    method = Hut(r=4, layers=(1,))
    base = MODELS["bert"].build().eval()
    x = MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    trained = method.apply(copy.deepcopy(base), "SEQ_CLS").eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert sum(isinstance(module, HutLinear) for module in trained.modules()) == 2
    method.save(trained, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, x), output(trained, x))
    assert_close(output(method.merge(loaded), x), output(trained, x), atol=1e-5, rtol=1e-4)
