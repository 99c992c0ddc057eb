"""``y = x * scale + shift``: (IA)^3's scales, SSF, and the Hadamard adapter on activations."""

from __future__ import annotations

import torch
from torch import Tensor

from hadamard_core.functional import primitives
from hadamard_core.functional.operators import (
    Operator,
    adapters_of,
    cast,
    cast_for_autocast,
    check_devices,
    check_index,
    check_shape,
    fake_gradients,
    rows,
    tensors_only,
)


def scale_shift(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    """Returns ``x * scale + shift``, in one pass forward and one backward.

    Multiplied, added and, for the gradients, summed in fp32 at least; under autocast, ``x`` is cast to its dtype. A
    second derivative is refused with a sentence.

    Args:
        x: (..., features), floating point.
        scale: (features,), or (adapters, features) together with ``index``; None for ones.
        shift: as ``scale``; None for zeros.
        index: integers that say which adapter applies where, of the shape that ``x`` begins with: (batch,) for one
            adapter a sample, (batch, length) for one a token.

    Returns:
        (..., features), in the dtype of ``x``.

    Raises:
        ValueError: shapes do not fit, or tensors are on different devices.
    """
    check_index(index, x)
    adapters = () if index is None else (adapters_of(scale, shift),)
    for name, vector in (("scale", scale), ("shift", shift)):
        check_shape(name, vector, (*adapters, x.shape[-1]), "x")
    check_devices(x, scale=scale, shift=shift, index=index)
    x = cast_for_autocast(x)
    if scale is None and shift is None:
        return x
    return _operator(x, scale, shift, index)


def _forward(x: Tensor, scale: Tensor | None, shift: Tensor | None, index: Tensor | None) -> Tensor:
    index = None if index is None else index.flatten()
    return primitives.scale_shift(rows(x), scale, shift, index).view(x.shape).contiguous()


def _gradients(
    grad: Tensor, x: Tensor | None, scale: Tensor | None, shift: Tensor | None, index: Tensor | None, needs: list[bool]
) -> list[Tensor | None]:
    """The gradients of x, scale and shift; None for one that is not needed."""
    needs_x, needs_scale, needs_shift = needs
    found = primitives.scale_shift_backward(
        rows(grad),
        rows(x) if needs_scale else None,
        scale,
        None if index is None else index.flatten(),
        needs_input=needs_x,
        needs_scale=needs_scale,
        needs_shift=needs_shift,
        adapters=adapters_of(scale, shift),
    )
    dtypes = (grad.dtype, None if scale is None else scale.dtype, None if shift is None else shift.dtype)
    of_x, of_scale, of_shift = map(cast, found, dtypes)
    return [of_x.view(grad.shape).contiguous() if needs_x else None, of_scale, of_shift]


_op = torch.library.custom_op("hadamard::scale_shift", _forward, mutates_args=())


@_op.register_fake
def _(x, scale, shift, index):
    return x.new_empty(x.shape)


@torch.library.custom_op("hadamard::scale_shift_backward", mutates_args=())
def _backward_op(
    grad: Tensor, x: Tensor | None, scale: Tensor | None, shift: Tensor | None, index: Tensor | None, needs: list[bool]
) -> list[Tensor]:
    of_x, *of_vectors = _gradients(grad, x, scale, shift, index, needs)
    return tensors_only([of_x.clone() if needs[0] and scale is None else of_x, *of_vectors], grad)


@_backward_op.register_fake
def _(grad, x, scale, shift, index, needs):
    return fake_gradients(grad, (grad, scale, shift), needs)


def _save(ctx, inputs, output) -> None:
    x, scale, shift, index = inputs
    ctx.how = ()
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, scale, shift, index)


_operator = Operator("scale_shift", _op, _backward_op, _forward, _gradients, _save, differentiable=3)
