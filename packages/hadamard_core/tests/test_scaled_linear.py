"""scaled_linear is the formula in its docstring, whichever way it is computed, and so are its gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from torch.testing import assert_close

from hadamard_core.functional import Slices, scaled_linear, scaled_weight

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


def arguments(shape=(3, 4), out=7, dtype=torch.float64, present=(1, 1, 1, 1), parts=0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    features = shape[-1]
    shapes = ((out,), (parts, features) if parts else (features,), (out,), (out,))
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


@pytest.mark.parametrize("present", list(itertools.product([0, 1], repeat=4)), ids=str)
@pytest.mark.parametrize("samples", [(2,), (2, 3)], ids=["a sample", "a token"])
def test_many_adapters_in_one_batch_equal_each_apart(samples, present):
    """Value and gradients, with one adapter that no sample has."""
    x, weight, bias, *vectors = arguments((2, 3, 5), present=present)
    adapters = 3
    stacked = [None if v is None else (v.detach() + torch.randn(adapters, 1)).requires_grad_() for v in vectors]
    index = torch.tensor([2, 0, 2, 0, 0, 2])[: torch.Size(samples).numel()].view(samples)
    grad = torch.randn(2, 3, 7, dtype=torch.float64)
    trained = [t for t in (x, weight, bias, *stacked) if t is not None]
    y = scaled_linear(x, weight, bias, *stacked, index=index)
    ours = torch.autograd.grad(y, trained, grad)

    number = index.view(*samples, *(1,) * (2 - len(samples))).expand(2, 3)
    apart = [formula(x, weight, bias, *(None if v is None else v[k] for v in stacked)) for k in range(adapters)]
    expected = sum(torch.where((number == k)[..., None], each, 0) for k, each in enumerate(apart))
    assert_close(y, expected)
    for a, b in zip(ours, torch.autograd.grad(expected, trained, grad), strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("relative_bias", [0, 1, 20])
def test_16_bit_gradients_of_many_adapters_are_those_of_each_apart(relative_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64, 128).bfloat16(), (torch.randn(96, 128) / 128**0.5).bfloat16()
    bias = (relative_bias * torch.randn(96)).bfloat16()
    scale_in, scale_out, shift = (torch.randn(2, n).mul(0.1).add(1).requires_grad_() for n in (128, 96, 96))
    index = torch.tensor([1, 0, 0, 1])
    grad = torch.randn(4, 64, 96).bfloat16()
    together = scaled_linear(x, weight, bias, scale_in, scale_out, shift, index=index)
    together = torch.autograd.grad(together, (scale_in, scale_out, shift), grad)
    for k in range(2):
        own = index == k
        vectors = [v[k].detach().requires_grad_() for v in (scale_in, scale_out, shift)]
        y = scaled_linear(x[own], weight, bias, *vectors, compute="activation")
        for a, b in zip(together, torch.autograd.grad(y, vectors, grad[own]), strict=True):
            assert (a[k] - b).norm() <= 1e-2 * b.norm()


@pytest.mark.parametrize(
    "slices", [Slices((0, 2), 3), Slices((2, 0), 3), Slices((1,), 2, 3), Slices((0, 1), 2, 3)], ids=str
)
@pytest.mark.parametrize("trained", [NAMES, ("scale_in",), ("scale_out", "shift"), ("x",)], ids=str)
def test_slices_of_a_fused_projection(slices, trained):
    args = arguments((2, 3, 5), out=6, parts=len(slices.adapted))
    for name, argument in zip(NAMES, args, strict=True):
        argument.requires_grad_(name in trained)
    size = 6 // (slices.parts * slices.groups)
    part_of_feature = torch.arange(slices.parts).repeat_interleave(size).repeat(slices.groups)
    rows = {part: row for row, part in enumerate(slices.adapted)}
    parts = torch.tensor([rows.get(int(part), -1) for part in part_of_feature])
    grad = torch.randn(2, 3, 6, dtype=torch.float64)
    y, ours = gradients(scaled_linear, args, grad, slices=slices)
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


@pytest.mark.parametrize("compute", WAYS)
@pytest.mark.parametrize("trained", [n for k in (1, 2) for n in itertools.combinations(NAMES, k)], ids=" ".join)
def test_any_selection_of_what_is_trained(trained, compute):
    args = arguments((4, 5))
    for name, argument in zip(NAMES, args, strict=True):
        argument.requires_grad_(name in trained)
    grad = torch.randn(4, 7, dtype=torch.float64)
    _, ours = gradients(scaled_linear, args, grad, compute=compute)
    _, theirs = gradients(formula, args, grad)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compute", WAYS)
def test_a_few_tokens_with_gradients_decide_where_the_product_is_taken_anew(compute):
    """As in the last layer of a classifier, where only first tokens have one; fp32, with a bias that hides products."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(256, 16), torch.randn(8, 16), torch.full((8,), 1e6)
    vectors = [torch.rand(n).add(0.5).requires_grad_() for n in (16, 8)]
    grad = torch.zeros(256, 8)
    grad[77] = torch.randn(8)
    ours = torch.autograd.grad(scaled_linear(x, weight, bias, *vectors, compute=compute), vectors, grad)
    exact = [v.detach().double().requires_grad_() for v in vectors]
    y = formula(x.double(), weight.double(), bias.double(), *exact, None)
    for a, b in zip(ours, torch.autograd.grad(y, exact, grad.double()), strict=True):
        assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


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
        ({"index": torch.zeros(2)}, "index is of torch.float32"),
        ({"index": torch.zeros(2, dtype=torch.int64)}, "scale_out has shape"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, "index has shape"),
        ({"slices": Slices((0,), 7), "scale_in": None}, "without scale_in"),
        ({"slices": Slices((0,), 2), "scale_in": torch.ones(1, 5)}, "do not fit a weight with 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_do_not_fit(change, words):
    call = dict(zip(NAMES, arguments((2, 5)), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        scaled_linear(**call)
