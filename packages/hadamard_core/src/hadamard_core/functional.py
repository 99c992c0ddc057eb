"""What the Hadamard family computes, in plain PyTorch, with gradients that cost no third matrix product.

HUT, the Hadamard adapter, (IA)^3, SSF and BitFit are one function with different parts trained::

    scaled_linear(x, W, bias, scale_in, scale_out, shift) = ((x * scale_in) W^T) * scale_out + bias + shift

with a frozen ``W`` of shape (out, in). Autograd on ``W * outer(scale_out, scale_in)`` would compute the full gradient
of the weight, as expensive as the product itself, only to reduce it to two vectors. There are two cheaper ways to the
same numbers. ``u`` is the gradient of what enters the product, ``g`` that of the result, ``b' = bias + shift``, and
colsum adds up all tokens.

``"weight"``
    y = x W'^T + b' with the scaled weight W' = W * outer(scale_out, scale_in), built anew in forward and backward: two
    passes over (out, in). Activations are only read. With u = g W'::

        grad x = u      grad scale_in = colsum(x * u) / scale_in      grad scale_out = colsum(g * (y - b')) / scale_out

    Where a scale is too small to divide by, the product of the columns concerned is computed without that scale.

``"activation"``
    Scales x before and y after the product: passes over (tokens, in) and (tokens, out). The bias enters inside the
    product and is corrected by ``bias * (1 - scale_out)`` after it. With u = (g * scale_out) W::

        grad x = u * scale_in      grad scale_in = colsum(x * u)      grad scale_out = colsum(g * (x W^T))

At the start (scales of one, shift of zero) both give the frozen layer's output bit for bit, because its own product
with its own bias is what runs. Which way is cheaper depends on the number of tokens against that of features;
``"auto"`` picks by that.

``y - b'`` has lost what the rounding of y took, the more the larger the bias is beside the product. Columns where that
matters take the product anew, without the bias. In 16 bits, which have no digits to give away, that is where the bias
is not small, so that no gradient is less accurate than that of the activation way in plain autograd by more than a
factor of two; in fp32 up to five of the 24 bits are let go.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

Compute = Literal["auto", "weight", "activation"]
"""How :func:`scaled_linear` is computed. The result is the same."""

# Below these magnitudes of a scale, dividing by it would magnify what underflow or rounding has taken from a product.
_SMALLEST_DIVISOR = {torch.float16: 1e-2, torch.bfloat16: 1e-12, torch.float32: 1e-12, torch.float64: 1e-100}

# Largest |bias| relative to the root mean square of the product, tokens weighted by g, at which subtracting it back is
# harmless: the product then keeps, of the dtype's bits, all but log2 of this.
_LARGEST_RELATIVE_BIAS = {torch.float16: 0.5, torch.bfloat16: 0.5, torch.float32: 32, torch.float64: 1e4}
# The root mean square is taken over as many tokens.
_SAMPLED_TOKENS = 32
# Tokens whose products are added at once on a CPU: as many rows of sums stay in the cache.
_CACHED_TOKENS = 128


def scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale_in: Tensor | None = None,
    scale_out: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    parts: Tensor | None = None,
    compute: Compute = "auto",
) -> Tensor:
    """Returns ``((x * scale_in) weight^T) * scale_out + bias + shift``.

    Under autocast, ``x`` is cast to autocast's dtype. Scales keep their own dtype; the scaled weight is multiplied in
    theirs and cast once to that of ``x``. A second derivative is refused by autograd.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), any strides; a floating-point dtype.
        bias: (out_features,), not scaled.
        scale_in: (in_features,), or (parts, in_features) together with ``parts``.
        scale_out: (out_features,).
        shift: (out_features,).
        parts: (out_features,), integer. For a fused projection: which row of ``scale_in`` scales the input of this
            output feature, -1 for none. Computed the weight way, whatever ``compute`` says: the product is one.
        compute: ``"weight"``, ``"activation"`` or ``"auto"``, see the module's docstring.

    Returns:
        (..., out_features), in the dtype of ``x`` (autocast's under autocast).

    Raises:
        ValueError: shapes do not fit, tensors are on different devices, or ``compute`` is unknown.
    """
    out_features, in_features = weight.shape
    if compute not in get_args(Compute):
        raise ValueError(f"compute is {compute!r}; it must be one of {', '.join(map(repr, get_args(Compute)))}.")
    if x.shape[-1] != in_features:
        raise ValueError(f"x has {x.shape[-1]} features; weight takes {in_features}.")
    for name, vector, features in (("scale_out", scale_out, out_features), ("shift", shift, out_features)):
        if vector is not None and vector.shape != (features,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; weight needs ({features},).")
    if (scale_in is not None and scale_in.shape[-1:] != (in_features,)) or (parts is None) != _is_vector(scale_in):
        raise ValueError(
            f"scale_in has shape {None if scale_in is None else tuple(scale_in.shape)}; it must be ({in_features},), "
            f"or (parts, {in_features}) together with parts."
        )
    named = {"weight": weight, "bias": bias, "scale_in": scale_in, "scale_out": scale_out, "shift": shift}
    for name, tensor in named.items():
        # Without this, a tensor on the meta device would make the result one of uninitialised memory.
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}; move the model or its input first.")
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    tokens = math.prod(x.shape[:-1])
    by_weight = compute == "weight" or parts is not None or (compute == "auto" and prefers_weight(tokens, weight))
    y, _ = _scaled_linear(x, weight, bias, scale_in, scale_out, shift, parts, by_weight)
    return y


def _is_vector(scale_in: Tensor | None) -> bool:
    return scale_in is None or scale_in.dim() == 1


def prefers_weight(tokens: int, weight: Tensor) -> bool:
    """Whether ``"auto"`` is ``"weight"``: two passes over the weight cost less than two over x and two over y."""
    out_features, in_features = weight.shape
    return tokens * (in_features + out_features) >= out_features * in_features


def _times(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a * b


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def rows_of(scale_in: Tensor | None, parts: Tensor | None) -> Tensor | None:
    """``scale_in`` so that it broadcasts against (out, in): a row for each output feature if there are parts."""
    if scale_in is None or parts is None:
        return scale_in
    return torch.cat([scale_in, torch.ones_like(scale_in[:1])])[parts]


def scaled_weight(
    weight: Tensor, scale_in: Tensor | None, scale_out: Tensor | None, dtype: torch.dtype | None = None
) -> Tensor:
    """``weight * outer(scale_out, scale_in)``, multiplied in at least fp32, cast once, strides as those of ``weight``.

    Args:
        weight: (out_features, in_features).
        scale_in: (in_features,), or (out_features, in_features) where each output feature has its own.
        scale_out: (out_features,).
        dtype: that of the result; the weight's if None.
    """
    scales = [scale for scale in (None if scale_out is None else scale_out[:, None], scale_in) if scale is not None]
    wide = _wide(*(scale.dtype for scale in scales), weight.dtype)
    scaled = weight
    for scale in scales:
        # The first product is a tensor of its own, so that the second may be written over it.
        scaled = scaled * scale.to(wide) if scaled is weight else scaled.mul_(scale.to(wide))
    return scaled.to(weight.dtype if dtype is None else dtype)


def _cast(vector: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if vector is None else vector.to(dtype)


@torch.library.custom_op("hadamard::scaled_linear", mutates_args=())
def _scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    parts: Tensor | None,
    by_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Returns y and, in the activation way, the product with the bias before ``scale_out`` (else an empty tensor)."""
    if by_weight:
        scaled = scaled_weight(weight, rows_of(scale_in, parts), scale_out, x.dtype)
        return linear(x, scaled, _cast(_plus(bias, shift), x.dtype)), x.new_empty(0)
    product = linear(_times(x, scale_in).to(x.dtype), weight.to(x.dtype), _cast(bias, x.dtype))
    if scale_out is None:
        return (product if shift is None else (product + shift).to(x.dtype)), x.new_empty(0)
    correction = shift if bias is None else _plus(bias * (1 - scale_out), shift)
    y = product * scale_out
    return (y if correction is None else y.add_(correction)).to(x.dtype), product


@_scaled_linear.register_fake
def _(x, weight, bias, scale_in, scale_out, shift, parts, by_weight):
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return y, x.new_empty(0) if by_weight or scale_out is None else torch.empty_like(y)


@torch.library.custom_op("hadamard::scaled_linear_backward", mutates_args=())
def _scaled_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    shift: Tensor | None,
    parts: Tensor | None,
    by_weight: bool,
    result: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of x, weight, bias, scale_in, scale_out and shift; an empty tensor for one that is not needed.

    ``result`` is y in the weight way and the product with the bias in the activation way.
    """
    needs_x, needs_weight, needs_bias, needs_scale_in, needs_scale_out, needs_shift = needs
    grads = [grad.new_empty(0) for _ in needs]
    g, x2, result = (t.flatten(0, -2) if t.dim() > 1 else t[None] for t in (grad, x, result))
    rows_in = rows_of(scale_in, parts)

    if needs_x or needs_scale_in:
        if by_weight:
            scaled = scaled_weight(weight, rows_in, scale_out, g.dtype)
            grads[0], grads[3] = _grads_of_input(g, x2, weight, scaled, scale_in, scale_out, parts, needs_scale_in)
        else:
            u = _times(g, scale_out).to(x.dtype) @ weight.to(x.dtype)
            if needs_scale_in:
                grads[3] = _column_dots(x2, u).to(scale_in.dtype)
            grads[0] = _times(u, scale_in).to(x.dtype)
        grads[0] = grads[0].view(*grad.shape[:-1], weight.shape[1]) if needs_x else grad.new_empty(0)
    if needs_weight:
        # out * in as for any weight that trains; only then is the third product computed.
        full = (_times(g, scale_out).to(x.dtype).t() @ x2).to(weight.dtype)
        grads[1] = _times(full, rows_in).to(weight.dtype)
    inside = _plus(bias, shift) if by_weight else bias
    total = None
    if needs_bias or needs_shift or (needs_scale_out and inside is not None):
        total = g.sum(0, dtype=_wide(g.dtype))
    if needs_scale_out:
        applied = scale_out if by_weight else None
        gradient = _grad_of_scale_out(g, total, x2, weight, rows_in, applied, inside, result)
        grads[4] = gradient.to(scale_out.dtype)
    if needs_bias:
        grads[2] = total.to(bias.dtype, copy=True)
    if needs_shift:
        grads[5] = total.to(shift.dtype, copy=True)
    return grads


@_scaled_linear_backward.register_fake
def _(grad, x, weight, bias, scale_in, scale_out, shift, parts, by_weight, result, needs):
    grads = [
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if need else grad.new_empty(0)
        for tensor, need in zip((x, weight, bias, scale_in, scale_out, shift), needs, strict=True)
    ]
    if needs[0]:
        grads[0] = grad.new_empty(*grad.shape[:-1], weight.shape[1])
    return grads


def _refuse_second_derivative(ctx, *grads):
    raise NotImplementedError(
        "scaled_linear has no second derivative; compute its gradients without create_graph, or build the scaled "
        "weight with plain tensor operations where a second derivative is needed."
    )


torch.library.register_autograd("hadamard::scaled_linear_backward", _refuse_second_derivative)


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to multiply and add up in: fp64 if one of these is, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _column_dots(a: Tensor, b: Tensor) -> Tensor:
    """colsum(a * b) of two (tokens, features) tensors, multiplied and added in at least fp32: (features,)."""
    wide = _wide(a.dtype, b.dtype)
    if a.device.type != "cpu":
        return (a.to(wide) * b.to(wide)).sum(0)
    # Added up in place, rather than written to a temporary as large as the activations and read back.
    sums = a.new_zeros(min(_CACHED_TOKENS, len(a)), a.shape[-1], dtype=wide)
    for some_a, some_b in zip(a.split(_CACHED_TOKENS), b.split(_CACHED_TOKENS), strict=True):
        sums[: len(some_a)].addcmul_(some_a.to(wide), some_b.to(wide))
    return sums.sum(0)


def _sample(tokens: int, device: torch.device) -> Tensor:
    """Indices of up to _SAMPLED_TOKENS of so many tokens, spread by the golden ratio.

    Even steps could meet one and the same position of every sequence, and so only tokens of one odd kind.
    """
    numbers = torch.arange(min(tokens, _SAMPLED_TOKENS), device=device)
    return (numbers * (math.sqrt(5) - 1) / 2 % 1 * tokens).long()


def _grads_of_input(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    scaled: Tensor,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    parts: Tensor | None,
    needs_scale_in: bool,
) -> tuple[Tensor, Tensor]:
    """The weight way's gradients of x and of scale_in (empty if not needed)."""
    if not needs_scale_in:
        return g @ scaled, g.new_empty(0)
    if parts is None:
        u = g @ scaled
        return u, _grad_of_scale_in(u, g, x, weight, scale_in, scale_out).to(scale_in.dtype)
    # Each part has its own scale_in, so its own u; the products are as large together as the one of all rows.
    untouched = parts < 0
    total = g[:, untouched] @ scaled[untouched]
    grads = []
    for part, scale in enumerate(scale_in):
        own = parts == part
        u = g[:, own] @ scaled[own]
        grads.append(
            _grad_of_scale_in(u, g[:, own], x, weight[own], scale, scale_out if scale_out is None else scale_out[own])
        )
        total = total + u
    return total, torch.stack(grads).to(scale_in.dtype)


def _grad_of_scale_in(
    u: Tensor, g: Tensor, x: Tensor, weight: Tensor, scale_in: Tensor, scale_out: Tensor | None
) -> Tensor:
    """colsum(x * u) / scale_in, with ``u`` taken anew, before scale_in, where that is too small to divide by: (in,)."""
    tiny = scale_in.abs() < _SMALLEST_DIVISOR[u.dtype]
    gradient = _column_dots(x, u) / scale_in.masked_fill(tiny, 1)
    if tiny.any():
        before = _times(g, scale_out).to(x.dtype) @ weight[:, tiny].to(x.dtype)
        gradient[tiny] = _column_dots(x[:, tiny], before).to(gradient.dtype)
    return gradient


def _grad_of_scale_out(
    g: Tensor,
    total: Tensor | None,
    x: Tensor,
    weight: Tensor,
    rows_in: Tensor | None,
    scale_out: Tensor | None,
    inside: Tensor | None,
    result: Tensor,
) -> Tensor:
    """colsum(g * (result - inside)) / scale_out, with the product taken anew where that would be inaccurate: (out,).

    Args:
        total: colsum(g); read where there is ``inside``.
        scale_out: what the product in ``result`` was already multiplied with.
        inside: what was added to the product in ``result``.
    """
    gradient = _column_dots(g, result)
    again = None
    if inside is not None and len(result):
        gradient -= inside * total
        rows = _sample(len(result), g.device)
        g_rows = g[rows].to(gradient.dtype)
        norm = torch.linalg.vector_norm(g_rows, dim=0)
        norm_of_product = torch.linalg.vector_norm(g_rows * (result[rows] - inside), dim=0)
        again = (inside != 0) & (inside.abs() * norm >= _LARGEST_RELATIVE_BIAS[result.dtype] * norm_of_product)
    if scale_out is not None:
        tiny = scale_out.abs() < _SMALLEST_DIVISOR[result.dtype]
        gradient = gradient / scale_out.masked_fill(tiny, 1)
        again = tiny if again is None else again | tiny
    if again is not None and again.any():
        own_in = rows_in if rows_in is None or rows_in.dim() == 1 else rows_in[again]
        product = linear(x, scaled_weight(weight[again], own_in, None, x.dtype))
        gradient[again] = _column_dots(g[:, again], product).to(gradient.dtype)
    return gradient


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, scale_in, scale_out, shift, parts, by_weight = inputs
    y, product = output
    ctx.by_weight = by_weight
    _, needs_weight, _, needs_scale_in, needs_scale_out, *_ = ctx.needs_input_grad
    reads_x = needs_weight or needs_scale_in or needs_scale_out
    result = y if by_weight else product
    ctx.save_for_backward(
        x if reads_x else x.new_empty(0),
        weight,
        bias,
        scale_in,
        scale_out,
        shift,
        parts,
        result if needs_scale_out else x.new_empty(0),
    )


def _backward(ctx, grad: Tensor, _grad_product: Tensor):
    x, weight, bias, scale_in, scale_out, shift, parts, result = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:6])
    grads = _scaled_linear_backward(
        grad, x, weight, bias, scale_in, scale_out, shift, parts, ctx.by_weight, result, needs
    )
    return *(gradient if need else None for gradient, need in zip(grads, needs, strict=True)), None, None


torch.library.register_autograd("hadamard::scaled_linear", _backward, setup_context=_setup_context)
