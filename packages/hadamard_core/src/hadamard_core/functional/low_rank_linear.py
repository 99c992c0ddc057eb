"""``low_rank_linear``: a frozen projection with a low-rank update, LoRA's or VeRA's.

::

    LoRA:  x W^T + bias + s (x A^T) B^T                              (Hu et al. 2021, arXiv 2106.09685)
    VeRA:  x W^T + bias + s b * ((d * (x A^T)) B^T)                  (Kopiczko et al. 2023, arXiv 2310.11454)

with A of shape (r, in), ``down``, and B (out, r), ``up``; VeRA trains d (r,), ``scale_down``, and b (out,),
``scale_up``, over A and B that are random, frozen and shared. In the ``"low_rank"`` way the update is added by the
product itself onto the frozen layer's result, with s and d folded into the smaller factors, so that no tensor of the
size of the result is written for it (but the update before b, where b is trained). With z = d * (x A^T) and v the
gradient of z B^T, which is s b * g::

    grad B = v^T z      grad d = colsum((v B) * (x A^T))      grad b = s colsum(g * (z B^T))
    grad A = (d * (v B))^T x      grad x = g W + (d * (v B)) A

``"compose"`` is for frozen A and B and more tokens than features. It builds W' = W + s b * B (d * A) once: half of the
products of the update at as many tokens as features. With M = g^T (x A^T), (out, r)::

    grad d = s colsum(b * B * M)      grad b = s rowsum(d * B * M)      grad x = g W'

It is for fp32 and above: in 16 bits, W' would round away what is small beside W.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from hadamard_core.functional.operators import (
    Operator,
    cast,
    cast_for_autocast,
    check_devices,
    check_shape,
    fake_gradients,
    rows,
    tensors_only,
    tokens_of,
)
from hadamard_core.functional.primitives import (
    accumulation_dtype,
    scale_shift,
    scale_shift_backward,
    scaled_weight,
)

LowRankCompute = Literal["auto", "low_rank", "compose"]
"""How :func:`low_rank_linear` is computed. The result is the same."""


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scaling: float = 1.0,
    scale_down: Tensor | None = None,
    scale_up: Tensor | None = None,
    *,
    projected: Tensor | None = None,
    compute: LowRankCompute = "auto",
) -> Tensor:
    """Returns ``x weight^T + bias + scaling * scale_up * ((scale_down * (x down^T)) up^T)``.

    Under autocast, ``x`` is cast to autocast's dtype. The products are computed in the dtype of ``x``, with scales
    multiplied in fp32 and cast once. A second derivative is refused with a sentence.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), any strides.
        bias: (out_features,).
        down: (r, in_features), A.
        up: (out_features, r), B.
        scaling: LoRA's alpha / r.
        scale_down: (r,), VeRA's d.
        scale_up: (out_features,), VeRA's b.
        projected: (..., r), what stands for ``x down^T``: that of ``x`` after dropout, or one that layers with the
            same input share. It gets a gradient, and ``down`` none. In the compose way it has to be ``x down^T``
            itself, taken as a constant, which only saves to compute it again.
        compute: ``"low_rank"``, ``"compose"`` or ``"auto"``, see the module's docstring. ``"auto"`` composes only
            without ``projected``.

    Returns:
        (..., out_features), in the dtype of ``x`` (autocast's under autocast).

    Raises:
        ValueError: shapes do not fit, tensors are on different devices, ``compute`` is unknown, or it is ``"compose"``
            where a weight of the update is trained.
    """
    out_features, in_features = weight.shape
    if compute not in get_args(LowRankCompute):
        raise ValueError(f"compute is {compute!r}; it must be one of {', '.join(map(repr, get_args(LowRankCompute)))}.")
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} features; weight takes {in_features}.")
    rank = down.shape[0]
    check_shape("down", down, (rank, in_features), "weight")
    check_shape("up", up, (out_features, rank), "down and weight")
    check_shape("bias", bias, (out_features,), "weight")
    check_shape("scale_down", scale_down, (rank,), "down")
    check_shape("scale_up", scale_up, (out_features,), "weight")
    check_shape("projected", projected, (*x.shape[:-1], rank), "x and down")
    check_devices(
        x, weight=weight, bias=bias, down=down, up=up, scale_down=scale_down, scale_up=scale_up, projected=projected
    )
    x = cast_for_autocast(x)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (weight, down, up))
    if compute == "compose" and trains:
        raise ValueError("compute is 'compose', but weight, down or up is trained; use 'low_rank' or 'auto'.")
    if compute == "auto":
        composes = projected is None and not trains and prefers_composing(tokens_of(x), weight, x.dtype)
    else:
        composes = compute == "compose"
    if projected is not None:
        down, projected = down.detach(), projected.detach() if composes else projected
    return _operator(x, weight, bias, down, up, scale_down, scale_up, projected, scaling, composes)


def prefers_composing(tokens: int, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether composing the weight costs less than the update's products, and does not round the update away."""
    return dtype in (torch.float32, torch.float64) and tokens >= max(weight.shape)


def _folded(matrix: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, factor: float, dtype) -> Tensor:
    """``factor * diag(row_scale) matrix diag(column_scale)``, multiplied in at least fp32 and cast once.

    It may be scratch memory, which the next call writes over.
    """
    scaled = scaled_weight(matrix, column_scale, row_scale, accumulation_dtype(matrix.dtype), scratch=True)
    return cast(scaled if factor == 1 else scaled * factor, dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale_down: Tensor | None,
    scale_up: Tensor | None,
    projected: Tensor | None,
    scaling: float,
    composes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, ``x down^T`` (empty if it was given or is not needed), and what else the backward pass reads.

    That is the composed weight, or the update before ``scale_up``; an empty tensor where it is nothing.
    """
    x2, dtype, nothing = rows(x), x.dtype, x.new_empty(0)
    shape = (*x.shape[:-1], weight.shape[0])
    bias = cast(bias, dtype)
    if composes:
        factor = _folded(up, scale_up, scale_down, scaling, dtype)
        composed = torch.addmm(cast(weight, dtype), factor, cast(down, dtype))
        return linear(x2, composed, bias).view(shape), nothing, composed
    p = linear(x2, cast(down, dtype)) if projected is None else cast(rows(projected), dtype)
    y = linear(x2, cast(weight, dtype), bias)
    z = scale_shift(p, scale_down, None)
    p = p if projected is None else nothing
    if scale_up is None:
        return y.addmm_(z, cast(up, dtype).t(), alpha=scaling).view(shape), p, nothing
    update = z @ cast(up, dtype).t()
    return y.addcmul_(update, cast(scale_up, accumulation_dtype(dtype)), value=scaling).view(shape), p, update


def _gradients(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale_down: Tensor | None,
    scale_up: Tensor | None,
    projected: Tensor | None,
    kept: Tensor | None,
    scaling: float,
    composes: bool,
    own_projection: bool,
    needs: list[bool],
) -> list[Tensor | None]:
    """The gradients of x, weight, bias, down, up, scale_down, scale_up and projected; None where not needed.

    ``projected`` is ``x down^T`` where a gradient reads it; ``own_projection`` says that it was computed from x, so
    that its gradient goes on to x and down.
    """
    needs_x, needs_weight, needs_bias, needs_down, needs_up, needs_scale_down, needs_scale_up, needs_projected = needs
    g, dtype = rows(grad), grad.dtype
    x2, p = (None if t is None else cast(rows(t), dtype) for t in (x, projected))
    of_x = of_down = of_up = of_scale_down = of_scale_up = of_projected = None
    of_weight = g.t() @ x2 if needs_weight else None
    of_bias = g.sum(0, dtype=accumulation_dtype(dtype)) if needs_bias else None
    if composes:
        if needs_x:
            of_x = g @ kept
        if needs_scale_down or needs_scale_up:
            p = linear(x2, cast(down, dtype)) if p is None else p
            products = (g.t() @ p).mul_(cast(up, dtype))
            if needs_scale_down:
                by_rank = products.sum(0) if scale_up is None else cast(scale_up, dtype) @ products
                of_scale_down = scaling * by_rank
            if needs_scale_up:
                by_row = products.sum(1) if scale_down is None else products @ cast(scale_down, dtype)
                of_scale_up = scaling * by_row
    else:
        if needs_x:
            of_x = g @ cast(weight, dtype)
        flows_on = needs_down or needs_projected or needs_scale_down or (needs_x and own_projection)
        # s b can be multiplied into up or into g: into the smaller, unless both are needed.
        folds = scale_up is None or (len(g) >= up.shape[1] and not needs_up)
        v = g
        if scale_up is not None and (needs_scale_up or not folds):
            v, of_scale_up, _ = scale_shift_backward(
                g,
                kept,
                scale_up,
                needs_input=not folds and (flows_on or needs_up),
                needs_scale=needs_scale_up,
                needs_shift=False,
            )
            of_scale_up = None if of_scale_up is None else of_scale_up * scaling
        if needs_up:
            of_up = (scale_shift(p, scale_down, None).t() @ v).t().mul(scaling).contiguous()
        if flows_on:
            factor = _folded(up, scale_up if folds else None, None, scaling, dtype)
            of_p, of_scale_down, _ = scale_shift_backward(
                (g if folds else v) @ factor,
                p,
                scale_down,
                needs_input=needs_down or needs_projected or (needs_x and own_projection),
                needs_scale=needs_scale_down,
                needs_shift=False,
                overwrite=True,
            )
            if needs_projected:
                of_projected = of_p.view(*grad.shape[:-1], -1)
            if needs_down:
                of_down = of_p.t() @ x2
            if needs_x and own_projection:
                of_x.addmm_(of_p, cast(down, dtype))
    found = (
        of_x if of_x is None else of_x.view(*grad.shape[:-1], weight.shape[1]),
        of_weight,
        of_bias,
        of_down,
        of_up,
        of_scale_down,
        of_scale_up,
        of_projected,
    )
    like = (None, weight, bias, down, up, scale_down, scale_up, projected)
    return [
        cast(one, dtype if own is None else own.dtype) if need else None
        for one, own, need in zip(found, like, needs, strict=True)
    ]


_op = torch.library.custom_op("hadamard::low_rank_linear", _forward, mutates_args=())


@_op.register_fake
def _(x, weight, bias, down, up, scale_down, scale_up, projected, scaling, composes):
    tokens = tokens_of(x)
    y, nothing = x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(0)
    if composes:
        return y, nothing, x.new_empty(weight.shape)
    p = x.new_empty(tokens, down.shape[0]) if projected is None else nothing
    return y, p, nothing if scale_up is None else x.new_empty(tokens, weight.shape[0])


@torch.library.custom_op("hadamard::low_rank_linear_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    scale_down: Tensor | None,
    scale_up: Tensor | None,
    projected: Tensor | None,
    kept: Tensor | None,
    scaling: float,
    composes: bool,
    own_projection: bool,
    needs: list[bool],
) -> list[Tensor]:
    grads = _gradients(
        grad, x, weight, bias, down, up, scale_down, scale_up, projected, kept, scaling, composes, own_projection, needs
    )
    return tensors_only(grads, grad)


@_backward_op.register_fake
def _(grad, x, weight, bias, down, up, scale_down, scale_up, projected, kept, scaling, composes, own_projection, needs):
    of_x = grad.new_empty(*grad.shape[:-1], weight.shape[1])
    return fake_gradients(grad, (of_x, weight, bias, down, up, scale_down, scale_up, projected), needs)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, down, up, scale_down, scale_up, projected, scaling, composes = inputs
    _, p, kept = output
    needs_x, needs_weight, _, needs_down, needs_up, needs_scale_down, needs_scale_up, needs_projected, *_ = (
        ctx.needs_input_grad
    )
    ctx.how = (scaling, composes, projected is None)
    if composes:
        reads_p, reads_kept = needs_scale_down or needs_scale_up, needs_x
    else:
        reads_p, reads_kept = needs_up or needs_scale_down or needs_projected, needs_scale_up
    ctx.save_for_backward(
        x if needs_weight or needs_down or (composes and reads_p and projected is None) else None,
        weight,
        bias,
        down,
        up,
        scale_down,
        scale_up,
        None if not reads_p or (composes and projected is None) else p if projected is None else projected,
        kept if reads_kept else None,
    )


_operator = Operator("low_rank_linear", _op, _backward_op, _forward, _gradients, _save, differentiable=8)
