"""How an op is called: as plain PyTorch code where nothing watches, as an op of ``torch.library`` where something does.

``torch.compile``, ``torch.export`` and ``torch.func`` see one node with a shape rule, an autograd rule and a batching
rule. A plain eager call goes past the dispatcher, through an ``autograd.Function`` over the same code: on a small layer
the dispatcher's way in Python costs as much as the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Operator:
    """An op with its gradients, and the way a call takes.

    Args:
        name: what messages call it.
        forward_op: the op of ``torch.library``.
        backward_op: the op of its gradients.
        forward: what ``forward_op`` computes; the first of its results is the op's.
        gradients: what ``backward_op`` computes: the gradients of the first inputs, from the gradient of the result,
            what was saved, and which are needed; None for one that is not (of the op, an empty tensor).
        save: ``(ctx, inputs, outputs)``: saves for ``gradients`` the tensors, and in ``ctx.how`` whatever else.
        differentiable: how many of the first inputs have a gradient.
    """

    def __init__(
        self,
        name: str,
        forward_op: torch.library.CustomOpDef,
        backward_op: torch.library.CustomOpDef,
        forward: Callable,
        gradients: Callable,
        save: Callable,
        differentiable: int,
    ) -> None:
        self._op, self._forward = forward_op, forward

        def run_backward(grad: Tensor, *inputs: Any) -> list[Tensor | None]:
            needs = inputs[-1]
            if is_plain(grad) and not torch.is_grad_enabled():
                return gradients(grad, *inputs)
            run = BackwardOfTransforms.apply if _transforms_are_active() else backward_op
            return [one if need else None for one, need in zip(run(grad, *inputs), needs, strict=True)]

        def backward(ctx, grad: Tensor, *_: Any):
            needs = ctx.needs_input_grad
            grads = run_backward(grad, *ctx.saved_tensors, *ctx.how, list(needs[:differentiable]))
            return *grads, *[None] * (len(needs) - differentiable)

        def refuse(ctx, *grads):
            raise NotImplementedError(
                f"{name} has no second derivative; compute its gradients without create_graph, or write the function "
                "in plain tensor operations where a second derivative is needed."
            )

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                outputs = forward(*inputs)
                save(ctx, inputs, outputs)
                return outputs[0] if isinstance(outputs, tuple) else outputs

        class OfTransforms(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*inputs):
                return forward_op(*inputs)

            setup_context = staticmethod(save)

        class BackwardOfTransforms(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*inputs):
                return tuple(backward_op(*inputs))

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

        Eager.backward = OfTransforms.backward = staticmethod(backward)
        BackwardOfTransforms.backward = staticmethod(refuse)
        self._eager, self._of_transforms = Eager.apply, OfTransforms.apply
        self.backward = run_backward
        """``backward_op``, called as plain code where nothing watches; None for a gradient that is not needed."""
        forward_op.register_autograd(backward, setup_context=save)
        backward_op.register_autograd(refuse)
        for op in (forward_op, backward_op):
            op.register_vmap(_one_after_another(op))

    def __call__(self, *inputs: Any) -> Tensor:
        """Returns the op's result; the first input is a tensor."""
        if is_plain(inputs[0]):
            outputs = (self._eager if torch.is_grad_enabled() else self._forward)(*inputs)
        else:
            outputs = (self._of_transforms if _transforms_are_active() else self._op)(*inputs)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary tensor of an ordinary call: not traced, not of ``torch.func``, not a subclass."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _transforms_are_active() -> bool:
    """Whether this is a call inside ``torch.func``."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _one_after_another(op: Callable) -> Callable:
    """The batching rule of ``torch.func.vmap``: a call for each, results side by side."""

    def rule(info, in_dims, *inputs: Any):
        results = [
            op(*(one.select(dim, i) if isinstance(dim, int) else one for one, dim in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(each) for each in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])(0 for _ in stacked)

    return rule


def tensors_only(grads: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Gradients as an op returns them: an empty tensor for None."""
    return [like.new_empty(0) if one is None else one for one in grads]


def fake_gradients(grad: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """Their shapes: each gradient is laid out as a contiguous tensor of the shape and dtype of its input."""
    return [
        torch.empty_like(one, memory_format=torch.contiguous_format) if need else grad.new_empty(0)
        for one, need in zip(inputs, needs, strict=True)
    ]


def adapters_of(*matrices: Tensor | None) -> int:
    """The number of adapters that matrices with a row for each have; 1 if all are None."""
    return next((len(matrix) for matrix in matrices if matrix is not None), 1)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``tensor`` in this dtype, without the call that ``Tensor.to`` is where there is nothing to do."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    """What products with ``x`` are computed in: its dtype, or autocast's."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def cast_for_autocast(x: Tensor) -> Tensor:
    """``x`` in :func:`working_dtype`."""
    return cast(x, working_dtype(x))


def check_devices(x: Tensor, **named: Tensor | None) -> None:
    """Raises ValueError if a tensor is on another device than ``x``.

    Without this, a tensor on the meta device would make the result one of uninitialised memory.
    """
    for name, tensor in named.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; move the model or its input first.")


def check_shape(name: str, tensor: Tensor | None, shape: Sequence[int], owner: str) -> None:
    """Raises ValueError if ``tensor`` is given and has another shape."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {owner} needs {tuple(shape)}.")


def check_index(index: Tensor | None, x: Tensor) -> None:
    """Raises ValueError if ``index`` does not name an adapter for each of the first dimensions of ``x``."""
    if index is None:
        return
    if index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index is of {index.dtype}; it holds numbers of adapters, as integers.")
    if not 0 < index.dim() < x.dim() or index.shape != x.shape[: index.dim()]:
        raise ValueError(
            f"index has shape {tuple(index.shape)}; of x with shape {tuple(x.shape)} it needs the first dimensions, "
            f"such as {tuple(x.shape[:1])}."
        )


def rows(x: Tensor) -> Tensor:
    """(..., features) as (tokens, features)."""
    return x if x.dim() == 2 else x.flatten(0, -2) if x.dim() > 1 else x[None]


def tokens_of(x: Tensor) -> int:
    """The number of tokens in (..., features)."""
    return math.prod(x.shape[:-1])
