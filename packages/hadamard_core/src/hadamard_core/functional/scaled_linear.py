"""``scaled_linear``: a frozen projection whose input and output are scaled and shifted.

HUT, the Hadamard adapter, (IA)^3, SSF and BitFit are one function with different parts trained::

    scaled_linear(x, W, bias, scale_in, scale_out, shift) = ((x * scale_in) W^T) * scale_out + bias + shift

with a frozen ``W`` of shape (out, in). Autograd on ``W * outer(scale_out, scale_in)`` would compute the full gradient
of the weight, as expensive as the product itself, only to reduce it to two vectors. There are two cheaper ways to the
same numbers. ``g`` is the gradient of the result, ``b' = bias + shift``, and colsum adds up all tokens.

``"weight"``
    y = x W'^T + b' with the scaled weight W' = W * outer(scale_out, scale_in), built anew in every forward: a pass over
    (out, in). With u = g (W * scale_out)::

        grad x = u * scale_in      grad scale_in = colsum(x * u)      grad scale_out = colsum(g * (y - b')) / scale_out

    Where scale_out is too small to divide by, the product of the columns concerned is computed without it.

``"activation"``
    Scales x before and y after the product: passes over (tokens, in) and (tokens, out). With u = (g * scale_out) W::

        grad x = u * scale_in      grad scale_in = colsum(x * u)      grad scale_out as above

At the start (scales of one, shift of zero) both give the frozen layer's output bit for bit, because its own product
with its own bias is what runs; on CUDA the activation way always adds the bias after the product and can differ by its
rounding. Which way is cheaper depends on the number of tokens against that of features;
``"auto"`` picks by that. Both keep for the backward pass what is there anyway: x, and the result, which whatever comes
next mostly keeps as well.

``y - b'`` has lost what the rounding of y took, the more the larger the bias is beside the product. Columns where that
matters take the product anew, without the bias. In 16 bits, which have no digits to give away, that is where the bias
is not small, so that no gradient is less accurate than that of the activation way in plain autograd by more than a
factor of two; in fp32 up to five of the 24 bits are let go.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from hadamard_core import kernels
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
    tokens_of,
)
from hadamard_core.functional.output_scale import inaccurate_columns, through_scale_out
from hadamard_core.functional.primitives import (
    accumulation_dtype,
    constant,
    scale_shift,
    scale_shift_backward,
    scaled_weight,
)

Compute = Literal["auto", "weight", "activation"]
"""How :func:`scaled_linear` is computed. The result is the same."""
_WAYS = get_args(Compute)


class Slices(NamedTuple):
    """Which parts of a fused projection have a ``scale_in``.

    The output features are read as (groups, parts, size). GPT-2's ``c_attn`` has 3 parts in 1 group.

    Attributes:
        adapted: the parts with a ``scale_in``, in the order of its rows.
        parts: how many there are, of equal size.
        groups: how many groups that each have all parts.
    """

    adapted: tuple[int, ...]
    parts: int
    groups: int = 1


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale_in: Tensor | None = None,
    scale_out: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    index: Tensor | None = None,
    slices: Slices | None = None,
    compute: Compute = "auto",
) -> Tensor:
    """Returns ``((x * scale_in) weight^T) * scale_out + bias + shift``.

    Under autocast, ``x`` is cast to autocast's dtype. Scales keep their own dtype; the scaled weight is multiplied in
    fp32 at least and cast once to the dtype of ``x``. A second derivative is refused with a sentence.

    Many adapters in one batch: with ``index``, the vectors are matrices with a row for each adapter. Because adapters
    are vectors, one product with the weight serves all.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), any strides; a floating-point dtype.
        bias: (out_features,), not scaled.
        scale_in: (in_features,); with ``index`` (adapters, in_features); with ``slices`` (adapted, in_features).
        scale_out: (out_features,); with ``index`` (adapters, out_features).
        shift: as ``scale_out``.
        index: integers that say which adapter applies where, of the shape that ``x`` begins with: (batch,) for one
            adapter a sample, (batch, length) for one a token. Computed the activation way, whatever ``compute`` says.
        slices: which parts of a fused projection ``scale_in`` scales. Computed the weight way, whatever ``compute``
            says: the product is one. Not together with ``index``.
        compute: ``"weight"``, ``"activation"`` or ``"auto"``, see the module's docstring.

    Returns:
        (..., out_features), in the dtype of ``x`` (autocast's under autocast).

    Raises:
        ValueError: shapes do not fit, tensors are on different devices, or ``compute`` is unknown.
    """
    check_arguments(x, weight, bias, scale_in, scale_out, shift, index, slices, compute)
    if scale_in is scale_out is shift is None:
        index = None
    x = cast_for_autocast(x)
    if slices is None:
        adapted, parts, groups = [], 1, 1
        by_weight = index is None and computes_by_weight(compute, x, weight)
    else:
        adapted, parts, groups, by_weight = list(slices.adapted), slices.parts, slices.groups, True
    return operator(x, weight, bias, scale_in, scale_out, shift, index, adapted, parts, groups, by_weight)


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None = None,
    slices: Slices | None = None,
    compute: Compute = "auto",
) -> None:
    """Raises ValueError where :func:`scaled_linear` says."""
    out_features, in_features = weight.shape
    if compute not in _WAYS:
        raise ValueError(f"compute is {compute!r}; it must be one of {', '.join(map(repr, _WAYS))}.")
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} features; weight takes {in_features}.")
    check_index(index, x)
    adapters = () if index is None else (adapters_of(scale_in, scale_out, shift),)
    of_output = (*adapters, out_features)
    check_shape("scale_out", scale_out, of_output, "weight")
    check_shape("shift", shift, of_output, "weight")
    of_input = (*adapters, in_features) if slices is None else (len(slices.adapted), in_features)
    check_shape("scale_in", scale_in, of_input, "weight")
    if slices is not None:
        _check_slices(slices, scale_in, out_features, index)
    check_devices(x, weight=weight, bias=bias, scale_in=scale_in, scale_out=scale_out, shift=shift, index=index)


def computes_by_weight(compute: Compute, x: Tensor, weight: Tensor) -> bool:
    """Whether this is the weight way."""
    return compute == "weight" or (compute == "auto" and prefers_weight(tokens_of(x), weight))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _check_slices(slices: Slices, scale_in: Tensor | None, out_features: int, index: Tensor | None) -> None:
    if index is not None or scale_in is None:
        raise ValueError(
            f"slices are given {'together with index' if scale_in is not None else 'without scale_in'}; they say which "
            "parts of a fused projection the rows of scale_in scale, for one adapter."
        )
    if out_features % (slices.parts * slices.groups) or not set(slices.adapted) <= set(range(slices.parts)):
        raise ValueError(f"{slices} do not fit a weight with {out_features} output features.")


def prefers_weight(tokens: int, weight: Tensor) -> bool:
    """Whether ``"auto"`` is ``"weight"``: two passes over the weight cost less than two over x and two over y."""
    out_features, in_features = weight.shape
    return tokens * (in_features + out_features) >= out_features * in_features


def scale_in_of_parts(scale_in: Tensor, slices: Slices) -> Tensor:
    """``scale_in`` with a row for each part of a fused projection, ones where it is not adapted."""
    ones = torch.ones_like(scale_in[0])
    by_part = dict(zip(slices.adapted, scale_in, strict=True))
    return torch.stack([by_part.get(part, ones) for part in range(slices.parts)])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None,
    adapted: list[int],
    parts: int,
    groups: int,
    by_weight: bool,
) -> tuple[Tensor, Tensor]:
    """y and, with ``index``, the product before ``scale_out`` (else an empty tensor)."""
    dtype = x.dtype
    if by_weight:
        if adapted:
            scale_in = scale_in_of_parts(scale_in, Slices(tuple(adapted), parts, groups))
        scaled = scaled_weight(weight, scale_in, scale_out, dtype, parts=parts, groups=groups, scratch=True)
        return linear(x, scaled, cast(_sum(bias, shift), dtype)), x.new_empty(0)
    samples = None if index is None else index.flatten()
    scaled = scale_shift(rows(x), scale_in, None, samples, scratch=True)
    inside = _bias_in_product(x, bias, scale_out)
    product = linear(scaled, cast(weight, dtype), cast(bias, dtype) if inside else None)
    outside = _sum(None if inside else bias, shift)
    if index is not None and outside is bias is not None:
        outside = bias.expand(scale_out.shape)
    y = scale_shift(product, scale_out, outside, samples, overwrite=index is None)
    shape = (*x.shape[:-1], weight.shape[0])
    return y.view(shape), x.new_empty(0) if index is None or scale_out is None else product.view(shape)


def _bias_in_product(x: Tensor, bias: Tensor | None, scale_out: Tensor | None) -> bool:
    """Whether the activation way adds the bias inside the product, as the frozen layer does, rather than after it.

    Inside, it has to be subtracted again for the gradient of scale_out, which is not accurate everywhere. So that is
    for the start only; and not for kernels, which would have to ask the device and wait for its answer.
    """
    if bias is None or scale_out is None:
        return bias is not None
    if kernels.usable(x):
        return False
    ones = constant(1.0, scale_out.shape[-1], scale_out.dtype, scale_out.device)
    return torch.equal(scale_out, ones if scale_out.dim() == 1 else ones.expand_as(scale_out))


def _gradients(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None,
    result: Tensor | None,
    adapted: list[int],
    parts: int,
    groups: int,
    by_weight: bool,
    needs: list[bool],
) -> list[Tensor | None]:
    """The gradients of x, weight, bias, scale_in, scale_out and shift; None for one that is not needed.

    ``x`` and ``result`` are None where no gradient reads them; ``result`` is y, with ``index`` the product.
    """
    needs_x, needs_weight, needs_bias, needs_scale_in, needs_scale_out, needs_shift = needs
    g = rows(grad)
    x2, result = (None if t is None else rows(t) for t in (x, result))
    samples = None if index is None else index.flatten()
    adapters = adapters_of(scale_in, scale_out, shift)
    dtype = grad.dtype
    of_x = of_weight = of_scale_in = of_scale_out = None
    needs_product = needs_x or needs_scale_in

    slices = Slices(tuple(adapted), parts, groups) if adapted else None
    rows_in = scale_in if slices is None else scale_in_of_parts(scale_in, slices)
    if index is None:
        inside = _sum(bias, shift)
        scaled_g, of_scale_out, total = through_scale_out(
            g,
            result,
            x2,
            weight,
            rows_in,
            scale_out,
            inside,
            parts,
            groups,
            needs_input=not by_weight and (needs_product or needs_weight),
            needs_scale=needs_scale_out,
            needs_shift=needs_bias or needs_shift,
        )
    else:
        inside = bias if _bias_in_product(g, bias, scale_out) else None
        scaled_g, of_scale_out, total = scale_shift_backward(
            g,
            result,
            scale_out,
            samples,
            center=inside,
            needs_input=needs_product or needs_weight,
            needs_scale=needs_scale_out,
            needs_shift=needs_bias or needs_shift,
            adapters=adapters,
        )
        if needs_scale_out and inside is not None:
            again = inaccurate_columns(g, result, inside)
            if again.any():
                product = linear(scale_shift(x2, scale_in, None, samples), weight[again].to(dtype))
                of_scale_out[..., again] = scale_shift_backward(
                    g[:, again], product, None, samples, needs_input=False, needs_shift=False, adapters=adapters
                )[1]
    if needs_product:
        if slices is not None:
            outer = scaled_weight(weight, None, scale_out, dtype, scratch=True)
            of_x, of_scale_in = _through_slices(g, x2, outer, scale_in, slices, needs_x, needs_scale_in)
        else:
            if by_weight:
                u = g @ scaled_weight(weight, None, scale_out, dtype, scratch=True)
            else:
                u = scaled_g @ cast(weight, dtype)
            of_x, of_scale_in, _ = scale_shift_backward(
                u,
                x2,
                scale_in,
                samples,
                needs_input=needs_x,
                needs_scale=needs_scale_in,
                needs_shift=False,
                adapters=adapters,
                overwrite=True,
            )
    if needs_weight:
        # out * in as for any weight that trains; only then is the third product computed.
        if by_weight:
            of_weight = (scale_shift(g, scale_out, None).t() @ x2).to(accumulation_dtype(dtype))
            of_weight = scaled_weight(of_weight, rows_in, None, weight.dtype, parts=parts, groups=groups)
        else:
            of_weight = (scaled_g.t() @ scale_shift(x2, scale_in, None, samples)).to(weight.dtype)
    of_shift = total
    of_bias = total if index is None or total is None else total.sum(0)
    if needs_bias and needs_shift and of_bias is of_shift:
        of_shift = total.clone()
    return [
        of_x.view(*grad.shape[:-1], weight.shape[1]).contiguous() if needs_x else None,
        of_weight.to(weight.dtype).contiguous() if needs_weight else None,
        cast(of_bias, bias.dtype) if needs_bias else None,
        cast(of_scale_in, scale_in.dtype) if needs_scale_in else None,
        cast(of_scale_out, scale_out.dtype) if needs_scale_out else None,
        cast(of_shift, shift.dtype) if needs_shift else None,
    ]


def _through_slices(
    g: Tensor, x: Tensor | None, outer: Tensor, scale_in: Tensor, slices: Slices, needs_x: bool, needs_scale_in: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of scale_in, part by part: the products are as large together as the one of the whole.

    ``outer`` is the weight times scale_out.
    """
    of_x, by_part = None, dict.fromkeys(slices.adapted)
    scales = dict(zip(slices.adapted, scale_in, strict=True))
    by_feature = g.unflatten(1, (slices.groups, slices.parts, -1))
    by_row = outer.unflatten(0, (slices.groups, slices.parts, -1))
    for part in range(slices.parts):
        own_g, own_weight = by_feature[:, :, part].flatten(1), by_row[:, part].flatten(0, 1)
        if part not in scales:
            if not needs_x:
                continue
            of_x = own_g @ own_weight if of_x is None else of_x.addmm_(own_g, own_weight)
            continue
        own_x, by_part[part], _ = scale_shift_backward(
            own_g @ own_weight,
            x,
            scales[part],
            needs_input=needs_x,
            needs_scale=needs_scale_in,
            needs_shift=False,
            overwrite=True,
        )
        of_x = own_x if of_x is None or own_x is None else of_x.add_(own_x)
    return of_x, torch.stack(list(by_part.values())) if needs_scale_in else None


_op = torch.library.custom_op("hadamard::scaled_linear", forward, mutates_args=())


@_op.register_fake
def _(x, weight, bias, scale_in, scale_out, shift, index, adapted, parts, groups, by_weight):
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, x.new_empty(0) if index is None or scale_out is None else torch.empty_like(y)


@torch.library.custom_op("hadamard::scaled_linear_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None,
    result: Tensor | None,
    adapted: list[int],
    parts: int,
    groups: int,
    by_weight: bool,
    needs: list[bool],
) -> list[Tensor]:
    grads = _gradients(
        grad, x, weight, bias, scale_in, scale_out, shift, index, result, adapted, parts, groups, by_weight, needs
    )
    return tensors_only(grads, grad)


@_backward_op.register_fake
def _(grad, x, weight, bias, scale_in, scale_out, shift, index, result, adapted, parts, groups, by_weight, needs):
    of_x = grad.new_empty(*grad.shape[:-1], weight.shape[1])
    return fake_gradients(grad, (of_x, weight, bias, scale_in, scale_out, shift), needs)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, scale_in, scale_out, shift, index, *ctx.how = inputs
    y, product = output
    _, needs_weight, _, needs_scale_in, needs_scale_out, *_ = ctx.needs_input_grad
    ctx.save_for_backward(
        x if needs_weight or needs_scale_in or needs_scale_out else None,
        weight,
        bias,
        scale_in,
        scale_out,
        shift,
        index,
        None if not needs_scale_out else y if index is None else product,
    )


operator = Operator("scaled_linear", _op, _backward_op, forward, _gradients, _save, differentiable=6)
