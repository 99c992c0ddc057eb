"""On a quantised base the product is the base layer's own affair, and unmerging restores the quantised bits."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import hadamard_core.layer
import hadamard_core.orientation
from hadamard_adapter import HadamardAdapterConfig


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
    return nn.Sequential(RoundedLinear(6, 5), nn.LayerNorm(5))


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


def adapted(model, **fields):
    config = HadamardAdapterConfig(target_modules=["0"], norm_modules=["1"], **fields)
    return get_peft_model(copy.deepcopy(model), config)


def check(model, x, position, merge_tolerance):
    model.requires_grad_(False)
    expected = model(x)
    assert torch.equal(adapted(model, position=position)(x), expected)
    tried = adapted(model, position=position, init_weights=False)
    y = tried(x)
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in tried.parameters() if p.requires_grad)
    tried.merge_adapter()
    assert (tried(x) - y).norm() < merge_tolerance * y.norm()
    tried.unmerge_adapter()
    assert torch.equal(tried(x), y)
    with tried.disable_adapter():
        assert torch.equal(tried(x), expected)


both_positions = pytest.mark.parametrize("position", ["context", "projection"])


@both_positions
def test_around_a_quantised_layer(rounded, position):
    check(rounded, torch.randn(7, 6), position, merge_tolerance=0.1)


@both_positions
def test_function_is_that_on_the_dequantised_weight(rounded, position):
    x = torch.randn(7, 6)
    dense = nn.Sequential(nn.Linear(6, 5), copy.deepcopy(rounded[1]))
    dense[0].weight.data, dense[0].bias.data = rounded[0].dequantized(), rounded[0].bias.data
    outputs = []
    for model in (rounded, dense):
        torch.manual_seed(1)
        outputs.append(adapted(model, position=position, init_weights=False)(x))
    torch.testing.assert_close(*outputs)


@both_positions
@pytest.mark.parametrize(("kind", "merge_tolerance"), [(0, 0.05), (1, 0.5)], ids=["8 bit", "4 bit"])
def test_bitsandbytes(kind, merge_tolerance, position):
    torch.manual_seed(0)
    model = nn.Sequential(bitsandbytes_layers()[kind], nn.LayerNorm(64)).to("cpu")
    check(model, torch.randn(5, 64), position, merge_tolerance)
