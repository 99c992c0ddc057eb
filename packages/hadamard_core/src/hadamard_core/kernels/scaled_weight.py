"""The scaled weight of the weight way, in one pass over the weight."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._blocks import TRITON_DTYPE, blocks, dense, power_of_two, wide_dtype

# A tile is 16 elements for each of 128 threads; larger ones leave the device short of programs at 768 x 768.
_SLOW = 8
_FAST = 256


# scaled[o, i] = weight[o, i] * scale_out[o] * scale_in[(o // size) % PARTS, i]
# The fast axis of a tile is the weight's axis with the smaller stride, so that neighbouring threads read neighbours.
@triton.jit
def _scaled_weight_kernel(
    weight,
    scale_in,
    scale_out,
    scaled,
    out_features,
    in_features,
    size,
    weight_out,
    weight_in,
    scaled_out,
    scaled_in,
    PARTS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_SLOW: tl.constexpr,
    BLOCK_FAST: tl.constexpr,
):
    slow = (tl.program_id(0) * BLOCK_SLOW + tl.arange(0, BLOCK_SLOW))[:, None]
    fast = (tl.program_id(1) * BLOCK_FAST + tl.arange(0, BLOCK_FAST))[None, :]
    if TRANSPOSED:
        o = fast
        i = slow
    else:
        o = slow
        i = fast
    is_o = o < out_features
    is_i = i < in_features
    inside = is_o & is_i
    o64 = o.to(tl.int64)
    i64 = i.to(tl.int64)
    values = tl.load(weight + o64 * weight_out + i64 * weight_in, mask=inside, other=0).to(WIDE)
    if scale_out is not None:
        values *= tl.load(scale_out + o, mask=is_o, other=0).to(WIDE)
    if scale_in is not None:
        if PARTS == 1:
            values *= tl.load(scale_in + i, mask=is_i, other=0).to(WIDE)
        else:
            values *= tl.load(scale_in + (o // size % PARTS) * in_features + i, mask=inside, other=0).to(WIDE)
    tl.store(scaled + o64 * scaled_out + i64 * scaled_in, values.to(scaled.dtype.element_ty), mask=inside)


def scaled_weight(
    weight: Tensor,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    dtype: torch.dtype,
    parts: int = 1,
    groups: int = 1,
) -> Tensor:
    """``weight * scale_out[:, None] * scale_in[part of the row]``, multiplied in at least fp32, cast once.

    Args:
        weight: (out_features, in_features), any strides.
        scale_in: (parts, in_features). Output feature ``o`` is of part ``(o // size) % parts`` with
            ``size = out_features // (parts * groups)``.
        scale_out: (out_features,).
        dtype: that of the result.

    Returns:
        (out_features, in_features), a new tensor; dense, with strides in the order of those of ``weight``.
    """
    out_features, in_features = weight.shape
    transposed = weight.stride(0) < weight.stride(1)
    if transposed:
        scaled = torch.empty((in_features, out_features), dtype=dtype, device=weight.device).t()
        slow, fast = in_features, out_features
    else:
        scaled = torch.empty((out_features, in_features), dtype=dtype, device=weight.device)
        slow, fast = out_features, in_features
    if not scaled.numel():
        return scaled
    block_fast = min(_FAST, power_of_two(fast))
    with torch.cuda.device_of(weight):
        _scaled_weight_kernel[(blocks(slow, _SLOW), blocks(fast, block_fast))](
            weight,
            dense(scale_in),
            dense(scale_out),
            scaled,
            out_features,
            in_features,
            out_features // (parts * groups),
            *weight.stride(),
            *scaled.stride(),
            PARTS=parts,
            TRANSPOSED=transposed,
            WIDE=TRITON_DTYPE[wide_dtype(weight, scale_in, scale_out)],
            BLOCK_SLOW=_SLOW,
            BLOCK_FAST=block_fast,
        )
    return scaled
