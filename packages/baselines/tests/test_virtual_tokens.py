"""Prefix tuning and prompt tuning: peft's parameters and files, and what a call of the model makes of them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from hadamard_baselines.methods.virtual_tokens import Prefix, Prompt
from hadamard_baselines.virtual_tokens import VirtualTokens
from hadamard_core.accounting import count_parameters
from hadamard_core.testing_models import MODELS, output

METHODS = {
    "prefix": Prefix(tokens=3, hidden=8),
    "prefix-alone": Prefix(tokens=3, reparametrise=False),
    "prompt": Prompt(tokens=3, sample_vocabulary=False),
}
SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(params=["gpt2", "llama", "bert"])
def case(request):
    return MODELS[request.param]


@pytest.fixture
def base(case):
    torch.manual_seed(0)
    return case.build().eval()


@pytest.fixture
def ids(case):
    return case.inputs(torch.Generator().manual_seed(1))


def applied(method, base: PreTrainedModel, task_type: str, **kwargs: object) -> VirtualTokens:
    torch.manual_seed(3)
    return method.apply(copy.deepcopy(base), task_type, **kwargs).eval()


def padded(ids: Tensor, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask with the second text three tokens shorter."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    if left:
        ids[1, 3:], ids[1, :3], mask[1, :3] = ids[1, :4].clone(), 0, 0
    else:
        ids[1, 4:], mask[1, 4:] = 0, 0
    return ids, mask


# -- what is computed --------------------------------------------------------------------------------------------------


def test_prefix_is_peft_s(case, base, ids):
    method = METHODS["prefix"]
    ours = applied(method, base, case.task_type)
    torch.manual_seed(3)
    theirs = get_peft_model(copy.deepcopy(base), method.peft_config(base, case.task_type)).eval()
    ids, mask = padded(ids)
    result, expected = output(ours, ids, attention_mask=mask), output(theirs, ids, attention_mask=mask)
    assert_close(result, expected, atol=1e-5, rtol=1e-5)
    result.square().sum().backward()
    expected.square().sum().backward()
    for own, reference in zip(ours.prompt_encoder.parameters(), theirs.prompt_encoder.parameters(), strict=True):
        assert_close(own.grad, reference.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prompt_is_embeddings_in_front(name):
    case = MODELS[name]
    base = case.build().eval()
    ids, mask = padded(case.inputs(torch.Generator().manual_seed(1)))
    model = applied(METHODS["prompt"], base, "CAUSAL_LM")
    prompt = model.prompt_encoder["default"].embedding.weight.detach().clone().requires_grad_()
    embeddings = torch.cat([prompt.expand(len(ids), -1, -1), base.get_input_embeddings()(ids)], dim=1)
    long_mask = torch.cat([torch.ones(len(ids), 3, dtype=torch.long), mask], dim=1)
    expected = base(inputs_embeds=embeddings, attention_mask=long_mask).logits[:, 3:][mask.bool()]
    result = output(model, ids, attention_mask=mask)[mask.bool()]
    assert_close(result, expected, atol=1e-5, rtol=1e-5)
    result.square().sum().backward()
    expected.square().sum().backward()
    assert_close(model.prompt_encoder["default"].embedding.weight.grad, prompt.grad, atol=1e-4, rtol=1e-4)


def test_prompt_stands_behind_the_first_token_of_an_encoder():
    case = MODELS["bert"]
    base, ids = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    model = applied(METHODS["prompt"], base, "SEQ_CLS")
    prompt = model.prompt_encoder["default"].embedding.weight.expand(len(ids), -1, -1)
    words = base.get_input_embeddings()(ids)
    expected = base(inputs_embeds=torch.cat([words[:, :1], prompt, words[:, 1:]], dim=1)).logits
    assert_close(output(model, ids), expected)
    kinds = torch.ones_like(ids)
    kinds[:, 0] = 0
    assert not torch.allclose(output(model, ids, token_type_ids=kinds), expected, atol=1e-3)


def test_logits_stand_where_the_tokens_are(method):
    case = MODELS["gpt2"]
    model = applied(method, case.build().eval(), "CAUSAL_LM")
    ids = case.inputs(torch.Generator().manual_seed(1))
    whole = output(model, ids, use_cache=False)
    assert whole.shape[:2] == ids.shape
    positions = torch.tensor([1, 4])
    assert_close(output(model, ids, use_cache=False, logits_to_keep=positions), whole[:, positions])
    loss = model(input_ids=ids, labels=ids).loss
    assert_close(loss, torch.nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    given = torch.arange(ids.shape[1])[None]
    assert_close(output(model, ids, position_ids=given), whole)


# -- padding ---------------------------------------------------------------------------------------------------------


def test_padding_changes_no_logits(method, case, base, ids):
    model = applied(method, base, case.task_type)
    batch, mask = padded(ids)
    together = output(model, batch, attention_mask=mask)[1]
    alone = output(model, batch[1:2, :4])[0]
    assert_close(together[:4] if together.dim() == 2 else together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_classifies_by_its_last_token(method, kind):
    torch.manual_seed(0)
    fields = {**SMALL, "pad_token_id": 0, "num_labels": 3, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        base = GPT2ForSequenceClassification(GPT2Config(**fields)).eval()
    else:
        base = LlamaForSequenceClassification(LlamaConfig(**fields, num_key_value_heads=1)).eval()
    model = applied(method, base, "SEQ_CLS", modules_to_save=["score"])
    batch, mask = padded(torch.randint(3, 20, (3, 7)))
    assert_close(output(model, batch, attention_mask=mask)[1:2], output(model, batch[1:2, :4]), atol=1e-5, rtol=1e-4)


class _NotTwice(LogitsProcessor):
    """Forbids a token that was generated before; looks at generated tokens alone."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, input_ids[:, self.width :], -torch.inf)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generates_the_same_alone_and_padded_on_the_left(method, name, beams):
    torch.manual_seed(0)
    model = applied(method, MODELS[name].build().eval(), "CAUSAL_LM")
    ids, mask = padded(MODELS[name].inputs(torch.Generator().manual_seed(1)), left=True)

    def generate(ids: Tensor, mask: Tensor, **settings: object) -> list[list[int]]:
        width = ids.shape[1]
        settings = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0, **settings}
        processors = LogitsProcessorList([_NotTwice(width)])
        whole = model.generate(input_ids=ids, attention_mask=mask, logits_processor=processors, **settings)
        return whole[:, width:].tolist()

    together = generate(ids, mask)
    for alone, whole in (
        (generate(ids[1:2, 3:], mask[1:2, 3:]), together[1]),
        (generate(ids[:1], mask[:1]), together[0]),
    ):
        assert alone[0] == whole[: len(alone[0])]
        assert not any(whole[len(alone[0]) :])  # padding behind an end token
    assert generate(ids, mask, use_cache=False) == together


def test_generates_what_its_logits_say(method):
    case = MODELS["llama"]
    model = applied(method, case.build().eval(), "CAUSAL_LM")
    ids = case.inputs(torch.Generator().manual_seed(1))
    generated = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    for length in range(7, generated.shape[1]):
        assert torch.equal(output(model, generated[:, :length])[:, -1].argmax(-1), generated[:, length])


# -- promises of peft --------------------------------------------------------------------------------------------------


def test_only_the_adapter_and_the_head_train(method, case, base, ids):
    model = applied(method, base, case.task_type)
    output(model, ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        trains = name.startswith("prompt_encoder.") or ".modules_to_save." in name
        assert parameter.requires_grad is trains, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) is trains, name


def test_disabled_it_is_the_base_model(method, case, base, ids):
    model = applied(method, base, case.task_type)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(1)
    adapted, trained = output(model, ids), {n for n, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter():
        assert torch.equal(output(model, ids), output(base, ids))
    assert torch.equal(output(model, ids), adapted)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    if case.task_type == "CAUSAL_LM":
        settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        with model.disable_adapter():
            assert torch.equal(model.generate(input_ids=ids, **settings), base.generate(input_ids=ids, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saved_and_loaded_is_the_same(method, case, base, ids, tmp_path, dtype):
    base = base.to(dtype)
    model = applied(method, base, case.task_type)
    assert {p.dtype for p in model.prompt_encoder.parameters()} == {torch.float32}
    method.save(model, tmp_path)
    loaded = method.load(copy.deepcopy(base), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training
    assert torch.equal(output(loaded, ids), output(model, ids))
    method.save(loaded, tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(
        again["prompt_embeddings"], load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    )


def test_peft_reads_the_file(method, tmp_path):
    case = MODELS["gpt2"]
    base, ids = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    model = applied(method, base, "CAUSAL_LM")
    method.save(model, tmp_path)
    theirs = output(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path), ids)
    assert_close(theirs[:, -ids.shape[1] :], output(model, ids), atol=1e-5, rtol=1e-5)


def test_state_dict_goes_from_model_to_model(case, base, ids):
    for name in ("prefix-alone", "prompt"):
        source = applied(METHODS[name], base, case.task_type)
        target = METHODS[name].apply(copy.deepcopy(base), case.task_type).eval()
        assert not torch.equal(output(source, ids), output(target, ids))
        set_peft_model_state_dict(target, get_peft_model_state_dict(source))
        assert torch.equal(output(source, ids), output(target, ids))


def test_adapters_are_switched_and_deleted(method):
    case = MODELS["gpt2"]
    base, ids = case.build().eval(), case.inputs(torch.Generator().manual_seed(1))
    model = applied(method, base, "CAUSAL_LM")
    first = output(model, ids)
    model.add_adapter("other", type(method)(tokens=5).peft_config(base, "CAUSAL_LM"))
    assert torch.equal(output(model, ids), first)
    model.set_adapter("other")
    second = output(model, ids)
    assert not torch.allclose(first, second, atol=1e-4)
    model.set_adapter("default")
    assert torch.equal(output(model, ids), first)
    model.set_adapter("other")
    model.delete_adapter("default")
    assert torch.equal(output(model, ids), second)


def test_survives_copying(method, case, base, ids):
    model = applied(method, base, case.task_type)
    assert torch.equal(output(copy.deepcopy(model), ids), output(model, ids))


def test_trains_under_autocast(method, case, base, ids):
    model = applied(method, base, case.task_type)
    with torch.autocast("cpu", torch.bfloat16):
        result = output(model, ids)
    expected = output(model, ids)
    assert (result.float() - expected).norm() < 0.05 * expected.norm()
    result.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_parameters_on_gpt2_medium():
    with torch.device("meta"):
        base = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
        stored = 5 * 24 * 2 * 1024
        mlp = 5 * 1024 + (1024 + 1) * 512 + (512 + 1) * 24 * 2 * 1024
        counts = {
            Prefix(): mlp,
            Prefix(reparametrise=False): stored,
            Prompt(): 20 * 1024,
        }
        for method, expected in counts.items():
            counted = count_parameters(method.apply(copy.deepcopy(base), "CAUSAL_LM"))
            assert (counted.adapter, counted.norm, counted.head) == (expected, 0, 0)
    assert (mlp, stored) == (25_744_896, 245_760)  # as the method's docstring says


def test_grouped_keys_and_values_need_fewer_numbers(tmp_path):
    base = MODELS["llama"].build()  # one of two heads
    model = applied(METHODS["prefix"], base, "CAUSAL_LM")
    METHODS["prefix"].save(model, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].shape == (3, 2 * 2 * 8)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(method):
    case = MODELS["gpt2"]
    ids = case.inputs(torch.Generator().manual_seed(1))
    base = case.build()
    with pytest.raises(ValueError, match="task type TOKEN_CLS"):
        method.apply(base, "TOKEN_CLS")
    model = method.apply(base, "CAUSAL_LM")
    with pytest.raises(ValueError, match="cannot be merged"):
        method.merge(model)
    with pytest.raises(ValueError, match="are 1003 positions long and a GPT2LMHeadModel reads"):
        model(input_ids=ids[:, :1].expand(-1, 1000))
    with pytest.raises(ValueError, match="adapter_names is given"):
        model(input_ids=ids, adapter_names=["default"] * 4)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="Gradient checkpointing is on"):
        model.train()(input_ids=ids)
    base = case.build()
    base.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="Gradient checkpointing is on"):
        method.apply(base, "CAUSAL_LM")


def test_a_prompt_inside_an_encoder_s_text_goes_with_gradient_checkpointing():
    case = MODELS["bert"]
    base, ids = case.build(), case.inputs(torch.Generator().manual_seed(1))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model = applied(METHODS["prompt"], base, "SEQ_CLS").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        output(model, ids).square().sum().backward()
        gradients.append(model.prompt_encoder["default"].embedding.weight.grad)
    assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_prompt_is_not_put_where_answers_are():
    base = BertForQuestionAnswering(BertConfig(**SMALL))
    with pytest.raises(ValueError, match="use prefix tuning"):
        METHODS["prompt"].apply(copy.deepcopy(base), "QUESTION_ANS")
    model = applied(METHODS["prefix"], base, "QUESTION_ANS")
    assert model(input_ids=torch.randint(3, 20, (2, 7))).start_logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (Prefix, {"tokens": 0}, "method.tokens"),
        (Prefix, {"hidden": 0}, "method.hidden"),
        (Prompt, {"tokens": 0}, "tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, fields, words):
    with pytest.raises(ValueError, match=words):
        kind(**fields)
