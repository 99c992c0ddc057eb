"""Every kernel is the formula in its docstring, in float64, for any shape, layout and choice of parts."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from hadamard_core import kernels

pytest.importorskip("triton")

# Relative tolerance of a result rounded to the dtype; the interpreter cuts bf16 off instead of rounding it.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Of a sum, which is added in fp32 (fp64 for fp64), relative to that of the terms' magnitudes.
RTOL_OF_SUMS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
DTYPES = list(RTOL)
SHAPES = [(2, 16, 64), (5, 3, 123), (3, 1, 20), (2, 70, 1), (4, 0, 8)]
DIVISORS = {torch.float64: 1e-100, torch.float32: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-12}
CENTERS = {torch.float64: 1e4, torch.float32: 32, torch.float16: 0.5, torch.bfloat16: 0.5}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def random(kernel_device):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.float64):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(kernel_device, dtype)

    return draw


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def vectors(random, dtype, *shapes):
    """Scales and shifts, in fp32 as they are trained in, except beside fp64."""
    return [random(*shape, dtype=wide(dtype)) for shape in shapes]


def close(actual, expected, dtype, tolerances=RTOL):
    assert actual.dtype == dtype
    assert_close(actual.double(), expected, rtol=tolerances[dtype], atol=tolerances[dtype])


def close_sum(actual, expected, magnitude, rtol):
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= rtol * magnitude).all()


def index_of(samples, device, adapters=4):
    """Uses every adapter but the one before the last, in no order."""
    used = [adapter for adapter in reversed(range(adapters)) if adapter != adapters - 2]
    return torch.tensor([used[sample % len(used)] for sample in range(samples)], device=device)


def gathered(vector, index):
    return vector.double()[0] if index is None else vector.double()[index][:, None]


def close_by_adapter(actual, terms, index, dtype):
    """Compares with the sums of (samples, tokens, features) over the tokens of each adapter."""
    assert actual.dtype == wide(dtype)
    index = torch.zeros(len(terms), dtype=torch.long, device=terms.device) if index is None else index
    expected, magnitude = (
        torch.zeros(actual.shape, dtype=torch.float64, device=terms.device).index_add_(0, index, each.sum(1))
        for each in (terms, terms.abs())
    )
    close_sum(actual, expected, magnitude, RTOL_OF_SUMS[dtype])


@pytest.mark.parametrize("several", [False, True], ids=["one adapter", "several adapters"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_scale_shift(random, dtype, shape, several):
    x = random(*shape, dtype=dtype)
    index = index_of(shape[0], x.device) if several else None
    vector = (4 if several else 1, shape[-1])
    scale, shift = vectors(random, dtype, vector, vector)
    y = kernels.scale_shift.scale_shift(x, scale, shift, index)
    close(y, x.double() * gathered(scale, index) + gathered(shift, index), dtype)


@pytest.mark.parametrize("present", [(0, 0), (0, 1), (1, 0)], ids=str)
def test_scale_shift_without_one_or_both(random, present):
    x = random(3, 5, 20, dtype=torch.float32)
    index = index_of(3, x.device)
    scale, shift = (vector if here else None for vector, here in zip(random(2, 4, 20), present, strict=True))
    expected = x.double()
    expected = expected if scale is None else expected * gathered(scale, index)
    expected = expected if shift is None else expected + gathered(shift, index)
    close(kernels.scale_shift.scale_shift(x, scale, shift, index), expected, torch.float32)


LAYOUTS = {
    "tokens first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "slice of features": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "features first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("several", [False, True], ids=["one adapter", "several adapters"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scale_shift_of_any_strides(random, layout, several):
    x, grad = (LAYOUTS[layout](random(3, 5, 20, dtype=torch.float32)) for _ in range(2))
    adapters = 4 if several else 1
    index = index_of(3, x.device) if several else None
    scale, shift = random(adapters, 20), random(adapters, 20)
    y = kernels.scale_shift.scale_shift(x, scale, shift, index)
    close(y, x.double() * gathered(scale, index) + gathered(shift, index), torch.float32)
    grads = kernels.scale_shift.scale_shift_backward(
        grad, x, scale, index, adapters, needs_input=True, needs_scale=True, needs_shift=True
    )
    close(grads[0], grad.double() * gathered(scale, index), torch.float32)
    close_by_adapter(grads[1], grad.double() * x.double(), index, torch.float64)
    close_by_adapter(grads[2], grad.double(), index, torch.float64)


@pytest.mark.parametrize("several", [False, True], ids=["one adapter", "several adapters"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_scale_shift_backward(random, dtype, shape, several):
    grad, x = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    adapters = 4 if several else 1
    index = index_of(shape[0], x.device) if several else None
    scale, center = vectors(random, dtype, (adapters, shape[-1]), (shape[-1],))
    grads = kernels.scale_shift.scale_shift_backward(
        grad, x, scale, index, adapters, center=center, needs_input=True, needs_scale=True, needs_shift=True
    )
    close(grads[0], grad.double() * gathered(scale, index), dtype)
    close_by_adapter(grads[1], grad.double() * (x.double() - center.double()), index, dtype)
    close_by_adapter(grads[2], grad.double(), index, dtype)


@pytest.mark.parametrize("needs", [(i, s, b) for i in (0, 1) for s in (0, 1) for b in (0, 1)], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["no scale", "scale"])
def test_scale_shift_backward_computes_what_is_needed(random, needs, scaled):
    grad, x = random(3, 70, 20, dtype=torch.float32), random(3, 70, 20, dtype=torch.float32)
    scale = random(4, 20, dtype=torch.float32) if scaled else None
    index = index_of(3, x.device)
    grads = kernels.scale_shift.scale_shift_backward(
        grad,
        x if needs[1] else None,
        scale,
        index,
        4,
        **dict(zip(("needs_input", "needs_scale", "needs_shift"), map(bool, needs), strict=True)),
    )
    assert tuple(gradient is not None for gradient in grads) == tuple(map(bool, needs))
    if needs[0] and scaled:
        close(grads[0], grad.double() * gathered(scale, index), torch.float32)
    elif needs[0]:
        assert grads[0] is grad
    if needs[1]:
        close_by_adapter(grads[1], grad.double() * x.double(), index, torch.float32)
    if needs[2]:
        close_by_adapter(grads[2], grad.double(), index, torch.float32)


def part_of_rows(out_features, parts, groups):
    return torch.arange(out_features) // (out_features // (parts * groups)) % parts


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize(("shape", "parts", "groups"), [
    ((32, 64), 1, 1), ((13, 300), 1, 1), ((300, 13), 1, 1), ((1, 7), 1, 1), ((7, 1), 1, 1), ((0, 7), 1, 1),
    ((24, 33), 3, 1), ((24, 33), 3, 2), ((24, 33), 2, 4),
], ids=str)  # fmt: skip
@dtypes
def test_scaled_weight(random, dtype, shape, parts, groups, transposed):
    out_features, in_features = shape
    weight = random(in_features, out_features, dtype=dtype).t() if transposed else random(*shape, dtype=dtype)
    scale_in, scale_out = vectors(random, dtype, (parts, in_features), (out_features,))
    scaled = kernels.scaled_weight.scaled_weight(weight, scale_in, scale_out, dtype, parts, groups)
    rows_in = scale_in.double()[part_of_rows(out_features, parts, groups)] if out_features else 1
    close(scaled, weight.double() * scale_out.double()[:, None] * rows_in, dtype)
    if min(shape) > 1:
        assert scaled.stride() == weight.stride()


@pytest.mark.parametrize("present", [(0, 0), (0, 1), (1, 0)], ids=str)
def test_scaled_weight_without_one_or_both(random, present):
    weight = random(12, 20, dtype=torch.float32)
    scale_in, scale_out = (v if here else None for v, here in zip((random(1, 20), random(12)), present, strict=True))
    scaled = kernels.scaled_weight.scaled_weight(weight, scale_in, scale_out, torch.float16)
    expected = (
        weight.double() * (1 if scale_in is None else scale_in) * (1 if scale_out is None else scale_out[:, None])
    )
    close(scaled, expected, torch.float16)
    assert scaled.data_ptr() != weight.data_ptr()


def test_scaled_weight_of_a_slice_of_a_transposed_weight(random):
    weight = random(20, 30, dtype=torch.float32).t()[4:16]
    scale_in, scale_out = random(1, 20), random(12)
    scaled = kernels.scaled_weight.scaled_weight(weight, scale_in, scale_out, torch.float32)
    close(scaled, weight.double() * scale_in * scale_out[:, None], torch.float32)
    assert scaled.stride() == (1, 12)


class Layer:
    """A layer's tensors in ``dtype`` and its result rounded to it, and the gradient of scale_out in float64."""

    def __init__(self, random, dtype, tokens=70, out=24, features=33, parts=1, groups=1, **vectors):
        self.dtype, self.parts, self.groups = dtype, parts, groups
        self.grad, self.x = random(tokens, out, dtype=dtype), random(tokens, features, dtype=dtype)
        self.weight = random(out, features, dtype=dtype)
        self.scale_in, self.scale_out, self.center = map(vectors.get, ("scale_in", "scale_out", "center"))
        rows = self.weight.double()
        if self.scale_in is not None:
            rows = rows * self.scale_in.double()[part_of_rows(out, parts, groups)]
        product = self.x.double() @ rows.t()
        self.exact = (self.grad.double() * product).sum(0)
        self.magnitude = (self.grad.double().abs() * (self.x.double().abs() @ rows.abs().t())).sum(0)
        y = product if self.scale_out is None else product * self.scale_out
        self.y = (y if self.center is None else y + self.center).to(dtype)

    def gradient(self, smallest_divisor=None, largest_relative_center=None):
        gradient, total = kernels.exact_columns.grad_of_scale_out(
            self.grad,
            self.y,
            self.x,
            self.weight,
            self.scale_in,
            self.scale_out,
            self.center,
            self.parts,
            self.groups,
            smallest_divisor=DIVISORS[self.dtype] if smallest_divisor is None else smallest_divisor,
            largest_relative_center=CENTERS[self.dtype] if largest_relative_center is None else largest_relative_center,
        )
        assert gradient.dtype == total.dtype == wide(self.dtype)
        close_sum(total, self.grad.double().sum(0), self.grad.double().abs().sum(0), RTOL_OF_SUMS[self.dtype])
        return gradient

    def check(self, gradient, rtol, columns=slice(None)):
        close_sum(gradient[columns], self.exact[columns], self.magnitude[columns], rtol)


NONE_FLAGGED = {"smallest_divisor": 0.0, "largest_relative_center": 1e30}
ALL_FLAGGED = {"smallest_divisor": 1e30}
SIZES = [{}, {"tokens": 1}, {"out": 1}, {"features": 1}, {"tokens": 130, "out": 70, "features": 64}, {"tokens": 0}]


@pytest.mark.parametrize("size", SIZES, ids=str)
@dtypes
def test_grad_of_scale_out_where_all_columns_are_flagged(random, dtype, size):
    scale_out, center = vectors(random, dtype, *[(size.get("out", 24),)] * 2)
    layer = Layer(random, dtype, scale_out=scale_out, center=center, **size)
    layer.check(layer.gradient(**ALL_FLAGGED), RTOL_OF_SUMS[dtype])


@pytest.mark.parametrize("size", SIZES, ids=str)
@dtypes
def test_grad_of_scale_out_where_no_column_is_flagged(random, dtype, size):
    scale_out, center = vectors(random, dtype, *[(size.get("out", 24),)] * 2)
    layer = Layer(random, dtype, scale_out=1 + scale_out.abs(), center=0.1 * center, **size)
    layer.check(layer.gradient(**NONE_FLAGGED), RTOL[dtype])


@pytest.mark.parametrize("present", [(i, o, c) for i in (0, 1) for o in (0, 1) for c in (0, 1)], ids=str)
@pytest.mark.parametrize("thresholds", [NONE_FLAGGED, ALL_FLAGGED, {}], ids=["none", "all", "by value"])
def test_grad_of_scale_out_with_and_without_each_vector(random, present, thresholds):
    shapes = {"scale_in": (1, 33), "scale_out": (24,), "center": (24,)}
    present = {name: random(*shape) for (name, shape), here in zip(shapes.items(), present, strict=True) if here}
    layer = Layer(random, torch.float64, **present)
    layer.check(layer.gradient(**thresholds), RTOL[torch.float64])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@dtypes
def test_grad_of_scale_out_of_a_fused_projection(random, dtype, groups, transposed):
    scale_in, scale_out = vectors(random, dtype, (3, 33), (24,))
    layer = Layer(random, dtype, parts=3, groups=groups, scale_in=scale_in, scale_out=scale_out)
    if transposed:
        layer.weight = layer.weight.t().contiguous().t()
    layer.check(layer.gradient(**ALL_FLAGGED), RTOL[dtype])


@dtypes
def test_a_scale_too_small_to_divide_by(random, dtype):
    (scale_out,) = vectors(random, dtype, (24,))
    scale_out = 1 + scale_out.abs()
    small = torch.tensor([0, 1, 5, 22])
    tiny = DIVISORS[dtype] / 8
    scale_out[small] = torch.tensor([0, tiny, -tiny, 0], dtype=torch.float64).to(scale_out)
    layer = Layer(random, dtype, scale_out=scale_out)
    gradient = layer.gradient()
    layer.check(gradient, RTOL[dtype])
    layer.check(gradient, RTOL_OF_SUMS[dtype], small)


@dtypes
def test_a_center_that_hides_the_product(random, dtype):
    scale_out, center = vectors(random, dtype, (24,), (24,))
    large = torch.tensor([3, 4, 17])
    center = 0.01 * center
    center[large] = 1e3 * CENTERS[dtype] * center[large].sign()
    center[9] = 0
    layer = Layer(random, dtype, scale_out=1 + scale_out.abs(), center=center)
    gradient = layer.gradient()
    layer.check(gradient, RTOL[dtype])
    layer.check(gradient, RTOL_OF_SUMS[dtype], large)


@dtypes
def test_columns_of_grad_that_are_zero(random, dtype):
    scale_out, center = vectors(random, dtype, (24,), (24,))
    layer = Layer(random, dtype, scale_out=scale_out, center=center)
    layer.grad[:, 5:9] = 0
    assert (layer.gradient()[5:9] == 0).all()


@pytest.fixture
def small_blocks(kernel_device, monkeypatch):
    """Makes every loop of a kernel run more than once on a small shape."""
    for module in (kernels.scale_shift, kernels.exact_columns):
        monkeypatch.setattr(module, "_CHUNKS_ADDED", 2)
        monkeypatch.setattr(module, "_FEATURES_ADDED", 16)
    monkeypatch.setattr(kernels.exact_columns, "_COLUMNS_NUMBERED", 16)
    monkeypatch.setattr(kernels.exact_columns, "_TILE", (16, 16, 16))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("several", [False, True], ids=["one adapter", "several adapters"])
def test_scale_shift_backward_in_many_blocks(random, several):
    grad, x = random(2, 3, 150, 20, dtype=torch.float32)
    adapters = 4 if several else 1
    index = index_of(3, x.device) if several else None
    _, *grads = kernels.scale_shift.scale_shift_backward(
        grad, x, None, index, adapters, needs_input=False, needs_scale=True, needs_shift=True
    )
    close_by_adapter(grads[0], grad.double() * x.double(), index, torch.float32)
    close_by_adapter(grads[1], grad.double(), index, torch.float32)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_grad_of_scale_out_in_many_blocks(random, dtype):
    scale_in, scale_out, center = vectors(random, dtype, (1, 33), (70,), (70,))
    scale_out = 1 + scale_out.abs()
    small = torch.tensor([*range(10, 35), 40, 69])
    scale_out[small] = 0
    layer = Layer(random, dtype, 290, 70, scale_in=scale_in, scale_out=scale_out, center=center)
    layer.check(layer.gradient(), RTOL_OF_SUMS[dtype])


def test_two_runs_are_equal_bit_for_bit(random):
    grad, x = random(2, 3, 150, 20, dtype=torch.bfloat16)
    scale, index = random(4, 20, dtype=torch.float32), index_of(3, x.device)
    layer = Layer(random, torch.bfloat16, tokens=150, scale_out=random(24).float(), center=random(24).float())

    def results():
        yield from kernels.scale_shift.scale_shift_backward(
            grad, x, scale, index, 4, needs_input=True, needs_scale=True, needs_shift=True
        )
        yield layer.gradient()
        yield layer.gradient(**ALL_FLAGGED)

    for first, second in zip(results(), results(), strict=True):
        assert torch.equal(first, second)


def test_only_tensors_on_the_device_are_usable(kernel_device):
    assert kernels.usable(torch.empty(1, device=kernel_device))
    assert not kernels.usable(torch.empty(1, device="meta"))


def test_nothing_is_usable_without_triton(kernel_device, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels._has_triton.cache_clear()
    assert not kernels.usable(torch.empty(1, device=kernel_device))
    kernels._has_triton.cache_clear()


def run(code, interpret):
    command = [sys.executable, "-c", f"import sys, torch; from hadamard_core import functional, kernels; {code}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": interpret})


def test_triton_is_imported_only_when_a_tensor_asks_for_it_and_then_not_interpreted():
    process = run(
        "assert not kernels.usable(torch.empty(1)); assert 'triton' not in sys.modules; "
        "kernels.interpreted().__enter__()",
        interpret="0",
    )
    assert "set TRITON_INTERPRET=1 before" in process.stderr


def test_kernels_imported_to_be_interpreted():
    run("exec('with kernels.interpreted(): assert kernels.usable(torch.empty(1))')", interpret="1").check_returncode()
