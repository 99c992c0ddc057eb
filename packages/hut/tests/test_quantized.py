"""On a quantised base the product is the base layer's own affair, and unmerging restores the quantised bits."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

import hadamard_core.layer
import hadamard_core.orientation
from hut import HutConfig


class RoundedLinear(nn.Linear):
    """Stands for a quantised layer: its weight is kept in int8 steps and only its forward knows what they are."""

    def __init__(self, *args):
        super().__init__(*args)
        self.steps = nn.Parameter(self._steps(self.weight.data), requires_grad=False)
        self.weight = nn.Parameter(torch.zeros_like(self.weight, dtype=torch.int8), requires_grad=False)

    @staticmethod
    def _steps(weight):
        return (weight * 100).round().to(torch.int8)

    def dequantized(self):
        return self.steps / 100

    def forward(self, x):
        return nn.functional.linear(x, self.dequantized(), self.bias)


class RoundedBackend:
    supports_merge = True
    backend_name = "rounded"

    def get_base_weight(self, base_layer):
        return base_layer.dequantized()

    def set_base_weight(self, peft_layer, weight):
        peft_layer.get_base_layer().steps.data = RoundedLinear._steps(weight)


@pytest.fixture
def rounded(monkeypatch):
    for module in (hadamard_core.layer, hadamard_core.orientation):
        monkeypatch.setattr(
            module,
            "resolve_quantization_backend",
            lambda layer: RoundedBackend() if isinstance(layer, RoundedLinear) else None,
        )
    torch.manual_seed(0)
    return nn.Sequential(RoundedLinear(6, 5))


def bitsandbytes_layers():
    bnb = pytest.importorskip("bitsandbytes")
    dense = nn.Linear(64, 64)
    eight = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    eight.weight = bnb.nn.Int8Params(dense.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    four = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32)
    four.weight = bnb.nn.Params4bit(dense.weight.data.clone(), requires_grad=False)
    for layer in (eight, four):
        layer.bias = dense.bias
    return eight, four


def check(model, x, merge_tolerance):
    model.requires_grad_(False)
    expected = model(x)
    start = get_peft_model(copy.deepcopy(model), HutConfig(target_modules=["0"]))
    assert torch.equal(start(x), expected)
    adapted = get_peft_model(copy.deepcopy(model), HutConfig(target_modules=["0"], init_weights=False))
    y = adapted(x)
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)
    adapted.merge_adapter()
    assert (adapted(x) - y).norm() < merge_tolerance * y.norm()
    adapted.unmerge_adapter()
    assert torch.equal(adapted(x), y)
    with adapted.disable_adapter():
        assert torch.equal(adapted(x), expected)


def test_around_a_quantised_layer(rounded):
    check(rounded, torch.randn(7, 6), merge_tolerance=0.1)


def test_function_is_that_on_the_dequantised_weight(rounded):
    x = torch.randn(7, 6)
    dense = nn.Sequential(nn.Linear(6, 5))
    dense[0].weight.data, dense[0].bias.data = rounded[0].dequantized(), rounded[0].bias.data
    outputs = []
    for model in (rounded, dense):
        torch.manual_seed(1)
        outputs.append(get_peft_model(model, HutConfig(target_modules=["0"], init_weights=False))(x))
    assert_close(*outputs)


@pytest.mark.parametrize(("kind", "merge_tolerance"), [(0, 0.05), (1, 0.5)], ids=["8 bit", "4 bit"])
def test_bitsandbytes(kind, merge_tolerance):
    torch.manual_seed(0)
    check(nn.Sequential(bitsandbytes_layers()[kind]).to("cpu"), torch.randn(5, 64), merge_tolerance)
