"""The gradient of ``scaled_linear`` through its output scale, read off the result where that is accurate.

With y = p * scale_out + b' of a product p, colsum(g * p) = colsum(g * (y - b')) / scale_out. See
:mod:`hadamard_core.functional.scaled_linear` for what is promised.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from hadamard_core import kernels
from hadamard_core.functional.primitives import accumulation_dtype, scale_shift, scale_shift_backward

# Below these magnitudes of scale_out, dividing by it would magnify what underflow or rounding has taken from a product.
_SMALLEST_DIVISOR = {torch.float16: 1e-2, torch.bfloat16: 1e-12, torch.float32: 1e-12, torch.float64: 1e-100}

# Largest |bias| relative to the root mean square of the product, tokens weighted by g, at which subtracting it back is
# harmless: the product then keeps, of the dtype's bits, all but log2 of this.
_LARGEST_RELATIVE_BIAS = {torch.float16: 0.5, torch.bfloat16: 0.5, torch.float32: 32, torch.float64: 1e4}
# The root mean square is taken over as many tokens, those with the largest gradients.
_SAMPLED_TOKENS = 32


def through_scale_out(
    g: Tensor,
    y: Tensor | None,
    x: Tensor | None,
    weight: Tensor,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    inside: Tensor | None,
    parts: int,
    groups: int,
    *,
    needs_input: bool,
    needs_scale: bool,
    needs_shift: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """g * scale_out, colsum(g * (y - inside)) / scale_out, and colsum(g).

    The product is taken anew, before scale_out, in columns where the second would be inaccurate. The first may be
    scratch memory, which the next one that asks for it writes over.

    Args:
        scale_in: (in,), or (parts, in) with a row for each part.
        inside: what was added to the product times scale_out.
    """
    if not needs_scale:
        return scale_shift_backward(
            g, None, scale_out, needs_input=needs_input, needs_scale=False, needs_shift=needs_shift, scratch=True
        )
    smallest, largest = _SMALLEST_DIVISOR[y.dtype], _LARGEST_RELATIVE_BIAS[y.dtype]
    if kernels.usable(g):
        matrix = None if scale_in is None else torch.atleast_2d(scale_in)
        gradient, total = kernels.exact_columns.grad_of_scale_out(
            g,
            y,
            x,
            weight,
            matrix,
            scale_out,
            inside,
            parts,
            groups,
            smallest_divisor=smallest,
            largest_relative_center=largest,
        )
        return scale_shift(g, scale_out, None) if needs_input else None, gradient, total
    scaled_g, dots, total = scale_shift_backward(
        g, y, scale_out, center=inside, needs_input=needs_input, needs_shift=needs_shift, scratch=True
    )
    least = _smallest_magnitude(scale_out)
    if least >= smallest:
        gradient = dots / scale_out
        if inside is None or _is_accurate(g, gradient, inside, least, largest):
            return scaled_g, gradient, total
    tiny = scale_out.abs() < smallest
    gradient = dots / scale_out.masked_fill(tiny, 1)
    again = tiny if inside is None else tiny | inaccurate_columns(g, y, inside)
    if again.any():
        selected = weight[again]
        if scale_in is not None:
            size = len(weight) // (parts * groups)
            by_row = scale_in if parts == 1 else scale_in.repeat_interleave(size, 0).repeat(groups, 1)[again]
            selected = selected * by_row
        product = linear(x, selected.to(x.dtype))
        exact = scale_shift_backward(g[:, again], product, None, needs_input=False, needs_shift=False)[1]
        gradient[again] = exact.to(gradient.dtype)
    return scaled_g, gradient, total


def _is_accurate(g: Tensor, gradient: Tensor, inside: Tensor, least: float, largest: float) -> bool:
    """Whether a bound with four numbers shows already that subtracting ``inside`` is harmless.

    For products p with colsum(g * p) = ``gradient``, the norm of g * p is at least that of ``gradient`` over the root
    of the number of tokens; ``least`` is the smallest magnitude in scale_out.
    """
    low, high = inside.aminmax()
    flat = g.flatten()
    lost = (max(-low.item(), high.item()) / least) ** 2 * torch.dot(flat, flat).item() * g.shape[0]
    return lost <= largest**2 * torch.dot(gradient, gradient).item()


def _smallest_magnitude(vector: Tensor) -> float:
    """Of a vector with numbers of both signs, 0, as if one were there; 1 of an empty one."""
    if not vector.numel():
        return 1.0
    low, high = vector.aminmax()
    return max(low.item(), -high.item(), 0.0)


def inaccurate_columns(g: Tensor, result: Tensor, inside: Tensor) -> Tensor:
    """Where subtracting ``inside`` from ``result`` gives away more than is promised: bool, (features,)."""
    if not len(g):
        return torch.zeros_like(inside, dtype=torch.bool)
    # What decides are the tokens with large gradients, found by one product with a vector of signs without a pattern.
    strength = torch.mv(g, _signs(g.shape[1], g.dtype, g.device)).abs_()
    most = strength.topk(min(len(g), _SAMPLED_TOKENS), sorted=False).indices
    gradients = g[most].to(accumulation_dtype(g.dtype))  # a copy, which may be written over
    kept = (gradients * (result[most] - inside)).square_().sum(0)
    lost = gradients.square_().sum(0).mul_(inside.square())
    return (inside != 0) & (lost >= _LARGEST_RELATIVE_BIAS[result.dtype] ** 2 * kept)


@functools.lru_cache(maxsize=64)
def _signs(features: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    multiples = torch.arange(features, dtype=torch.float64) * (math.sqrt(5) - 1) / 2
    return torch.where(multiples % 1 < 0.5, 1.0, -1.0).to(device, dtype)
