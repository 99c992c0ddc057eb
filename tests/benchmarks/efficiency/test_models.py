"""Models of any architecture, whose rows share one set of frozen weights."""

from __future__ import annotations

import pytest
import torch

from benchmarks.efficiency.growth import _with_adapters
from benchmarks.efficiency.models import Batch, build_config, build_frozen, share_weights
from benchmarks.efficiency.settings import ModelSettings
from benchmarks.efficiency.step import PAIRS
from benchmarks.efficiency.variants import FLOOR, RANKED, VARIANTS, make, trained_parameters
from harness.errors import UserError

SIZES = {
    "roberta": ("hidden_size=32", "num_attention_heads=2", "intermediate_size=48"),
    "gpt2": ("n_embd=32", "n_head=2", "bos_token_id=0", "eos_token_id=0"),
    "llama": ("hidden_size=32", "num_attention_heads=2", "num_key_value_heads=2", "intermediate_size=48"),
    "t5": ("d_model=32", "num_heads=2", "d_kv=16", "d_ff=48"),
}
WAYS_OF_HUT = ("hut-weight", "hut-activation", "hut-autograd")


def settings(model_type: str) -> ModelSettings:
    return ModelSettings(
        model_config=model_type,
        override=("vocab_size=50", *SIZES[model_type]),
        layers=1,
        batch_size=4,
        length=6,
        device="cpu",
        only=(),
    )


def frozen(model_type: str = "roberta"):
    return build_frozen(settings(model_type))


def output(model, batch, **arguments):
    return batch.outputs(model, model.get_input_embeddings(), **arguments)


@pytest.fixture(scope="module")
def base():
    return frozen()


@pytest.fixture(scope="module")
def batch(base):
    return Batch(base, 4, 6, seed=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_share_their_frozen_weights(name, base):
    model = make(name, base, seed=0)
    addresses = {p.data_ptr() for p in base.parameters()}
    found = {p.data_ptr() for p in model.parameters()}
    assert addresses <= found
    if name == "full":
        assert trained_parameters(model) == sum(p.numel() for p in base.parameters())
    else:
        assert not any(p.requires_grad for p in model.parameters() if p.data_ptr() in addresses)
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_trains_what_the_row_trains_and_nothing_of_another(name, base, batch):
    model = make(name, base, seed=0)
    batch.loss(model, model.get_input_embeddings())().backward()
    unreached = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in (FLOOR, "full")])
def test_no_row_has_the_easy_case_of_an_untouched_model(name, base, batch):
    with torch.no_grad():
        assert not torch.allclose(output(make(name, base, seed=0), batch), output(base, batch), atol=1e-4)


@pytest.mark.parametrize("model_type", ["roberta", "gpt2"])
def test_the_ways_of_hut_are_one_function(model_type):
    model = frozen(model_type)
    batch = Batch(model, 4, 6, seed=0)
    expected = output(make("hut", model, seed=0), batch)
    for name in WAYS_OF_HUT:
        torch.testing.assert_close(output(make(name, model, seed=0), batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "vera"])
def test_ours_and_stock_have_the_same_settings(method, base, batch):
    ours, stock = (make(name, base, seed=0) for name in (method, f"peft-{method}"))
    assert trained_parameters(ours) == trained_parameters(stock)
    with torch.no_grad():
        values = dict(stock.named_parameters())
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])
    torch.testing.assert_close(output(ours, batch), output(stock, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RANKED)
def test_adapters_mix_in_one_batch_and_all_train(name, base, batch):
    model = _with_adapters(name, base, seed=0, count=2)
    first, second = model.peft_config
    mixed = output(model, batch, adapter_names=[first, second, first, second])
    for offset, adapter in enumerate((first, second)):
        alone = output(model, batch, adapter_names=[adapter] * 4)
        torch.testing.assert_close(mixed[offset::2], alone[offset::2], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(mixed[1 - offset :: 2], alone[1 - offset :: 2], atol=1e-4)
    mixed.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_architectures(model_type):
    model = frozen(model_type)
    batch = Batch(model, 4, 6, seed=0)
    for name in ("hut", "scale-shift", "peft-lora", "full"):
        row = make(name, model, seed=0)
        assert output(row, batch).shape == (4, 6, 32)


def test_modules_with_weights_of_their_own(base):
    name = "encoder.layer.0.attention.self.query"
    copied = share_weights(base, own=[name])
    theirs = dict(base.named_parameters())
    own = {n for n, p in copied.named_parameters() if p.data_ptr() != theirs[n].data_ptr()}
    assert own == {f"{name}.weight", f"{name}.bias"}


def test_configurations_have_no_dropout_and_enough_positions():
    config = build_config("roberta-large", ["max_position_embeddings=4"], layers=3, length=100)
    assert (config.num_hidden_layers, config.hidden_size) == (3, 1024)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0
    assert config.max_position_embeddings >= 102
    assert build_config("gpt2-medium", [], layers=None, length=8).n_layer == 24
    assert build_config("bart", [], layers=2, length=8).decoder_layers == 2


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("robert", (), "did you mean roberta"),
        ("nowhere/config.json", (), "no such file"),
        ("roberta", ("hidden_sise=3",), "did you mean hidden_size"),
        ("roberta", ("hidden_size",), "KEY=VALUE"),
        ("roberta", ("hidden_size=abc",), "expected int"),
        ("roberta", ("hidden_size=33",), "not a multiple"),
        ("mamba", (), "No layers with known roles"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_sentence(name, override, said):
    with pytest.raises(UserError, match=said):
        build_frozen(ModelSettings(model_config=name, override=override, layers=1, length=8, device="cpu"))


def test_pairs_are_rows():
    assert all({one, other} <= VARIANTS.keys() for one, other in PAIRS)
