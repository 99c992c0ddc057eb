"""Scale and shift of activations, with an adapter of its own for each sample, and the gradients of both.

Each is one pass over (samples, tokens, features), whichever of the results are wanted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._blocks import TRITON_DTYPE, blocks, dense, dense_rows, power_of_two, tokens_per_chunk, wide_dtype

# A tile of 16 x 256 is 32 elements for each of 128 threads: four loads of 16 bytes in 16 bits, enough in flight to
# hide the memory's latency, while the scale is read once for 16 tokens.
_TOKENS = 16
_FEATURES = 256
# The backward keeps two running sums beside three tiles, so its tiles are half as wide to stay in registers.
_FEATURES_BACKWARD = 128
# Tile of the second stage, which reads partial sums: narrow, so that there are programs for most of the device.
_CHUNKS_ADDED = 32
_FEATURES_ADDED = 64


# out[s, t, f] = x[s, t, f] * scale[index[s], f] + shift[index[s], f]
@triton.jit(do_not_specialize=["tokens", "chunks"])
def _scale_shift_kernel(
    x,
    scale,
    shift,
    index,
    out,
    tokens,
    chunks,
    features,
    x_sample,
    x_token,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // chunks).to(tl.int64)
    rows = (program % chunks) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_col = cols < features
    inside = (rows < tokens)[:, None] & is_col[None, :]
    rows = rows.to(tl.int64)

    adapter = 0
    if index is not None:
        adapter = tl.load(index + sample)
    values = tl.load(x + sample * x_sample + rows[:, None] * x_token + cols[None, :], mask=inside, other=0).to(WIDE)
    if scale is not None:
        values *= tl.load(scale + adapter * features + cols, mask=is_col, other=0).to(WIDE)[None, :]
    if shift is not None:
        values += tl.load(shift + adapter * features + cols, mask=is_col, other=0).to(WIDE)[None, :]
    target = out + (sample * tokens + rows)[:, None] * features + cols[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=inside)


# For each chunk of the tokens of one sample and each block of features:
#   grad_input[s, t, f] = grad[s, t, f] * scale[index[s], f]
#   scale_sums[chunk, f] = sum over t in chunk of grad[s, t, f] * (x[s, t, f] - center[f])
#   shift_sums[chunk, f] = sum over t in chunk of grad[s, t, f]
@triton.jit(do_not_specialize=["tokens", "chunks", "chunk_tokens"])
def _backward_kernel(
    grad,
    x,
    scale,
    center,
    index,
    grad_input,
    scale_sums,
    shift_sums,
    tokens,
    chunks,
    chunk_tokens,
    features,
    grad_sample,
    grad_token,
    x_sample,
    x_token,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // chunks).to(tl.int64)
    first = (program % chunks) * chunk_tokens
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_col = cols < features

    if grad_input is not None:
        adapter = 0
        if index is not None:
            adapter = tl.load(index + sample)
        factor = tl.load(scale + adapter * features + cols, mask=is_col, other=0).to(WIDE)
    if center is not None:
        middle = tl.load(center + cols, mask=is_col, other=0).to(WIDE)
    scale_sum = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    shift_sum = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    for start in range(0, tl.minimum(chunk_tokens, tokens - first), BLOCK_T):
        rows = first + start + tl.arange(0, BLOCK_T)
        inside = (rows < tokens)[:, None] & is_col[None, :]
        rows = rows.to(tl.int64)
        g = tl.load(grad + sample * grad_sample + rows[:, None] * grad_token + cols[None, :], mask=inside, other=0)
        g = g.to(WIDE)
        if grad_input is not None:
            target = grad_input + (sample * tokens + rows)[:, None] * features + cols[None, :]
            tl.store(target, (g * factor[None, :]).to(grad_input.dtype.element_ty), mask=inside)
        if scale_sums is not None:
            values = tl.load(x + sample * x_sample + rows[:, None] * x_token + cols[None, :], mask=inside, other=0)
            values = values.to(WIDE)
            if center is not None:
                values -= middle[None, :]
            scale_sum += g * values
        if shift_sums is not None:
            shift_sum += g
    sums = program.to(tl.int64) * features + cols
    if scale_sums is not None:
        tl.store(scale_sums + sums, tl.sum(scale_sum, 0), mask=is_col)
    if shift_sums is not None:
        tl.store(shift_sums + sums, tl.sum(shift_sum, 0), mask=is_col)


# total[a, f] = sum over the chunks whose sample has index a of sums[chunk, f]
@triton.jit(do_not_specialize=["rows", "chunks"])
def _add_chunks_kernel(
    scale_sums,
    shift_sums,
    index,
    scale_total,
    shift_total,
    rows,
    chunks,
    features,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    adapter = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_col = cols < features
    scale_sum = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    shift_sum = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        own = row < rows
        if index is not None:
            own &= tl.load(index + row // chunks, mask=own, other=-1) == adapter
        offsets = row.to(tl.int64)[:, None] * features + cols[None, :]
        inside = own[:, None] & is_col[None, :]
        if scale_sums is not None:
            scale_sum += tl.load(scale_sums + offsets, mask=inside, other=0)
        if shift_sums is not None:
            shift_sum += tl.load(shift_sums + offsets, mask=inside, other=0)
    if scale_sums is not None:
        tl.store(scale_total + adapter * features + cols, tl.sum(scale_sum, 0), mask=is_col)
    if shift_sums is not None:
        tl.store(shift_total + adapter * features + cols, tl.sum(shift_sum, 0), mask=is_col)


def scale_shift(x: Tensor, scale: Tensor | None, shift: Tensor | None, index: Tensor | None) -> Tensor:
    """``x * scale[index][:, None] + shift[index][:, None]``, computed in at least fp32 and rounded once.

    Args:
        x: (samples, tokens, features), any strides; copied first if the last is not 1.
        scale: (adapters, features).
        shift: (adapters, features).
        index: (samples,), int64: the adapter of each sample, below ``adapters``, which is not checked. None where
            there is one adapter.

    Returns:
        (samples, tokens, features), contiguous, in the dtype of ``x``.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    x = dense_rows(x)
    if index is None and x.is_contiguous():
        x = x.view(1, -1, x.shape[-1])
    samples, tokens, features = x.shape
    block_t, block_f = min(_TOKENS, power_of_two(tokens)), min(_FEATURES, power_of_two(features))
    chunks = blocks(tokens, block_t)
    with torch.cuda.device_of(x):
        _scale_shift_kernel[(samples * chunks, blocks(features, block_f))](
            x,
            dense(scale),
            dense(shift),
            dense(index),
            out,
            tokens,
            chunks,
            features,
            x.stride(0),
            x.stride(1),
            WIDE=TRITON_DTYPE[wide_dtype(x, scale, shift)],
            BLOCK_T=block_t,
            BLOCK_F=block_f,
        )
    return out


def scale_shift_backward(
    grad: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    adapters: int,
    *,
    center: Tensor | None = None,
    needs_input: bool,
    needs_scale: bool,
    needs_shift: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`scale_shift`, in one pass over ``grad`` and ``x``; None for one that is not needed.

    Args:
        grad: (samples, tokens, features), any strides; copied first if the last is not 1.
        x: likewise; read only for the gradient of scale.
        scale: (adapters, features); read only for the gradient of the input.
        index: (samples,), int64: the adapter of each sample. None where there is one adapter.
        adapters: how many there are. Those without a sample get gradients of zero.
        center: (features,), subtracted from ``x`` in the gradient of scale.

    Returns:
        ``grad * scale[index][:, None]`` in the dtype of ``grad``, which is ``grad`` itself without a scale; then, per
        adapter, the sums over its tokens of ``grad * (x - center)`` and of ``grad``: (adapters, features) in fp32,
        fp64 where ``grad``, ``x`` or ``scale`` is.
    """
    x = x if needs_scale else None
    center = center if needs_scale else None
    wide = wide_dtype(grad, x, scale, center)
    grad_input = grad if needs_input else None
    features = grad.shape[-1]
    scale_total, shift_total = (
        torch.empty((adapters, features), dtype=wide, device=grad.device) if need else None
        for need in (needs_scale, needs_shift)
    )
    if not grad.numel():
        for total in (scale_total, shift_total):
            if total is not None:
                total.zero_()
        return grad_input, scale_total, shift_total
    scales_input = needs_input and scale is not None
    if not needs_scale and not needs_shift:
        return (scale_shift(grad, scale, None, index) if scales_input else grad_input), None, None

    if scales_input:
        grad_input = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    grad = dense_rows(grad)
    x = None if x is None else dense_rows(x)
    index = dense(index)
    if index is None and grad.is_contiguous() and (x is None or x.is_contiguous()):
        grad = grad.view(1, -1, features)
        x = None if x is None else x.view(1, -1, features)
    samples, tokens, _ = grad.shape
    chunk_tokens = tokens_per_chunk(samples * tokens)
    chunks = blocks(tokens, chunk_tokens)
    rows = samples * chunks
    scale_sums, shift_sums = (
        torch.empty((rows, features), dtype=wide, device=grad.device) if need else None
        for need in (needs_scale, needs_shift)
    )
    block_f = min(_FEATURES_BACKWARD, power_of_two(features))
    with torch.cuda.device_of(grad):
        _backward_kernel[(rows, blocks(features, block_f))](
            grad,
            x,
            dense(scale) if scales_input else None,
            dense(center),
            index,
            grad_input if scales_input else None,
            scale_sums,
            shift_sums,
            tokens,
            chunks,
            chunk_tokens,
            features,
            grad.stride(0),
            grad.stride(1),
            0 if x is None else x.stride(0),
            0 if x is None else x.stride(1),
            WIDE=TRITON_DTYPE[wide],
            BLOCK_T=min(_TOKENS, power_of_two(tokens)),
            BLOCK_F=block_f,
        )
        _add_chunks_kernel[(adapters, blocks(features, _FEATURES_ADDED))](
            scale_sums,
            shift_sums,
            index,
            scale_total,
            shift_total,
            rows,
            chunks,
            features,
            WIDE=TRITON_DTYPE[wide],
            BLOCK_R=_CHUNKS_ADDED,
            BLOCK_F=_FEATURES_ADDED,
        )
    return grad_input, scale_total, shift_total
