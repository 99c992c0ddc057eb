"""Fused projections taken apart: the same function, parts that any method can adapt, and one piece again."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.pytorch_utils import Conv1D

from hadamard_core.fused import LinearConv1D, SplitProjection, as_linear, fuse, split_for, split_fused
from hadamard_core.testing_models import MODELS


def gpt2(cross=False):
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, initializer_range=0.5)
    config.add_cross_attention = cross
    return GPT2LMHeadModel(config)


def gpt_neox():
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=40,
            initializer_range=0.5,
        )
    )


BUILDERS = {"gpt2": gpt2, "gpt_neox": gpt_neox}


@pytest.fixture(params=BUILDERS)
def model(request):
    torch.manual_seed(0)
    model = BUILDERS[request.param]().eval()
    for parameter in model.parameters():  # biases start at zero
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(1))


def test_split_model_computes_the_same(model, ids):
    expected = model(ids).logits
    names = split_fused(model, ["query", "value"])
    assert [name.rpartition(".")[2] for name in names] == ["query", "value"] * 2
    assert {type(model.get_submodule(name)) for name in names} == {nn.Linear}
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_fusing_puts_every_bit_back(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    split_fused(model, ["key"])
    assert fuse(model) is model
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_splitting_again_changes_nothing(model):
    names = split_fused(model, ["query", "value"])
    parts = {id(module) for module in model.modules()}
    assert split_fused(model, ["query", "value"]) == names
    assert {id(module) for module in model.modules()} == parts


def test_key_stays_as_it_is(model):
    names = split_fused(model, ["query", "value"])
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    merged = adapted.merge_and_unload()
    for name in names:
        split, other = model.get_submodule(name.rpartition(".")[0]), merged.get_submodule(name.rpartition(".")[0])
        assert torch.equal(split.key.weight, other.key.weight)
        assert not torch.equal(split.query.weight, other.query.weight)


def test_merged_and_fused_is_the_architecture_again(model, ids):
    names = split_fused(model, ["query", "value"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)).eval()
    expected = adapted(ids).logits
    plain = fuse(adapted.merge_and_unload())
    assert not any(isinstance(module, SplitProjection) for module in plain.modules())
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_fusing_with_an_adapter_on_a_part_is_refused(model):
    names = split_fused(model, ["query"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names))
    with pytest.raises(ValueError, match="merge or unload the adapters before fusing"):
        fuse(adapted)


def test_adapter_of_parts_is_loaded_into_a_fresh_model(model, ids, tmp_path):
    fresh, other = copy.deepcopy(model), copy.deepcopy(model)
    names = split_fused(model, ["query", "value"])
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path)
    split_for(fresh, LoraConfig.from_pretrained(tmp_path).target_modules)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(loaded(ids).logits, adapted(ids).logits)
    split_for(other, ["transformer.h.0.mlp.c_fc", "nothing"])
    assert not any(isinstance(module, SplitProjection) for module in other.modules())


def test_cross_attention_of_gpt2_has_two_parts():
    model = gpt2(cross=True)
    names = split_fused(model, ["cross.value"])
    assert names == [f"transformer.h.{layer}.crossattention.c_attn.value" for layer in (0, 1)]
    assert model.transformer.h[0].crossattention.c_attn.roles == ("key", "value")
    assert isinstance(model.transformer.h[0].attn.c_attn, Conv1D)


def test_model_without_fused_projections_stays_as_it_is():
    model = MODELS["bert"].build()
    before = {id(module) for module in model.modules()}
    names = split_fused(model, ["query", "value"])
    assert len(names) == 4
    split_for(model, names)
    assert {id(module) for module in model.modules()} == before


def test_dtype_training_mode_and_flags_are_kept():
    model = gpt2().to(torch.bfloat16).train()
    model.requires_grad_(False)
    split_fused(model, ["query"])
    split = model.transformer.h[0].attn.c_attn
    assert split.training
    assert split.query.training
    assert {(p.dtype, p.requires_grad) for p in split.parameters()} == {(torch.bfloat16, False)}


def test_model_without_weights_is_split_too():
    with torch.device("meta"):
        model = gpt2()
        split_fused(model, ["query"])
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_conv1d_as_linear_and_back(ids):
    torch.manual_seed(0)
    model = gpt2().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(ids).logits
    names = split_fused(model, ["query", "ffn_output"], layers_to_transform=[1])
    assert names == ["transformer.h.1.attn.c_attn.query", "transformer.h.1.mlp.c_proj"]
    as_linear(model, names)
    assert type(model.transformer.h[1].mlp.c_proj) is LinearConv1D
    assert type(model.transformer.h[0].mlp.c_proj) is Conv1D
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    after = fuse(model).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(model(ids).logits, expected)
