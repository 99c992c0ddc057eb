"""BitFit trains what unfrozen biases would be, all of them by default, and keeps every promise of a peft method."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification

from hadamard_baselines.bitfit import BitfitConfig, BitfitLinear, BitfitNorm
from hadamard_baselines.methods.bitfit import Bitfit
from hadamard_core.accounting import count_parameters
from hadamard_core.layer_selection import layer_numbers
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, ModelCase, TwoLinear, output


class TestBitfit(MethodContract):
    config_class = BitfitConfig
    variants = ({"roles": ["query", "ffn_input", "output_norm"]},)
    models = ("linear", "conv1d", "gpt2", "bert")  # Llama has no biases.

    def config(self, case: ModelCase, variant: Mapping[str, Any] = {}, **fields: Any) -> BitfitConfig:
        if case.task_type is None or "target_modules" in fields:
            variant = {}  # without roles, everything
        return self.config_class(**{**variant, **fields})


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def train(model, x, parameters):
    """A few steps of AdamW on a made-up loss."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0, eps=1e-6)
    for _ in range(3):
        optimiser.zero_grad()
        output(model, x).square().mean().backward()
        optimiser.step()
    return output(model, x)


@pytest.mark.parametrize("case_name", ["bert", "gpt2"])
def test_learns_what_unfrozen_biases_learn(case_name):
    case = MODELS[case_name]
    base, x = case.build().eval().double(), case.inputs(torch.Generator().manual_seed(1))
    adapted = get_peft_model(copy.deepcopy(base), BitfitConfig()).double().eval()
    found = train(adapted, x, [p for p in adapted.parameters() if p.requires_grad])
    base.requires_grad_(False)
    biases = [p for name, p in base.base_model.named_parameters() if name.endswith("bias") and "pooler" not in name]
    for bias in biases:
        bias.requires_grad_(True)
    assert_close(found, train(base, x, biases), rtol=1e-6, atol=1e-9)


def roberta_large():
    return RobertaForSequenceClassification(
        RobertaConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50265
        )
    )


@pytest.mark.parametrize(
    ("build", "fields", "count", "norms"),
    [
        # In each layer q, k, v, o, both of the feed-forward and two norms; one more norm of the embeddings. The paper
        # gives 0.08 % (without norms) to 0.09 % of BERT-large, whose size differs by the vocabulary.
        pytest.param(roberta_large, {}, 24 * 11_264 + 1024, 24 * 2048 + 1024, id="RoBERTa-large"),
        pytest.param(roberta_large, {"roles": ("query", "ffn_input")}, 24 * 5120, 0, id="0.04 % of BERT-large"),
        pytest.param(
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
            {},
            24 * (3 * 1024 + 1024 + 4096 + 1024 + 2 * 1024) + 1024,
            24 * 2048 + 1024,
            id="GPT-2 medium",
        ),
    ],
)
def test_parameters_on_real_architectures(build, fields, count, norms):
    with torch.device("meta"):
        model = get_peft_model(build(), BitfitConfig(**fields))
    counts = count_parameters(model)
    assert (counts.adapter + counts.norm, counts.norm, counts.head) == (count, norms, 0)
    if not fields and counts.norm:
        assert 0.0007 < count / counts.frozen < 0.0010


def test_every_bias_of_the_backbone_and_no_other():
    base = MODELS["bert"].build()
    model = get_peft_model(copy.deepcopy(base), BitfitConfig(modules_to_save=["classifier"]))
    layers = {n for n, m in model.base_model.model.named_modules() if isinstance(m, (BitfitLinear, BitfitNorm))}
    biased = {n.removesuffix(".bias") for n, _ in base.bert.named_parameters("bert") if n.endswith(".bias")}
    assert layers == biased - {"bert.pooler.dense"}
    shared = model.base_model.model.classifier
    assert shared.modules_to_save["default"].bias.requires_grad
    assert not shared.original_module.bias.requires_grad


def test_the_task_head_of_a_model_without_transformers_is_a_module_as_others():
    model = get_peft_model(TwoLinear(), BitfitConfig())
    layers = [n for n, m in model.base_model.model.named_modules() if isinstance(m, (BitfitLinear, BitfitNorm))]
    assert layers == ["first", "norm", "head"]  # "second" has no bias


def test_roles_mean_slices_of_a_fused_projection():
    base = MODELS["gpt2"].build()
    model = get_peft_model(copy.deepcopy(base), BitfitConfig(roles=["query"], init_weights=False))
    assert count_parameters(model).adapter == 2 * 16
    before, after = (m.transformer.h[0].attn.c_attn.bias for m in (base, model.merge_and_unload()))
    assert (before != after).tolist() == [True] * 16 + [False] * 32


def test_modules_without_a_bias_are_left_out_and_a_model_without_any_is_refused():
    model = get_peft_model(TwoLinear(), BitfitConfig(target_modules=["first", "second"]))
    assert not isinstance(model.base_model.model.second, BitfitLinear)
    llama = MODELS["llama"].build()
    for fields in ({}, {"roles": ["query"]}, {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}):
        with pytest.raises(ValueError, match=r"BitFit trains biases, and none of the .* in a LlamaForCausalLM has one"):
            get_peft_model(llama, BitfitConfig(**fields))
    with pytest.raises(ValueError, match="is a Embedding, which is not supported"):
        get_peft_model(MODELS["conv1d"].build(), BitfitConfig(target_modules=["embedding"]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers_to_transform": [2]}, r"layers_to_transform is \[2\], but the layers .* are \[0, 1\]"),
        ({"roles": ["query"], "target_modules": ["dense"]}, "both given"),
        ({"roles": []}, "Neither target_modules nor roles"),
        ({"roles": ["biases"]}, "'biases' is not a role"),
    ],
)
def test_bad_input(fields, words):
    with pytest.raises(ValueError, match=words):
        get_peft_model(MODELS["bert"].build(), BitfitConfig(**fields))


def test_containers_are_named_so_that_weight_decay_leaves_them_out():
    model = get_peft_model(MODELS["bert"].build(), BitfitConfig())
    trained = [name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad]
    assert set(trained) == {"bitfit_bias", "bitfit_norm_bias"}


@pytest.mark.parametrize("case_name", ["bert", "gpt2"])
def test_as_a_method_of_the_harness(case_name, tmp_path):
    case = MODELS[case_name]
    base, x = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    method = Bitfit(layers=("top:1",))
    model = method.apply(copy.deepcopy(base), case.task_type, [case.head]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    method.save(model, tmp_path)
    assert not any(".0." in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = method.load(copy.deepcopy(base), tmp_path).eval()
    assert torch.equal(output(loaded, x), output(model, x))
    assert not torch.allclose(output(loaded, x), output(base, x), atol=1e-3)
    assert_close(output(method.merge(loaded), x), output(model, x), atol=1e-5, rtol=1e-4)


def test_layers_of_everything_are_counted_as_a_selection_counts_them():
    model = MODELS["gpt2"].build()
    assert layer_numbers(model, None) == [0, 1]
    assert Bitfit(layers=("every:1",)).peft_config(model, "CAUSAL_LM").layers_to_transform == [0, 1]
    pattern = get_peft_model(model, BitfitConfig(layers_to_transform=[0], layers_pattern="h"))
    assert all(".h.0." in name for name, p in pattern.named_parameters() if p.requires_grad)


def test_a_selection_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="layers has 'last'"):
        Bitfit(layers=("last",))
