"""scale_shift is x * scale + shift, in value and gradients, in any dtype and for many adapters at once."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from hadamard_core.functional import scale_shift

# Outputs are rounded once to the dtype; gradients of vectors are summed in fp32 from rounded values.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def formula(x, scale, shift, index=None):
    if index is not None:
        index = index.view(*index.shape, *(1,) * (x.dim() - 1 - index.dim())).expand(x.shape[:-1])
        scale, shift = (None if v is None else v[index] for v in (scale, shift))
    y = x if scale is None else x * scale
    return y if shift is None else y + shift


def vectors(features, present, adapters=(), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(*adapters, features, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        if here
        else None
        for here in present
    ]


def check(x, scale, shift, grad, index=None):
    trained = [t for t in (x, scale, shift) if t is not None and t.requires_grad]
    y = scale_shift(x, scale, shift, index)
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, scale, shift)]
    expected = formula(*exact, index)
    tolerance = TOLERANCES[x.dtype]
    assert y.dtype == x.dtype
    assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    theirs = torch.autograd.grad(expected, [t for t in exact if t is not None and t.requires_grad], grad.double())
    for own, a, b in zip(trained, torch.autograd.grad(y, trained, grad), theirs, strict=True):
        assert a.dtype == own.dtype
        assert_close(a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item() if b.numel() else 1))


@pytest.mark.parametrize("present", [(1, 1), (1, 0), (0, 1)], ids=["scale and shift", "scale", "shift"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 5), (0, 4), (2, 0, 4), (1, 1), (5, 123)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_value_and_gradients(dtype, shape, present):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    own = dtype if dtype == torch.float64 else torch.float32
    check(x, *vectors(shape[-1], present, dtype=own), torch.randn(shape, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("present", [(1, 1), (1, 0), (0, 1)], ids=["scale and shift", "scale", "shift"])
@pytest.mark.parametrize("per", ["sample", "token"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_many_adapters_in_one_batch(dtype, per, present):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, dtype=torch.float64).to(dtype).requires_grad_()
    index = torch.tensor([3, 0, 0, 1]) if per == "sample" else torch.randint(4, (4, 3))
    own = dtype if dtype == torch.float64 else torch.float32
    check(x, *vectors(6, present, (4,), own), torch.randn(4, 3, 6, dtype=torch.float64).to(dtype), index)


@pytest.mark.parametrize("trained", [k for n in (1, 2) for k in itertools.combinations(range(3), n)], ids=str)
def test_any_selection_of_what_is_trained(trained):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 5, dtype=torch.float64), *vectors(5, (1, 1), dtype=torch.float64)]
    for number, one in enumerate(inputs):
        one.detach_().requires_grad_(number in trained)
    check(*inputs, torch.randn(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_do_not_matter(dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 8, 5).to(dtype).transpose(0, 1)[::2].requires_grad_()
    grad = torch.randn(5, 4, 6).to(dtype).permute(1, 2, 0)
    check(x, *vectors(5, (1, 1)), grad)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_ones_and_zeros_change_nothing(dtype):
    x = torch.randn(3, 7, 33).to(dtype)
    assert torch.equal(scale_shift(x, torch.ones(33), torch.zeros(33)), x)


def test_sums_of_many_16_bit_gradients_do_not_saturate():
    """Added up in bf16, 4096 ones are 256."""
    x = torch.ones(4096, 2, dtype=torch.bfloat16)
    scale, shift = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    scale_shift(x, scale, shift).sum().backward()
    assert scale.grad.tolist() == shift.grad.tolist() == [4096, 4096]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": torch.ones(4)}, "scale has shape"),
        ({"shift": torch.ones(2, 5)}, "shift has shape"),
        ({"index": torch.zeros(2, dtype=torch.int64)}, "scale has shape"),
        ({"index": torch.zeros(2)}, "index is of torch.float32"),
        ({"index": torch.zeros(3, dtype=torch.int64), "scale": torch.ones(1, 5), "shift": None}, "index has shape"),
        ({"scale": torch.ones(5, device="meta")}, "scale is on meta and x on cpu"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(change, words):
    call = {"x": torch.zeros(2, 3, 5), "scale": torch.ones(5), "shift": torch.ones(5)} | change
    with pytest.raises(ValueError, match=words):
        scale_shift(**call)
