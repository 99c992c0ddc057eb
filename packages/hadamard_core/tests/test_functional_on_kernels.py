"""The ops with their passes in Triton: as the formula in float64, in value and gradients.

On a CPU through Triton's interpreter, on CUDA where one is there.
"""

import pytest
import torch
from torch.nn.functional import linear

from hadamard_core.functional import Slices, low_rank_linear, scale_shift, scaled_linear

pytest.importorskip("triton")

# Relative to the norm: of a result rounded to the dtype after a product of 24 to 40 terms.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def arguments(dtype, device, shape, out, adapters=(), parts=(), bias=1.0):
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(*size, generator=generator)

    features = shape[-1]
    frozen = {"weight": random(out, features) / features**0.5, "bias": bias * random(out)}
    trained = {
        "scale_in": 1 + 0.1 * random(*adapters, *parts, features),
        "scale_out": 1 + 0.1 * random(*adapters, out),
        "shift": random(*adapters, out),
    }
    low = {name: t.to(device, dtype) for name, t in {"x": random(*shape), **frozen}.items()}
    low["x"].requires_grad_()
    return low | {name: t.to(device).requires_grad_() for name, t in trained.items()}


def compare(function, formula, args, grad):
    """Value and all gradients, against the formula in float64 on the same rounded values."""
    exact = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in args.items()}
    trained = [name for name, t in args.items() if t.requires_grad]
    y, expected = function(**args), formula(**exact)
    ours = torch.autograd.grad(y, [args[name] for name in trained], grad)
    theirs = torch.autograd.grad(expected, [exact[name] for name in trained], grad.double())
    tolerance = TOLERANCES[args["x"].dtype]
    for name, a, b in zip(["y", *trained], [y, *ours], [expected, *theirs], strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-12, name


def scaled(x, weight, bias, scale_in, scale_out, shift):
    return linear(x, weight * scale_in) * scale_out + bias + shift


@pytest.mark.parametrize("compute", ["weight", "activation"])
@pytest.mark.parametrize("bias", [1.0, 30.0], ids=["bias", "large bias"])
@pytest.mark.parametrize("shape", [(2, 16, 32), (3, 37)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_scaled_linear(kernel_device, dtype, shape, bias, compute):
    args = arguments(dtype, kernel_device, shape, 24, bias=bias)
    grad = torch.randn(*shape[:-1], 24).to(kernel_device, dtype)
    compare(lambda **kwargs: scaled_linear(**kwargs, compute=compute), scaled, args, grad)


@pytest.mark.parametrize("slices", [Slices((0, 2), 3), Slices((1,), 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_slices_of_a_fused_projection(kernel_device, dtype, slices):
    args = arguments(dtype, kernel_device, (2, 9, 32), 24, parts=(len(slices.adapted),))
    size = 24 // (slices.parts * slices.groups)
    parts = torch.arange(slices.parts).repeat_interleave(size).repeat(slices.groups).to(kernel_device)

    def formula(x, weight, bias, scale_in, scale_out, shift):
        rows = torch.ones_like(weight)
        for part, scale in zip(slices.adapted, scale_in, strict=True):
            rows = torch.where((parts == part)[:, None], scale, rows)
        return scaled(x, weight, bias, rows, scale_out, shift)

    grad = torch.randn(2, 9, 24).to(kernel_device, dtype)
    compare(lambda **kwargs: scaled_linear(**kwargs, slices=slices), formula, args, grad)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_many_adapters_in_one_batch(kernel_device, dtype):
    index = torch.tensor([2, 0, 2], device=kernel_device)
    args = arguments(dtype, kernel_device, (3, 5, 32), 24, adapters=(3,))

    def formula(x, weight, bias, scale_in, scale_out, shift):
        scale_in, scale_out, shift = (v[index][:, None] for v in (scale_in, scale_out, shift))
        return linear(x * scale_in, weight) * scale_out + bias + shift

    grad = torch.randn(3, 5, 24).to(kernel_device, dtype)
    compare(lambda **kwargs: scaled_linear(**kwargs, index=index), formula, args, grad)


@pytest.mark.parametrize("many", [False, True], ids=["one adapter", "an adapter a token"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_scale_shift(kernel_device, dtype, many):
    index = torch.tensor([[2, 0, 2], [1, 1, 0]], device=kernel_device) if many else None
    args = arguments(dtype, kernel_device, (2, 3, 24), 24, adapters=(3,) if many else ())
    args = {"x": args["x"], "scale": args["scale_out"], "shift": args["shift"]}

    def formula(x, scale, shift):
        return x * scale + shift if index is None else x * scale[index] + shift[index]

    grad = torch.randn(2, 3, 24).to(kernel_device, dtype)
    compare(lambda **kwargs: scale_shift(**kwargs, index=index), formula, args, grad)


@pytest.mark.parametrize("compute", ["low_rank", "compose"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_low_rank_linear(kernel_device, dtype, compute):
    args = arguments(dtype, kernel_device, (3, 16, 32), 24)
    low = {"down": torch.randn(8, 32), "up": torch.randn(24, 8)}
    vectors = {"scale_down": torch.randn(8), "scale_up": torch.randn(24)}
    args = {name: args[name] for name in ("x", "weight", "bias")}
    args |= {name: t.to(kernel_device) for name, t in low.items()}
    args |= {name: t.to(kernel_device).requires_grad_() for name, t in vectors.items()}

    def formula(x, weight, bias, down, up, scale_down, scale_up):
        return linear(x, weight, bias) + 0.5 * linear(linear(x, down) * scale_down, up) * scale_up

    grad = torch.randn(3, 16, 24).to(kernel_device, dtype)
    compare(lambda **kwargs: low_rank_linear(**kwargs, scaling=0.5, compute=compute), formula, args, grad)
