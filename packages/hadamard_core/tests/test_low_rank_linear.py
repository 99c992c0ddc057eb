"""low_rank_linear is LoRA's and VeRA's formula in every way it is computed, and so are its gradients."""

import itertools

import pytest
import torch
from torch.nn.functional import dropout, linear
from torch.testing import assert_close

from hadamard_core.functional import low_rank_linear

NAMES = ("x", "weight", "bias", "down", "up", "scale_down", "scale_up")
VECTORS = ("x", "bias", "scale_down", "scale_up")
SCALING = 0.7
# Relative to the norm: products are rounded to the dtype, and the update is added to a rounded result.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def formula(x, weight, bias, down, up, scale_down, scale_up, projected=None):
    z = linear(x, down) if projected is None else projected
    z = linear(z if scale_down is None else z * scale_down, up)
    z = z if scale_up is None else z * scale_up
    y = linear(x, weight) + SCALING * z
    return y if bias is None else y + bias


def arguments(shape=(3, 5), out=7, rank=4, dtype=torch.float64, present=NAMES, trained=NAMES):
    generator = torch.Generator().manual_seed(0)
    features = shape[-1]
    shapes = (shape, (out, features), (out,), (rank, features), (out, rank), (rank,), (out,))
    return [
        torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(name in trained)
        if name in present
        else None
        for name, size in zip(NAMES, shapes, strict=True)
    ]


def ours(x, weight, bias, down, up, scale_down, scale_up, **kwargs):
    return low_rank_linear(x, weight, bias, down, up, SCALING, scale_down, scale_up, **kwargs)


def check(args, grad, projected=None, expected_projected=None, **kwargs):
    trained = [t for t in args if t is not None and t.requires_grad]
    y, expected = ours(*args, projected=projected, **kwargs), formula(*args, projected=expected_projected)
    assert_close(y, expected)
    theirs = torch.autograd.grad(expected, trained, grad, allow_unused=True)
    for a, b in zip(torch.autograd.grad(y, trained, grad, allow_unused=True), theirs, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "absent", [names for k in range(4) for names in itertools.combinations(("bias", "scale_down", "scale_up"), k)]
)
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 6, 5), (0, 5), (1, 5)], ids=str)
@pytest.mark.parametrize("way", ["all trained", "low_rank", "compose"])
def test_value_and_gradients(shape, absent, way):
    present = [name for name in NAMES if name not in absent]
    args = arguments(shape, present=present, trained=NAMES if way == "all trained" else VECTORS)
    grad = torch.randn(*shape[:-1], 7, dtype=torch.float64)
    check(args, grad, compute="low_rank" if way == "all trained" else way)


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("trained", [n for k in (1, 2) for n in itertools.combinations(NAMES, k)], ids=" ".join)
def test_any_selection_of_what_is_trained(trained, tokens):
    check(arguments((tokens, 5), trained=trained), torch.randn(tokens, 7, dtype=torch.float64))


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("trained", [("x", "down"), VECTORS, NAMES], ids=" ".join)
def test_a_projection_that_is_given_takes_the_place_of_x_times_down(trained, tokens):
    """As after dropout: its gradient goes on to where it came from."""
    args = arguments((tokens, 5), trained=trained)
    x, down = args[0], args[3]

    def project():
        torch.manual_seed(1)
        return linear(dropout(x, 0.4), down)

    check(args, torch.randn(tokens, 7, dtype=torch.float64), projected=project(), expected_projected=project())


def test_a_projection_that_is_given_saves_composing_to_compute_it():
    args = arguments((9, 5), trained=VECTORS)
    projected = linear(args[0], args[3])
    check(args, torch.randn(9, 7, dtype=torch.float64), compute="compose", projected=projected)


@pytest.mark.parametrize("scales", [(), ("scale_down", "scale_up")], ids=["LoRA", "VeRA"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 32), (3, 37)], ids=str)
def test_fp32_adapters_on_a_base_of_any_dtype(shape, dtype, scales):
    absent = {"scale_down", "scale_up"} - set(scales)
    trained = ("x", *scales) if scales else ("x", "down", "up")
    args = arguments(shape, 24, present=set(NAMES) - absent, trained=trained, dtype=torch.float32)
    low = [t if t is None or i > 2 else t.detach().to(dtype).requires_grad_(i == 0) for i, t in enumerate(args)]
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in low]
    y, expected = ours(*low), formula(*exact)
    grad = torch.randn(*shape[:-1], 24, dtype=torch.float64).to(dtype)
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= TOLERANCES[dtype] * expected.norm()
    own = [t for t in low if t is not None and t.requires_grad]
    theirs = torch.autograd.grad(expected, [t for t in exact if t is not None and t.requires_grad], grad.double())
    for t, a, b in zip(own, torch.autograd.grad(y, own, grad), theirs, strict=True):
        assert a.dtype == t.dtype
        assert (a.double() - b).norm() <= TOLERANCES[dtype] * b.norm()


def test_16_bits_are_never_composed_by_themselves():
    """In bf16 the composed weight would lose an update of a thousandth."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 8).bfloat16(), torch.ones(8, 8).bfloat16()
    down, up = torch.randn(2, 8), torch.randn(8, 2) * 1e-4
    plain, adapted = linear(x, weight), low_rank_linear(x, weight, None, down, up, 1.0, torch.ones(2), torch.ones(8))
    update = linear(linear(x.float(), down), up)
    assert ((adapted.float() - plain.float()).norm() - update.norm()).abs() < update.norm()
    assert not torch.equal(adapted, plain)


@pytest.mark.parametrize("rank", [2, 8])
def test_lora_keeps_only_x_and_its_projection(rank):
    x, weight, bias, down, up, _, _ = arguments((40, 50), 60, rank, trained=("x", "down", "up"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank_linear(x, weight, bias, down, up, SCALING)
    given = {t.untyped_storage().data_ptr() for t in (x, weight, bias, down, up)}
    assert sum(t.numel() for t in kept if t.untyped_storage().data_ptr() not in given) == 40 * rank


def test_strides_do_not_matter():
    args = arguments((6, 5))
    with torch.no_grad():
        args[0] = torch.stack([args[0], args[0]], 1).flatten(0, 1)[::2].requires_grad_()
        args[1] = args[1].t().contiguous().t().requires_grad_()
    check(args, torch.randn(7, 6, dtype=torch.float64).t())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compute": "fast"}, "compute is 'fast'"),
        ({"compute": "compose"}, "compute is 'compose', but"),
        ({"x": torch.zeros(2, 3)}, "x has 3 features"),
        ({"up": torch.ones(7, 3)}, "up has shape"),
        ({"scale_down": torch.ones(7)}, "scale_down has shape"),
        ({"scale_up": torch.ones(4)}, "scale_up has shape"),
        ({"projected": torch.ones(2, 4)}, "projected has shape"),
        ({"down": torch.ones(4, 5, device="meta")}, "down is on meta and x on cpu"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(change, words):
    call = dict(zip(NAMES, arguments(), strict=True)) | change
    with pytest.raises(ValueError, match=words):
        low_rank_linear(**call)
