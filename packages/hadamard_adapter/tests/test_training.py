"""What trains, how, and what it costs: gradients, norms beside unfrozen ones, memory for the backward pass, decay."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from hadamard_adapter import HadamardAdapterConfig
from hadamard_core.accounting import bytes_saved_for_backward


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    """An output projection and the norm of its residual block."""

    def __init__(self, bias=True):
        super().__init__()
        self.projection = nn.Linear(6, 5, bias=bias)
        self.norm = nn.LayerNorm(5)

    def forward(self, x, residual):
        return self.norm(self.projection(x) + residual)


def block(bias=True, **fields):
    """A block in double precision, and a copy with an adapter of random values."""
    base = Block(bias)
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    config = HadamardAdapterConfig(target_modules=["projection"], norm_modules=["norm"], init_weights=False, **fields)
    return base.double(), get_peft_model(copy.deepcopy(base), config).double()


def written_out(base, x, residual, position, weight, shift, norm_weight, norm_bias):
    if position == "context":
        y = (x * weight + shift) @ base.projection.weight.T
        y = y if base.projection.bias is None else y + base.projection.bias
    else:
        y = x @ base.projection.weight.T
        y = (y if base.projection.bias is None else y + base.projection.bias) * weight + shift
    y = y + residual
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + base.norm.eps).sqrt()
    return y * (base.norm.weight + norm_weight) + base.norm.bias + norm_bias


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("compute", ["weight", "activation", "auto"])
@pytest.mark.parametrize("position", ["context", "projection"])
def test_gradients_are_those_of_the_formula_written_out(position, compute, bias):
    base, model = block(bias, position=position, compute=compute)
    inner = model.base_model.model
    parameters = [
        inner.projection.hadamard_weight["default"],
        inner.projection.hadamard_bias["default"],
        inner.norm.hadamard_norm_weight["default"],
        inner.norm.hadamard_norm_bias["default"],
    ]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    x, residual = (torch.randn(3, 4, size).double().requires_grad_(True) for size in (6, 5))
    y, expected = model(x, residual), written_out(base, x, residual, position, *parameters)
    assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(y)
    gradients, of_formula = (torch.autograd.grad(z, [x, residual, *parameters], grad) for z in (y, expected))
    for own, theirs in zip(gradients, of_formula, strict=True):
        assert_close(own, theirs, rtol=1e-10, atol=1e-10)


def losses(model, steps=20, **settings):
    x, residual, target = (torch.randn(32, size, generator=torch.Generator().manual_seed(size)) for size in (6, 5, 4))
    target = target.mean(-1, keepdim=True).double()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, **settings)
    curve = []
    for _ in range(steps):
        loss = (model(x.double(), residual.double()) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(loss.item())
    return torch.tensor(curve)


def test_a_norm_learns_what_an_unfrozen_one_learns():
    base, _ = block()
    fields = {"target_modules": ["projection"], "norm_modules": ["norm"], "weight": False, "bias": False}
    model = get_peft_model(copy.deepcopy(base), HadamardAdapterConfig(**fields)).double()
    base.requires_grad_(False)
    base.norm.requires_grad_(True)
    unfrozen, own = losses(base, weight_decay=0.0), losses(model, weight_decay=0.0)
    assert unfrozen[-1] < 0.9 * unfrozen[0]
    assert_close(own, unfrozen, rtol=1e-9, atol=0)
    assert_close(model.merge_and_unload().norm.state_dict(), base.norm.state_dict(), rtol=1e-9, atol=1e-12)


def test_weight_decay_pulls_w_and_b_to_zero_but_norms_to_the_base_models():
    base, model = block()
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    for _ in range(400):
        optimiser.step()
    assert len(start) == 4
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert start[name].abs().max() > 0.1
            assert parameter.abs().max() < 1e-6
    assert_close(model.merge_and_unload().norm.state_dict(), base.norm.state_dict(), atol=1e-6, rtol=0)


LAYERS, FEATURES, BATCH, LENGTH = 3, 16, 4, 30
ACTIVATION = BATCH * LENGTH * FEATURES * 4  # bytes of one in fp32
VECTOR = FEATURES * 4


def bert():
    sizes = {"hidden_size": FEATURES, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=40, **sizes), add_pooling_layer=False).eval().requires_grad_(False)


def bytes_saved(model):
    """For the backward pass of the model, with embeddings that want a gradient, so that the frozen one has a pass."""
    x = torch.randn(BATCH, LENGTH, FEATURES, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    kept = [*model.parameters(), *model.buffers(), x]
    return bytes_saved_for_backward(lambda: model(inputs_embeds=x).last_hidden_state, kept)


@pytest.mark.parametrize("compute", ["weight", "activation", "auto"])
@pytest.mark.parametrize("norm", ["attention", "none"])
@pytest.mark.parametrize("position", ["context", "projection"])
def test_beyond_the_frozen_model_at_most_one_activation_a_layer_is_saved(position, norm, compute):
    base = bert()
    model = get_peft_model(copy.deepcopy(base), HadamardAdapterConfig(position=position, norm=norm, compute=compute))
    # The gradient of W is taken with A. The concatenated heads are what PyTorch's attention keeps for itself anyway.
    activations = {"context": 0, "projection": 1}[position]
    assert bytes_saved(model) - bytes_saved(base) <= LAYERS * (activations * ACTIVATION + 3 * VECTOR)


def test_a_norm_saves_its_two_vectors_only():
    base = bert()
    model = get_peft_model(copy.deepcopy(base), HadamardAdapterConfig(norm="both", weight=False, bias=False))
    assert bytes_saved(model) - bytes_saved(base) <= 2 * LAYERS * 2 * VECTOR


@pytest.mark.parametrize("position", ["context", "projection"])
def test_b_alone_saves_nothing(position):
    base = bert()
    config = HadamardAdapterConfig(position=position, norm="none", weight=False)
    assert bytes_saved(get_peft_model(copy.deepcopy(base), config)) == bytes_saved(base)
