"""What holds for every op: rules of torch.library, compilation, export, transforms, autocast, checkpointing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from hadamard_core.functional import Slices, low_rank_linear, scale_shift, scaled_linear

torch_ops = torch.ops.hadamard


def random(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Case:
    """An op as a function of x and what is trained, and the call of torch.library for the same."""

    def __init__(self, function, trained, op, inputs):
        self.function, self.trained, self.op, self.inputs = function, trained, op, inputs

    def arguments(self, dtype=torch.float64, batch=(2, 3)):
        return [t.to(dtype, copy=True).requires_grad_() for t in (random(*batch, 5), *self.trained)]


WEIGHT, BIAS = random(6, 5), random(6)
UP, DOWN = random(6, 4), random(4, 5)
VECTORS = (random(5), random(6), random(6) + 1)
INDEX = torch.tensor([1, 0])
STACKED = tuple(torch.stack([v, 2 * v]) for v in VECTORS)


def scaled(**kwargs):
    return lambda x, *vectors: scaled_linear(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype), *vectors, **kwargs)


def shifted(index):
    return lambda x, *vectors: scale_shift(x, *vectors, index)


CASES = {
    "scaled_linear weight": Case(
        scaled(compute="weight"),
        VECTORS,
        torch_ops.scaled_linear,
        lambda x, *v: (x, WEIGHT, BIAS, *v, None, [], 1, 1, True),
    ),
    "scaled_linear activation": Case(
        scaled(compute="activation"),
        VECTORS,
        torch_ops.scaled_linear,
        lambda x, *v: (x, WEIGHT, BIAS, *v, None, [], 1, 1, False),
    ),
    "scaled_linear slices": Case(
        scaled(slices=Slices((1,), 2, 3)),
        (random(1, 5), *VECTORS[1:]),
        torch_ops.scaled_linear,
        lambda x, *v: (x, WEIGHT, BIAS, *v, None, [1], 2, 3, True),
    ),
    "scaled_linear many": Case(
        scaled(index=INDEX),
        STACKED,
        torch_ops.scaled_linear,
        lambda x, *v: (x, WEIGHT, BIAS, *v, INDEX, [], 1, 1, False),
    ),
    "scale_shift": Case(scale_shift, (random(5), random(5) + 1), torch_ops.scale_shift, lambda x, *v: (x, *v, None)),
    "scale_shift many": Case(
        shifted(INDEX),
        (random(2, 5), random(2, 5) + 1),
        torch_ops.scale_shift,
        lambda x, *v: (x, *v, INDEX),
    ),
    "LoRA": Case(
        lambda x, down, up: low_rank_linear(x, WEIGHT.to(x.dtype), BIAS.to(x.dtype), down, up, 0.5),
        (DOWN, UP),
        torch_ops.low_rank_linear,
        lambda x, down, up: (x, WEIGHT, BIAS, down, up, None, None, None, 0.5, False),
    ),
    "VeRA": Case(
        lambda x, d, b: low_rank_linear(
            x, WEIGHT.to(x.dtype), None, DOWN.to(x.dtype), UP.to(x.dtype), 0.5, d, b, compute="low_rank"
        ),
        (random(4), random(6)),
        torch_ops.low_rank_linear,
        lambda x, d, b: (x, WEIGHT, None, DOWN, UP, d, b, None, 0.5, False),
    ),
    "VeRA composed": Case(
        lambda x, d, b: low_rank_linear(
            x, WEIGHT.to(x.dtype), None, DOWN.to(x.dtype), UP.to(x.dtype), 0.5, d, b, compute="compose"
        ),
        (random(4), random(6)),
        torch_ops.low_rank_linear,
        lambda x, d, b: (x, WEIGHT, None, DOWN, UP, d, b, None, 0.5, True),
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def value_and_gradients(function, args):
    y = function(*args)
    return [y, *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape)).sum(), args)]


def assert_all_close(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, **tolerance)


def test_passes_the_checks_of_torch_library(case):
    torch.library.opcheck(case.op.default, case.inputs(*case.arguments()))


def test_gradients_agree_with_differences(case):
    args = case.arguments()
    assert torch.autograd.gradcheck(case.function, args)


def test_the_op_of_torch_library_is_the_function(case):
    args = case.arguments()

    def op(*args):
        found = case.op(*case.inputs(*args))
        return found[0] if isinstance(found, (tuple, list)) else found

    assert_all_close(value_and_gradients(op, args), value_and_gradients(case.function, args))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(case, dynamic):
    args = case.arguments(torch.float32)
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_all_close(value_and_gradients(compiled, args), value_and_gradients(case.function, args))


@pytest.mark.parametrize("strict", [False, True])
def test_exports(case, strict):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.trained = nn.ParameterList(case.arguments(torch.float32)[1:])

        def forward(self, x):
            return case.function(x, *self.trained)

    model, x = Model(), random(2, 3, 5, dtype=torch.float32)
    exported = torch.export.export(model, (x,), strict=strict)
    assert any("hadamard" in str(node.target) for node in exported.graph.nodes)
    assert_close(exported.module()(x), model(x))


def test_second_derivative_is_refused_with_a_sentence(case):
    x, *rest = case.arguments()
    (gradient,) = torch.autograd.grad(case.function(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        torch.autograd.grad(gradient.sum(), x)


def test_gradients_of_torch_func(case):
    args = [t.detach() for t in case.arguments()]
    numbers = tuple(range(len(args)))

    def loss(*args):
        return case.function(*args).sin().sum()

    ours = torch.func.grad(loss, numbers)(*args)
    leaves = [t.clone().requires_grad_() for t in args]
    assert_all_close(ours, torch.autograd.grad(loss(*leaves), leaves))


def test_gradients_of_each_sample(case):
    """torch.func.vmap over torch.func.grad."""
    x, *trained = (t.detach() for t in case.arguments())
    batch = torch.stack([x, x + 1, 2 * x])
    numbers = tuple(range(1, len(trained) + 1))

    def loss(*args):
        return case.function(*args).sin().sum()

    ours = torch.func.vmap(torch.func.grad(loss, numbers), (0, *[None] * len(trained)))(batch, *trained)
    for number, one in enumerate(batch):
        leaves = [t.clone().requires_grad_() for t in trained]
        assert_all_close([o[number] for o in ours], torch.autograd.grad(loss(one, *leaves), leaves))


def test_second_derivative_in_torch_func_is_refused_too(case):
    args = [t.detach() for t in case.arguments()]

    def loss(x):
        return case.function(x, *args[1:]).sin().sum()

    with pytest.raises(NotImplementedError, match="has no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(args[0])


def test_autocast_takes_its_dtype(case):
    x, *trained = case.arguments(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = case.function(x, *trained)
    assert y.dtype == torch.bfloat16
    exact = case.function(x, *trained)
    assert (y.float() - exact).norm() <= 2e-2 * exact.norm()
    for gradient, own in zip(torch.autograd.grad(y.sum(), [x, *trained]), [x, *trained], strict=True):
        assert gradient.dtype == own.dtype


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(case, reentrant):
    args, again = case.arguments(), case.arguments()
    case.function(*args).sin().sum().backward()
    checkpoint(case.function, *again, use_reentrant=reentrant).sin().sum().backward()
    assert_all_close([t.grad for t in again], [t.grad for t in args])


def test_results_and_gradients_are_laid_out_as_the_shape_rules_say(case):
    """What torch.compile relies on, with inputs of other strides."""
    x, *trained = case.arguments()
    x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    weights = [t if t.dim() == 1 else t.detach().t().contiguous().t().requires_grad_() for t in trained]
    found = case.op(*case.inputs(x, *weights))
    y = found[0] if isinstance(found, (tuple, list)) else found
    grad = torch.ones_like(y).transpose(0, 1).contiguous().transpose(0, 1)
    for tensor in (y, *torch.autograd.grad(y, [x, *weights], grad)):
        assert tensor.is_contiguous()


def test_meta_tensors_have_the_shape_of_the_result(case):
    inputs = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in case.inputs(*case.arguments())]
    found = case.op(*inputs)
    y = found[0] if isinstance(found, (tuple, list)) else found
    assert y.shape == case.function(*case.arguments()).shape
