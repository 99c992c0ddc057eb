"""PreLayer: positions in front of the text whose activations are trained in every layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from hadamard_baselines.methods.virtual_tokens import Prelayer
from hadamard_baselines.prelayer import PrelayerConfig, PrelayerLayer
from hadamard_core.accounting import count_parameters
from hadamard_core.testing import MethodContract
from hadamard_core.testing_models import MODELS, output

COUNT = 3

_NO_IDENTITY = "positions in front always change what the text attends to, so that no start is the identity"
_NOT_MERGED = "positions in front of the text are no part of a weight, so that nothing can be merged"
_NO_CHOICE = "the positions are in every layer, since all layers share one attention mask: nothing can be chosen"


class TestPrelayer(MethodContract):
    config_class = PrelayerConfig
    models = ("gpt2", "bert", "llama")
    exempt: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "test_starts_as_the_base_model_bit_for_bit": _NO_IDENTITY,
            "test_injected_without_a_wrapper": _NO_IDENTITY,
            "test_merging_keeps_the_function_and_unmerging_restores_every_bit": _NOT_MERGED,
            "test_merge_and_unload_gives_a_plain_model": _NOT_MERGED,
            "test_safe_merge_refuses_values_that_are_not_finite": _NOT_MERGED,
            "test_merging_in_every_order_gives_the_same": _NOT_MERGED,
            "test_disabling_unmerges": _NOT_MERGED,
            "test_modules_to_save_train_and_come_back": f"{_NOT_MERGED}, as the test does in the end",
            "test_generates_with_beams_as_the_merged_model_does": _NOT_MERGED,
            "test_mixed_batches_that_cannot_be_are_refused": f"{_NOT_MERGED}, as the test does in between",
            "test_gradient_checkpointing_changes_no_gradient": "transformers leaves caches out when it checkpoints",
            "test_compiles_to_one_graph": "the pass over the positions goes through hooks, which dynamo does not trace",
            "test_layers_to_transform": _NO_CHOICE,
            "test_exclude_modules": _NO_CHOICE,
            "test_target_modules_by_peft_rules": _NO_CHOICE,
            "test_nothing_to_adapt_is_refused": _NO_CHOICE,
        }
    )


def build(name: str, **fields: object) -> tuple[PreTrainedModel, PeftModel, Tensor]:
    """A tiny base model, the same adapted with random activations, and ids."""
    torch.manual_seed(0)
    case = MODELS[name]
    base = case.build().eval()
    config = PrelayerConfig(
        **{"num_virtual_tokens": COUNT, "init_weights": False, "task_type": case.task_type, **fields}
    )
    model = get_peft_model(copy.deepcopy(base), config).eval()
    return base, model, case.inputs(torch.Generator().manual_seed(1))


def activations(model: nn.Module) -> list[Tensor]:
    return [m.prelayer_activations["default"] for m in model.modules() if isinstance(m, PrelayerLayer)]


def literally(base: PreTrainedModel, trained: list[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
    """The paper's definition: more tokens, whose activations are overwritten before every layer."""
    inside = base.base_model
    layers = next(found for name in ("h", "layers", "encoder") if (found := getattr(inside, name, None)) is not None)
    layers = getattr(layers, "layer", layers)

    def overwrite(own: Tensor):
        def hook(layer: nn.Module, args: tuple) -> tuple:
            return (torch.cat([own.expand(len(ids), -1, -1), args[0][:, COUNT:]], dim=1), *args[1:])

        return hook

    handles = [layer.register_forward_pre_hook(overwrite(own)) for layer, own in zip(layers, trained, strict=True)]
    embeddings = base.get_input_embeddings()(ids)
    embeddings = torch.cat([torch.zeros(len(ids), COUNT, embeddings.shape[-1]), embeddings], dim=1)
    mask = torch.cat([torch.ones(len(ids), COUNT, dtype=torch.long), mask], dim=1)
    hidden = base.base_model(inputs_embeds=embeddings, attention_mask=mask)[0][:, COUNT:]
    for handle in handles:
        handle.remove()
    if isinstance(base, BertForSequenceClassification):
        return base.classifier(base.bert.pooler(hidden))
    return base.get_output_embeddings()(hidden)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_equals_tokens_whose_activations_are_overwritten(name):
    base, model, ids = build(name)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    trained = [parameter.detach().clone().requires_grad_() for parameter in activations(model)]
    expected = literally(base, trained, ids, mask)
    result = output(model, ids, attention_mask=mask)
    seen = mask.bool() if result.dim() == 3 else slice(None)
    assert_close(result[seen], expected[seen], atol=1e-5, rtol=1e-5)
    result[seen].square().sum().backward()
    expected[seen].square().sum().backward()
    for parameter, reference in zip(activations(model), trained, strict=True):
        assert_close(parameter.grad, reference.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_starts_as_tokens_in_front_of_the_text(name):
    base = MODELS[name].build().eval()
    ids = MODELS[name].inputs(torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    model = get_peft_model(copy.deepcopy(base), PrelayerConfig(num_virtual_tokens=COUNT, task_type="CAUSAL_LM"))
    torch.manual_seed(7)
    torch.randn(COUNT, 16), torch.randn(COUNT, 16)  # the parameters before they get their values
    tokens = torch.randint(40, (COUNT,)).expand(len(ids), -1)
    assert_close(
        output(model.eval(), ids), base(torch.cat([tokens, ids], dim=1)).logits[:, COUNT:], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generates_the_same_alone_and_padded_on_the_left(name):
    _, model, ids = build(name)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    for beams in (1, 3):
        settings = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
        together = model.generate(input_ids=ids, attention_mask=mask, **settings)
        alone = model.generate(input_ids=ids[1:2, 3:], attention_mask=mask[1:2, 3:], **settings)
        assert together[1, 7:].tolist() == alone[0, 4:].tolist()
        without_cache = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)
        assert torch.equal(without_cache, together)


def test_generates_what_its_logits_say():
    _, model, ids = build("gpt2")
    generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for length in range(7, generated.shape[1]):
        assert torch.equal(output(model, generated[:, :length])[:, -1].argmax(-1), generated[:, length])


def test_mixes_adapters_of_unlike_length():
    _, model, ids = build("gpt2")
    model.add_adapter("other", PrelayerConfig(num_virtual_tokens=5, init_weights=False, task_type="CAUSAL_LM"))
    names = ["other", "default", "__base__", "default"]
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    together = output(model, ids, attention_mask=mask, adapter_names=names)
    for row, name in enumerate(names):
        one = {"x": ids[row : row + 1, :5]}
        if name == "__base__":
            with model.disable_adapter():
                alone = output(model, **one)
        else:
            model.set_adapter(name)
            alone = output(model, **one)
        assert_close(together[row : row + 1, :5], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"1 names for 4 samples"):
        model(ids, adapter_names=["default"])


def test_active_adapters_stand_one_behind_another():
    _, model, ids = build("llama")
    model.add_adapter("other", PrelayerConfig(num_virtual_tokens=2, init_weights=False, task_type="CAUSAL_LM"))
    both = [m.prelayer_activations for m in model.modules() if isinstance(m, PrelayerLayer)]
    model.base_model.set_adapter(["default", "other"])
    _, one, _ = build("llama", num_virtual_tokens=5)
    for own, pair in zip(activations(one), both, strict=True):
        own.data = torch.cat([pair["default"], pair["other"]]).data
    assert_close(output(model, ids), output(one, ids))


def test_file_holds_the_activations(tmp_path):
    _, model, _ = build("gpt2")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(tuple(tensor.shape) for tensor in stored.values()) == [(COUNT, 16)] * 2


def test_a_head_trains_and_comes_back(tmp_path):
    base, model, ids = build("bert")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"prelayer_activations" in name or "classifier" in name for name in trained} == {True}
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.add_(1)
    Prelayer().save(model, tmp_path)
    loaded = Prelayer().load(copy.deepcopy(base), tmp_path)
    assert torch.equal(output(loaded, ids), output(model, ids))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_roberta_counts_positions_from_behind_padding():
    torch.manual_seed(0)
    config = RobertaConfig(
        num_hidden_layers=2, num_attention_heads=2, vocab_size=40, hidden_size=16, intermediate_size=32, num_labels=3
    )
    model = get_peft_model(
        RobertaForSequenceClassification(config).eval(),
        PrelayerConfig(num_virtual_tokens=COUNT, init_weights=False),
    ).eval()
    model.add_adapter("other", PrelayerConfig(num_virtual_tokens=5, init_weights=False))
    ids = torch.randint(3, 20, (2, 7))
    together = output(model, ids, adapter_names=["default", "other"])
    assert_close(together[:1], output(model, ids[:1]))
    model.set_adapter("other")
    assert_close(together[1:], output(model, ids[1:]))


@pytest.mark.parametrize("architecture", ["gpt2-medium", "roberta-large"])
def test_parameters_of_the_paper(architecture):
    with torch.device("meta"):
        if architecture == "gpt2-medium":
            model, task = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)), "CAUSAL_LM"
        else:
            sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
            config = RobertaConfig(**sizes, intermediate_size=4096, vocab_size=50265)
            model, task = RobertaForSequenceClassification(config), "SEQ_CLS"
        adapted = Prelayer().apply(model, task)
    assert count_parameters(adapted).adapter == 344_064  # the paper prints 0.35M


def test_what_cannot_be_is_refused():
    _, model, ids = build("gpt2")
    with pytest.raises(ValueError, match="cannot be merged"):
        Prelayer().merge(model)
    with pytest.raises(ValueError, match="are 1003 positions long and a GPT2LMHeadModel reads"):
        model(ids[:, :1].expand(-1, 1000))
    with pytest.raises(ValueError, match="without cache_implementation"):
        model.generate(input_ids=ids, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
    model.gradient_checkpointing_enable()
    assert output(model.eval(), ids).isfinite().all()
    with pytest.raises(ValueError, match="Gradient checkpointing is on"):
        model.train()(ids)
    base = MODELS["gpt2"].build()
    base.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="Gradient checkpointing is on"):
        Prelayer().apply(base, "CAUSAL_LM")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_virtual_tokens": 0}, "at least 1"),
        ({"target_modules": ["c_attn"]}, "leave target_modules out"),
        ({"layers_to_transform": [0]}, "leave layers_to_transform out"),
        ({"roles": ("query",)}, "leave roles out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        PrelayerConfig(**fields)


def test_models_without_a_cache_are_refused():
    small = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    with pytest.raises(ValueError, match="do not all take keys and values from a cache"):
        Prelayer().apply(DistilBertForSequenceClassification(DistilBertConfig(**small)), "SEQ_CLS")
    t5 = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=40))
    with pytest.raises(ValueError, match="give a decoder, or an encoder"):
        Prelayer().apply(t5, "SEQ_2_SEQ_LM")
