"""scaled_linear is the formula in its docstring, whichever way it is computed, and so are its gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from torch.testing import assert_close

from hadamard_core.functional import scaled_linear, scaled_weight

WAYS = ("weight", "activation")
NAMES = ("x", "weight", "bias", "scale_in", "scale_out", "shift")


def formula(x, weight, bias, scale_in, scale_out, shift, parts=None):
    """The definition, through autograd on the scaled weight (what HUT's paper writes)."""
    if parts is not None:
        scale_in = torch.cat([scale_in, torch.ones_like(scale_in[:1])])[parts]
    y = linear(x, weight if scale_in is None else weight * scale_in)
    for term, operation in ((scale_out, torch.mul), (bias, torch.add), (shift, torch.add)):
        y = y if term is None else operation(y, term)
    return y


def activation_way_in_autograd(x, weight, bias, scale_in, scale_out, shift):
    """The plain way to write it around a frozen product: the yardstick for accuracy in 16 bits."""
    return (linear((x * scale_in).to(x.dtype), weight) * scale_out + bias + shift).to(x.dtype)


def arguments(shape=(3, 4), out=7, dtype=torch.float64, present=(1, 1, 1, 1), parts=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    features = shape[-1]
    shapes = ((out,), (2, features) if parts else (features,), (out,), (out,))
    optional = [random(*size) if here else None for size, here in zip(shapes, present, strict=True)]
    return [random(*shape), random(out, features), *optional]


def gradients(function, args, grad, **kwargs):
    present = [a for a in args if a is not None and a.requires_grad]
    y = function(*args, **kwargs)
    return y, torch.autograd.grad(y, present, grad)


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("present", list(itertools.product([0, 1], repeat=4)), ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5), (1, 5)], ids=str)
def test_value_and_all_gradients(shape, present, compute):
    args = arguments(shape, present=present)
    grad = torch.randn(*shape[:-1], 7, dtype=torch.float64)
    for (y, ours), (expected, theirs) in [
        (gradients(scaled_linear, args, grad, compute=compute), gradients(formula, args, grad))
    ]:
        assert_close(y, expected)
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layout", [[0, 0, -1, -1, 1, 1, 1], [1, 0, -1, 1, 0, -1, 0]], ids=["side by side", "interleaved"]
)
def test_slices_of_a_fused_projection(layout):
    parts = torch.tensor(layout)
    args = arguments((2, 3, 5), parts=True)
    grad = torch.randn(2, 3, 7, dtype=torch.float64)
    y, ours = gradients(scaled_linear, args, grad, parts=parts)
    expected, theirs = gradients(formula, args, grad, parts=parts)
    assert_close(y, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("value", [0.0, 1e-300, 1e-30], ids=str)
def test_scales_that_are_zero_or_tiny(compute, value):
    args = arguments((6, 5))
    with torch.no_grad():
        args[3][1] = value
        args[4][2:4] = value
    grad = torch.randn(6, 7, dtype=torch.float64)
    _, ours = gradients(scaled_linear, args, grad, compute=compute)
    _, theirs = gradients(formula, args, grad)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.sampled_from(WAYS), st.integers(0, 99))
def test_any_shape(tokens, features, out, compute, seed):
    args = arguments((tokens, features), out=max(out, 1), seed=seed)
    assert_close(scaled_linear(*args, compute=compute), formula(*args))


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_scales_of_one_are_the_frozen_layer_bit_for_bit(dtype, compute, bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 80, bias=bias, dtype=dtype)
    x = torch.randn(3, 17, 96, dtype=dtype)
    ones_in, ones_out, zeros = torch.ones(96), torch.ones(80), torch.zeros(80)
    y = scaled_linear(x, layer.weight, layer.bias, ones_in, ones_out, zeros, compute=compute)
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("sink", [False, True], ids=["like tokens", "sinks"])
@pytest.mark.parametrize("relative_bias", [0, 0.3, 1, 5, 20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_gradients_stay_within_twice_the_error_of_plain_autograd(dtype, relative_bias, sink, compute):
    torch.manual_seed(0)
    tokens, features = 512, 128
    # The product has a root mean square of one, so that the bias's size is its size relative to the product.
    exact = {
        "x": torch.randn(tokens, features),
        "weight": torch.randn(features, features) / features**0.5,
        "bias": relative_bias * torch.randn(features),
        "scale_in": 1 + 0.1 * torch.randn(features),
        "scale_out": 1 + 0.1 * torch.randn(features),
        "shift": 0.1 * torch.randn(features),
    }
    grad = torch.randn(tokens, features).to(dtype)
    if sink:  # Every first token is large and has no gradient, as where all attend to it: the others' error must count.
        exact["x"][::16] *= 100
        grad[::16] = 0
    trained = ("x", "scale_in", "scale_out", "shift")

    def run(function, low, **kwargs):
        args = []
        for name, value in exact.items():
            # The values that 16 bits can hold are the truth for both precisions.
            value = value.to(dtype) if name in ("x", "weight", "bias") else value
            args.append(value.to(value.dtype if low else torch.float64).requires_grad_(name in trained))
        return gradients(function, args, grad if low else grad.double(), **kwargs)[1]

    truth = run(formula, low=False)
    ours = run(scaled_linear, low=True, compute=compute)
    yardstick = run(activation_way_in_autograd, low=True)
    for name, t, a, b in zip(trained, truth, ours, yardstick, strict=True):
        error, allowed = (a.double() - t).norm() / t.norm(), (b.double() - t).norm() / t.norm()
        assert error <= 2 * allowed + 1e-6, f"{name}: {error:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("compute", WAYS)
def test_passes_the_checks_of_torch_library(compute):
    x, weight, bias, scale_in, scale_out, shift = arguments((4, 5), dtype=torch.float32)
    operator = torch.ops.hadamard.scaled_linear.default
    inputs = (x, weight.detach(), bias.detach(), scale_in, scale_out, shift, None, compute == "weight")
    torch.library.opcheck(operator, inputs)


@pytest.mark.parametrize("compute", WAYS)
def test_compiles_to_one_graph(compute):
    args = arguments((4, 5), dtype=torch.float32)
    grad = torch.randn(4, 7)
    compiled = torch.compile(scaled_linear, fullgraph=True, backend="aot_eager")
    y, ours = gradients(compiled, args, grad, compute=compute)
    expected, theirs = gradients(scaled_linear, args, grad, compute=compute)
    assert_close(y, expected)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("compute", WAYS)
def test_nothing_the_size_of_the_weight_is_kept_for_backward(compute):
    x, weight, bias, scale_in, scale_out, shift = arguments((3, 50), out=40, dtype=torch.float32)
    weight, bias = weight.detach(), bias.detach()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        scaled_linear(x, weight, bias, scale_in, scale_out, shift, compute=compute)
    given = {t.untyped_storage().data_ptr() for t in (x, weight, bias, scale_in, scale_out, shift)}
    own = [t for t in kept if t.untyped_storage().data_ptr() not in given and t.numel()]
    assert sum(t.numel() for t in own) <= 3 * 40


@pytest.mark.parametrize("compute", WAYS)
def test_x_is_not_kept_where_only_the_shift_trains(compute):
    x, weight, _, _, _, shift = arguments((300, 50), out=4, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        scaled_linear(x.detach(), weight.detach(), None, None, None, shift, compute=compute)
    assert all(t.numel() < x.numel() for t in kept)


def test_strides_do_not_matter():
    x, weight, bias, scale_in, scale_out, shift = arguments((6, 5))
    transposed = weight.detach().t().contiguous().t()
    every_other = torch.stack([x, torch.zeros_like(x)], 1).flatten(0, 1)[::2]
    for compute in WAYS:
        y = scaled_linear(every_other, transposed, bias, scale_in, scale_out, shift, compute=compute)
        assert_close(y, formula(x, weight, bias, scale_in, scale_out, shift))


def test_scaled_weight_is_multiplied_in_fp32_and_cast_once():
    torch.manual_seed(0)
    weight = torch.randn(64, 48).to(torch.bfloat16)
    scale_in, scale_out = torch.rand(48) + 0.5, torch.rand(64) + 0.5
    expected = (weight.double() * scale_out.double()[:, None] * scale_in.double()).to(torch.bfloat16)
    assert (scaled_weight(weight, scale_in, scale_out) != expected).float().mean() < 1e-3


def test_second_derivative_is_refused_with_a_sentence():
    x, *rest = arguments((3, 5))
    (gradient,) = torch.autograd.grad(scaled_linear(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compute": "fast"}, "compute is 'fast'"),
        ({"x": torch.zeros(2, 3)}, "x has 3 features"),
        ({"scale_out": torch.ones(5)}, "scale_out has shape"),
        ({"shift": torch.ones(1, 7)}, "shift has shape"),
        ({"scale_in": torch.ones(2, 5)}, "scale_in has shape"),
        ({"scale_in": torch.ones(5, device="meta")}, "scale_in is on meta and x on cpu"),
        ({"weight": torch.ones(7, 5, device="meta")}, "weight is on meta and x on cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit(change, words):
    call = dict(zip(NAMES, arguments((2, 5)), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        scaled_linear(**call)
