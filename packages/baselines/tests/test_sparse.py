"""What diff pruning and FAR share: changes that come and go without a trace, and the product with a sparse change."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.autograd import gradcheck
from torch.nn.functional import linear
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from hadamard_baselines.changes import Change, changes_of, put_changes, take_changes_off
from hadamard_baselines.diff_pruning import DiffPruningConfig
from hadamard_baselines.far import FarConfig
from hadamard_baselines.sparse import add_at, sparse_linear
from hadamard_core.accounting import bytes_saved_for_backward
from hadamard_core.testing_models import MODELS, TwoLinear, output

CONFIGS = (DiffPruningConfig, FarConfig)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def entries(out_features, in_features, count, dtype=torch.float64):
    index = torch.randperm(out_features * in_features)[:count].int()
    return index, torch.randn(count, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 7)], ids=str)
def test_product_and_its_gradients_are_those_of_a_dense_weight(shape, transposed):
    weight = torch.randn(7, 5, dtype=torch.float64).T if transposed else torch.randn(5, 7, dtype=torch.float64)
    index, values = entries(5, 7, 9)
    x, bias = (torch.randn(*each, dtype=torch.float64, requires_grad=True) for each in (shape, (5,)))
    dense = weight.clone().requires_grad_(True)
    at = index // 7, index % 7

    y = sparse_linear(x, weight, bias, index, values)
    changed = dense.index_put(at, values, accumulate=True)
    expected = linear(x, changed, bias)
    assert_close(y, expected)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, bias, values), grad)
    theirs = torch.autograd.grad(expected, (x, bias, values), grad, retain_graph=True)
    assert_close(ours, theirs)
    # the values' gradient is that of full fine-tuning, at their places
    assert_close(ours[2], torch.autograd.grad(expected, dense, grad)[0][at])
    assert gradcheck(lambda x, values: sparse_linear(x, weight, None, index, values), (x, values))


def test_backward_pass_keeps_the_input_and_no_weight():
    weight, (index, values) = torch.randn(64, 48), entries(64, 48, 30, torch.float32)
    x = torch.randn(10, 48, requires_grad=True)
    assert bytes_saved_for_backward(lambda: sparse_linear(x, weight, None, index, values), [weight, index, values]) == (
        x.numel() * 4
    )


def test_adding_to_16_bits_rounds_once():
    tensor = torch.randn(50).bfloat16()
    index = torch.tensor([3, 3, 7])
    values = torch.tensor([0.001, 0.002, 0.5])
    expected = tensor.float()
    expected[3] += values[0] + values[1]
    expected[7] += values[2]
    added = add_at(tensor, index, values)
    assert added.dtype == torch.bfloat16
    assert torch.equal(added, expected.bfloat16())


def test_changes_start_at_nothing_train_alone_and_go_without_a_trace():
    model = MODELS["bert"].build().eval()
    x = MODELS["bert"].inputs(torch.Generator().manual_seed(1))
    plain, before = output(model, x), dict(model.named_parameters())
    names = ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.output.LayerNorm"]
    classes = [type(model.get_submodule(name)) for name in names]
    put_changes(model, names)
    assert torch.equal(output(model, x), plain)
    assert [(module, parameter) for module, parameter, _ in changes_of(model)] == [
        (module, parameter) for module in names for parameter in ("weight", "bias")
    ]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4
    output(model, x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    assert not torch.allclose(output(model, x), plain)
    take_changes_off(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert [type(model.get_submodule(name)) for name in names] == classes
    assert torch.equal(output(model, x), plain)


def test_changes_of_16_bits_are_fp32():
    layer = nn.Linear(4, 3).bfloat16()
    model = nn.ModuleDict({"layer": layer})
    original = layer.weight.detach().clone()
    put_changes(model, ["layer"])
    [change] = [change for _, name, change in changes_of(model) if name == "weight"]
    with torch.no_grad():
        change.weight.copy_(1e-3 * torch.randn(3, 4))
    assert change.weight.dtype == torch.float32
    assert torch.equal(layer.weight, (original.float() + change.weight).bfloat16())


def test_changes_of_biases_have_the_name_that_optimisers_spare():
    assert [name for name, _ in Change(torch.zeros(3), "bias").named_parameters()] == ["bias"]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 8), lambda: Conv1D(8, 6)], ids=["Linear", "Conv1D"])
def test_layers_that_are_hooked_keep_their_call(config_class, make):
    model = nn.Sequential(make())
    model = get_peft_model(
        model, config_class(target_modules=["0"], init_weights=False, **_share(config_class, 0.5))
    ).eval()
    layer = model.base_model.model[0]
    x = torch.randn(3, 6, requires_grad=True)
    parameters = [x, *(p for p in model.parameters() if p.requires_grad)]
    expected = model(x)
    calls = []
    layer.base_layer.register_forward_hook(lambda *_: calls.append(1))
    hooked = model(x)
    assert calls
    assert_close(hooked, expected)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(hooked, parameters, grad), torch.autograd.grad(expected, parameters, grad), strict=True
    ):
        assert_close(ours, theirs)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_merged_weights_are_what_is_computed_without_merging(config_class):
    base = TwoLinear().bfloat16()
    config = config_class(target_modules=["first"], init_weights=False, **_share(config_class, 0.3))
    layer = get_peft_model(copy.deepcopy(base), config).base_model.model.first
    layer.merge()
    dense = base.first.weight.float()
    if config_class is FarConfig:
        dense[layer.far_index["default"]] += layer.far_weight["default"]
    else:
        flat = dense.reshape(-1)
        flat[layer.diffpruning_weight_index["default"].long()] += layer.diffpruning_weight["default"]
    assert torch.equal(layer.base_layer.weight, dense.detach().bfloat16())


@pytest.mark.parametrize("config_class", CONFIGS)
def test_what_is_placed_must_fit_the_adapter(config_class):
    model = get_peft_model(TwoLinear(), config_class(target_modules=["first"], **_share(config_class, 0.3)))
    with pytest.raises(ValueError, match="differ in the module first"):
        model.base_model.place({})


@pytest.mark.parametrize("config_class", CONFIGS)
def test_default_roles_are_those_that_the_model_has(config_class):
    fields = {}
    for name in ("bert", "llama"):
        config = config_class(**_share(config_class, 0.3))
        get_peft_model(MODELS[name].build(), config)
        fields[name] = set(config.roles)
    assert fields["llama"] - fields["bert"] == {"ffn_gate"}
    with pytest.raises(ValueError, match="'ffn_gate'"):
        get_peft_model(MODELS["bert"].build(), config_class(roles=["ffn_gate"], **_share(config_class, 0.3)))


def _share(config_class, value):
    return {"retain" if config_class is FarConfig else "sparsity": value}
