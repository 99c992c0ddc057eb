"""derived_scaled_linear is scaled_linear of vectors that autograd would differentiate, and keeps parameters only."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from hadamard_core.accounting import bytes_saved_for_backward
from hadamard_core.functional import derived_scaled_linear, scaled_linear


class Exponentials:
    """scale_in = exp(a), scale_out = exp(b) * c, shift = d."""

    sources = ((0,), (1, 2), (3,))

    def vectors(self, a, b, c, d):
        exponential = b.exp()
        return (a.exp(), exponential if c is None else exponential * c, d), exponential

    def gradients(self, of_vectors, exponential, a, b, c, d):
        of_in, of_out, of_shift = of_vectors
        of_b = of_c = None
        if of_out is not None:
            of_b = of_out * exponential * (1 if c is None else c)
            of_c = None if c is None else of_out * exponential
        return None if of_in is None else of_in * a.exp(), of_b, of_c, of_shift


RULE = Exponentials()


def arguments(shape=(2, 3, 5), out=7, dtype=torch.float64, present=(1, 1)):
    random = torch.Generator().manual_seed(0)
    sizes = [shape, (out, shape[-1]), (out,), (shape[-1],), (out,), (out,), (out,)]
    tensors = [torch.randn(size, generator=random, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]
    tensors[5:] = [tensor if here else None for tensor, here in zip(tensors[5:], present, strict=True)]
    return tensors


def derived(x, weight, bias, *parameters, compute="auto"):
    return derived_scaled_linear(x, weight, bias, RULE, parameters, compute)


def by_autograd(x, weight, bias, *parameters, compute="auto"):
    return scaled_linear(x, weight, bias, *RULE.vectors(*parameters)[0], compute=compute)


def both(tensors, **options):
    """Value and gradients of one and of the other."""
    trained = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    for function in (derived, by_autograd):
        y = function(*tensors, **options)
        yield y, *torch.autograd.grad(y, trained, torch.ones_like(y).cumsum(-1))


@pytest.mark.parametrize("compute", ["weight", "activation", "auto"])
@pytest.mark.parametrize("present", list(itertools.product([0, 1], repeat=2)), ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 5), (5,), (0, 5)], ids=str)
def test_value_and_all_gradients(shape, present, compute):
    for found, expected in zip(*both(arguments(shape, present=present), compute=compute), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("compute", ["weight", "activation"])
@pytest.mark.parametrize("trained", [(place,) for place in range(7)] + [(0, 3), (3, 5), (4, 6)], ids=str)
def test_any_selection_of_what_is_trained(trained, compute):
    tensors = [each.detach().requires_grad_(place in trained) for place, each in enumerate(arguments())]
    for found, expected in zip(*both(tensors, compute=compute), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("compute", ["weight", "activation"])
def test_keeps_the_input_and_the_result_only(compute):
    tensors = arguments((16, 32), 64, torch.float32)
    _, weight, *rest = tensors
    weight.requires_grad_(False)
    saved = bytes_saved_for_backward(lambda: derived(*tensors, compute=compute).sum(), [weight, *rest])
    assert saved == 4 * (16 * 32 + 16 * 64)
    vectors_too = bytes_saved_for_backward(lambda: by_autograd(*tensors, compute=compute).sum(), [weight, *rest])
    assert vectors_too >= saved + 4 * (32 + 64)


def test_keeps_nothing_where_nothing_reads_it():
    tensors = [each.detach().requires_grad_(place in (0, 6)) for place, each in enumerate(arguments())]
    _, *others = tensors
    assert bytes_saved_for_backward(lambda: derived(*tensors).sum(), others) == 0


def test_first_derivatives_of_a_graph_and_no_second():
    tensors = arguments()
    y = derived(*tensors)
    first = torch.autograd.grad(y.sum(), tensors, create_graph=True)
    for found, expected in zip(first, torch.autograd.grad(by_autograd(*tensors).sum(), tensors), strict=True):
        assert_close(found, expected)
    with pytest.raises(NotImplementedError, match="scaled_linear has no second derivative"):
        first[3].sum().backward()


def test_under_autocast_it_returns_the_lower_dtype():
    tensors = arguments(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = both(tensors)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_transforms_and_compilation_take_the_op_itself():
    tensors = arguments()
    x, *rest = (each.detach() for each in tensors)
    batched = torch.func.vmap(lambda row: derived(row, *rest))(x)
    assert_close(batched, by_autograd(x, *rest))
    grads = torch.func.grad(lambda a: derived(x, *rest[:2], a, *rest[3:]).sum())(rest[2])
    *_, expected = torch.autograd.grad(by_autograd(*tensors).sum(), tensors[3:4])
    assert_close(grads, expected)
    compiled = torch.compile(derived, fullgraph=True, backend="aot_eager")
    trained = [each.detach().requires_grad_() for each in tensors]
    y = compiled(*trained)
    assert_close(y, by_autograd(*trained))
    for found, own in zip(torch.autograd.grad(y.sum(), trained), arguments(), strict=True):
        assert found.shape == own.shape


def test_without_gradients():
    with torch.no_grad():
        tensors = arguments()
        assert_close(derived(*tensors), by_autograd(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.randn(3, 4, dtype=torch.float64)}, "x has 4 features; weight takes 5"),
        ({3: torch.randn(4, dtype=torch.float64)}, r"scale_in has shape \(4,\)"),
        ({6: torch.randn(3, dtype=torch.float64)}, r"shift has shape \(3,\)"),
        ({6: torch.empty(7, dtype=torch.float64, device="meta")}, "shift is on meta"),
    ],
)
def test_arguments_that_do_not_fit(change, words):
    tensors = [change.get(place, each) for place, each in enumerate(arguments())]
    with pytest.raises(ValueError, match=words):
        derived(*tensors)
    with pytest.raises(ValueError, match="compute is 'fast'"):
        derived(*arguments(), compute="fast")
