"""VeRA's shared projection: computed once for a block, never stale, never kept; and who makes VeRA's layers."""

import copy
import weakref

import peft
import pytest
import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from torch.utils.checkpoint import checkpoint

from hadamard_baselines import shared_projection, vera
from hadamard_baselines.testing import make_pair
from hadamard_core.testing_models import output


class Block(nn.Module):
    """Two projections of one input in each of two blocks."""

    def __init__(self, features=6):
        super().__init__()
        self.first = nn.ModuleDict({"query": nn.Linear(features, features), "value": nn.Linear(features, 4)})
        self.second = nn.ModuleDict({"query": nn.Linear(features, 5), "value": nn.Linear(features, 4)})

    def forward(self, x, between=None):
        y = 1.0 * self.first["query"](x)
        if between is not None:
            between(x)
        z = self.first["value"](x)
        y = torch.tanh(y)
        return torch.cat([z, self.second["query"](y), self.second["value"](y)], dim=-1)


@pytest.fixture
def products(monkeypatch):
    """The inputs of the products with A that were computed apart from the op."""
    inputs = []

    def counted(x, down):
        inputs.append(x)
        return torch.nn.functional.linear(x, down)

    monkeypatch.setattr(shared_projection, "linear", counted)
    return inputs


@pytest.fixture
def models():
    torch.manual_seed(0)
    base = Block()
    pair = []
    for config in (vera.VeraConfig, peft.VeraConfig):
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(base), config(r=5, target_modules=["query", "value"])).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        pair.append(model)
    return pair


def gradients(model, x, *args):
    model.zero_grad()
    y = model(x, *args)
    y.square().sum().backward()
    return [y, *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


def inputs(tokens=3):
    return torch.randn(tokens, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("tokens", [3, 40])  # the low-rank way, and the composed weight
def test_computed_once_for_each_block(models, products, tokens):
    x = inputs(tokens)
    torch.testing.assert_close(gradients(models[0], x), gradients(models[1], x))
    assert len(products) == 2


def test_no_product_where_the_op_needs_none(models, products):
    with torch.no_grad():
        torch.testing.assert_close(models[0](inputs(40)), models[1](inputs(40)))
    assert not products


def test_every_forward_pass_computes_anew(models, products):
    x = inputs()
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(models[0](x), models[1](x))
    assert len(products) == 6


@pytest.mark.parametrize("grad", [False, True])
def test_an_input_changed_in_place_is_seen(models, products, grad):
    with torch.set_grad_enabled(grad):
        results = [model(inputs(), lambda x: x.mul_(3)) for model in models]
    torch.testing.assert_close(*results)
    assert len(products) == 3


def test_new_values_of_a_are_seen(models):
    def load(model):
        return lambda x: model.base_model.vera_A["default"].mul_(3)

    with torch.no_grad():
        torch.testing.assert_close(*(model(inputs(), load(model)) for model in models))


def test_without_gradients_and_then_with(models):
    x = inputs()
    with torch.no_grad():
        models[0](x)
    torch.testing.assert_close(gradients(models[0], x), gradients(models[1], x))

    layers = [model.base_model.model.first for model in models]
    found = []
    for layer in layers:
        y = inputs().requires_grad_() * 1
        with torch.no_grad():
            layer["query"](y)
        found.append(torch.autograd.grad(layer["value"](y).sum(), y))
    torch.testing.assert_close(*found)


def test_each_projection_has_a_backward_pass_of_its_own(models):
    """Two losses on one input, one after the other: the graph of a shared projection serves only once."""
    found = []
    for model in models:
        first = model.base_model.model.first
        leaf = inputs().requires_grad_()
        x = leaf + 0  # whose own graph saves nothing, and so serves any number of times
        first["query"](x).sum().backward()
        first["value"](x).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("tokens", [3, 40])
def test_checkpointing(models, products, tokens, use_reentrant):
    """What is computed anew shares as it did at first, or a checkpoint would miss tensors."""
    found = []
    for model in models:
        model.zero_grad()
        x = inputs(tokens).requires_grad_()
        y = x * 1
        for _ in range(2):  # the same input again, in another pass
            checkpoint(model, y, use_reentrant=use_reentrant).square().sum().backward(retain_graph=True)
        found.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(*found)


def test_blocks_do_not_share_so_that_each_can_be_checkpointed(models, products):
    """As cross-attentions, which all get the output of the encoder."""
    found = []
    for model in models:
        model.zero_grad()
        x = inputs().requires_grad_() * 1
        own = model.base_model.model
        for block in (own.first, own.second):
            y = checkpoint(lambda x, b=block: b["query"](x).sum() + b["value"](x).sum(), x, use_reentrant=False)
            y.backward(retain_graph=True)
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*found)
    assert len(products) == 4  # once for each block, and once more when it is computed anew


def alive(model, run):
    """Which of an input and the projections of it outlive ``run``."""
    seen = []

    def counted(x, down):
        result = torch.nn.functional.linear(x, down)
        seen.extend([weakref.ref(x), weakref.ref(result)])
        return result

    original, shared_projection.linear = shared_projection.linear, counted
    try:
        run(model)
    finally:
        shared_projection.linear = original
    assert seen
    return [reference for reference in seen if reference() is not None]


def test_nothing_is_kept_alive(models):
    def without_gradients(model):
        with torch.no_grad():
            model(inputs())

    def never_backward(model):
        model(inputs().requires_grad_() * 1)

    def backward(model):
        model(inputs().requires_grad_() * 1).sum().backward()

    def frozen_input(model):
        model(inputs()).sum().backward()

    def checkpointed(model):
        checkpoint(model, inputs().requires_grad_(), use_reentrant=True).sum().backward()

    def leaf(model):
        first = model.base_model.model.first
        x = inputs().requires_grad_()
        y = x * 1
        first["query"](y).sum().backward()
        first["query"](x)

    for run in (without_gradients, never_backward, backward, frozen_input, checkpointed, leaf):
        assert not alive(models[0], run), run.__name__


def test_a_kept_input_keeps_no_projection_after_backward(models):
    x = inputs().requires_grad_() * 1
    kept = alive(models[0], lambda model: model.base_model.model.first["query"](x).sum().backward())
    assert [reference() for reference in kept if reference() is not x] == []


def test_adapters_do_not_share(models, products):
    for model in models:
        config = model.peft_config["default"]
        model.add_adapter("other", type(config)(r=5, target_modules=["query", "value"]))
        model.double()
    x = inputs()
    for model in models:
        for name, parameter in model.named_parameters():
            if "other" in name:
                torch.manual_seed(len(name))
                parameter.data.normal_()
    with torch.no_grad():
        for name in ("default", "other", "default"):
            for model in models:
                model.set_adapter(name)
            torch.testing.assert_close(models[0](x), models[1](x))


def test_an_attention_block_of_transformers_shares(products):
    pair = make_pair("vera", "bert")
    with torch.no_grad():
        output(pair.ours, pair.x[:1])
    assert len(products) == 2  # one for each layer, whose query and value have the same input


# -- who makes the layers --------------------------------------------------------------------------------------------


def test_the_tuner_is_registered_once_and_not_over_another(monkeypatch):
    vera.register()
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VERA] is vera.VeraModel

    class Other(peft.VeraModel):
        pass

    monkeypatch.setitem(PEFT_TYPE_TO_TUNER_MAPPING, PeftType.VERA, Other)
    with pytest.raises(RuntimeError, match="do not import both"):
        vera.register()
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.VERA] is Other


@pytest.mark.parametrize("bias", ["none", "vera_only", "all"])
def test_bias(bias):
    make_pair("vera", bias=bias).check_equal()


def test_without_saved_projections(tmp_path):
    with pytest.warns(UserWarning, match="projection_prng_key"):
        pair = make_pair("vera", dtype=torch.float32, save_projection=False, projection_prng_key=11)
    pair.ours.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="projection_prng_key"):
        config = vera.VeraConfig.from_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(pair.base), tmp_path, config=config).eval()
    torch.testing.assert_close(output(loaded, pair.x), output(pair.stock, pair.x))


@pytest.mark.parametrize("stored_as_conv1d", [False, True])
def test_fan_in_fan_out_is_settled_with_a_warning(stored_as_conv1d):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(4, 4) if stored_as_conv1d else nn.Linear(4, 4)
    config = vera.VeraConfig(r=2, target_modules=["0"], fan_in_fan_out=not stored_as_conv1d)
    with pytest.warns(UserWarning, match=f"it is set to {stored_as_conv1d}"):
        peft.get_peft_model(nn.Sequential(layer), config)
    assert config.fan_in_fan_out is stored_as_conv1d
