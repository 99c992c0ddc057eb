"""The gradient of scale_out from the layer's result, with the product taken anew for columns where that is inaccurate.

The device itself decides which columns those are. The launches are the same for any answer: where no column needs its
product, the programs that would compute it end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._blocks import TRITON_DTYPE, blocks, dense, dense_rows, power_of_two, tokens_per_chunk, wide_dtype

# Tile of the sums over grad and y: up to four running sums beside two tiles have to stay in registers.
_TOKENS_SUMMED = 16
_FEATURES_SUMMED = 128
# Tile of the second stages, which read partial sums: narrow, so that there are programs for most of the device.
_CHUNKS_ADDED = 32
_FEATURES_ADDED = 64
# One program numbers the columns, this many at a time.
_COLUMNS_NUMBERED = 1024
# Tokens, columns and inputs of a tile of the product: three stages of it fit the shared memory of every GPU with
# tensor cores, in fp32 as well. In fp64 the tile is multiplied elementwise, tokens x inputs x columns in registers.
_TILE = (64, 32, 32)
_TILE_FP64 = (16, 16, 16)


# For each chunk of tokens and each block of columns, with product = y - center:
#   sums = sum of grad * product, grad [, grad^2, (grad * product)^2]    sums: (2 or 4, chunks, columns)
@triton.jit(do_not_specialize=["tokens", "chunk_tokens"])
def _sums_kernel(
    grad,
    y,
    center,
    sums,
    tokens,
    chunk_tokens,
    features,
    grad_token,
    y_token,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_col = cols < features
    first = tl.program_id(0) * chunk_tokens
    if center is not None:
        middle = tl.load(center + cols, mask=is_col, other=0).to(WIDE)
    dots = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    total = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    grad_squares = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    dot_squares = tl.full((BLOCK_T, BLOCK_F), 0, WIDE)
    for start in range(0, tl.minimum(chunk_tokens, tokens - first), BLOCK_T):
        rows = first + start + tl.arange(0, BLOCK_T)
        inside = (rows < tokens)[:, None] & is_col[None, :]
        rows = rows.to(tl.int64)[:, None]
        g = tl.load(grad + rows * grad_token + cols[None, :], mask=inside, other=0).to(WIDE)
        product = tl.load(y + rows * y_token + cols[None, :], mask=inside, other=0).to(WIDE)
        if center is not None:
            product -= middle[None, :]
        dot = g * product
        dots += dot
        total += g
        if center is not None:
            grad_squares += g * g
            dot_squares += dot * dot
    plane = tl.num_programs(0).to(tl.int64) * features
    target = sums + chunk * features + cols
    tl.store(target, tl.sum(dots, 0), mask=is_col)
    tl.store(target + plane, tl.sum(total, 0), mask=is_col)
    if center is not None:
        tl.store(target + 2 * plane, tl.sum(grad_squares, 0), mask=is_col)
        tl.store(target + 3 * plane, tl.sum(dot_squares, 0), mask=is_col)


# gradient = sum of grad * product / scale_out    total = sum of grad
# flag = |scale_out| < SMALLEST_DIVISOR, or center != 0 and |center| ||grad|| >= LARGEST_CENTER ||grad * product||
@triton.jit(do_not_specialize=["chunks"])
def _divide_kernel(
    sums,
    scale_out,
    center,
    gradient,
    total,
    flags,
    chunks,
    features,
    SMALLEST_DIVISOR: tl.constexpr,
    LARGEST_CENTER: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    cols = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_col = cols < features
    dots = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    grads = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    grad_squares = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    dot_squares = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
    plane = chunks.to(tl.int64) * features
    for start in range(0, chunks, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < chunks)[:, None] & is_col[None, :]
        source = sums + rows.to(tl.int64)[:, None] * features + cols[None, :]
        dots += tl.load(source, mask=inside, other=0)
        grads += tl.load(source + plane, mask=inside, other=0)
        if center is not None:
            grad_squares += tl.load(source + 2 * plane, mask=inside, other=0)
            dot_squares += tl.load(source + 3 * plane, mask=inside, other=0)
    value = tl.sum(dots, 0)
    flag = cols < 0
    if center is not None:
        middle = tl.abs(tl.load(center + cols, mask=is_col, other=0).to(WIDE))
        norm = tl.sqrt(tl.sum(grad_squares, 0))
        norm_of_dots = tl.sqrt(tl.sum(dot_squares, 0))
        flag = (middle != 0) & (middle * norm >= LARGEST_CENTER * norm_of_dots)
    if scale_out is not None:
        divisor = tl.load(scale_out + cols, mask=is_col, other=1).to(WIDE)
        tiny = tl.abs(divisor) < SMALLEST_DIVISOR
        value = value / tl.where(tiny, 1.0, divisor)
        flag = flag | tiny
    tl.store(gradient + cols, value, mask=is_col)
    tl.store(total + cols, tl.sum(grads, 0), mask=is_col)
    if flags is not None:
        tl.store(flags + cols, flag.to(tl.int32), mask=is_col)


# columns = the flagged ones, in order, and behind them, at columns[features], how many there are
@triton.jit
def _number_kernel(flags, columns, features, BLOCK: tl.constexpr):
    count = tl.full((1,), 0, tl.int32)
    for start in range(0, features, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        flag = tl.load(flags + cols, mask=cols < features, other=0)
        tl.store(columns + count + tl.cumsum(flag, 0) - flag, cols, mask=flag != 0)
        count += tl.sum(flag, 0)
    tl.store(columns + features + tl.arange(0, 1), count)


# For each chunk of tokens and the flagged columns c, with W'[c, i] = weight[c, i] * scale_in[(c // size) % PARTS, i]:
#   sums[chunk, number of c] = sum over t in chunk of grad[t, c] * sum over i of x[t, i] * W'[c, i]
@triton.jit(do_not_specialize=["tokens", "chunk_tokens"])
def _product_kernel(
    grad,
    x,
    weight,
    scale_in,
    columns,
    sums,
    tokens,
    chunk_tokens,
    out_features,
    in_features,
    size,
    grad_token,
    x_token,
    weight_out,
    weight_in,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    DOT: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    count = tl.load(columns + out_features)
    first_number = tl.program_id(0) * BLOCK_C
    if first_number < count:
        numbers = first_number + tl.arange(0, BLOCK_C)
        own = numbers < count
        cols = tl.load(columns + numbers, mask=own, other=0)
        weight_rows = weight + cols.to(tl.int64)[None, :] * weight_out
        scale_rows = (cols // size % PARTS)[None, :] * in_features
        chunk = tl.program_id(1)
        first = chunk * chunk_tokens
        total = tl.full((BLOCK_C,), 0, WIDE)
        for start in range(0, tl.minimum(chunk_tokens, tokens - first), BLOCK_T):
            rows = first + start + tl.arange(0, BLOCK_T)
            is_row = (rows < tokens)[:, None]
            rows = rows.to(tl.int64)[:, None]
            if ELEMENTWISE:
                product = tl.full((BLOCK_T, BLOCK_C), 0, tl.float64)
            else:
                product = tl.full((BLOCK_T, BLOCK_C), 0, tl.float32)
            for at in range(0, in_features, BLOCK_I):
                i = at + tl.arange(0, BLOCK_I)
                is_i = i < in_features
                a = tl.load(x + rows * x_token + i[None, :], mask=is_row & is_i[None, :], other=0)
                inside = is_i[:, None] & own[None, :]
                b = tl.load(weight_rows + i.to(tl.int64)[:, None] * weight_in, mask=inside, other=0)
                if scale_in is not None:
                    b = b.to(WIDE) * tl.load(scale_in + scale_rows + i[:, None], mask=inside, other=0).to(WIDE)
                b = b.to(a.dtype)
                if ELEMENTWISE:
                    product += tl.sum(a[:, :, None] * b[None, :, :], 1)
                else:
                    product = tl.dot(a.to(DOT), b.to(DOT), product, input_precision="ieee")
            g = tl.load(grad + rows * grad_token + cols[None, :], mask=is_row & own[None, :], other=0).to(WIDE)
            total += tl.sum(g * product.to(WIDE), 0)
        tl.store(sums + chunk.to(tl.int64) * out_features + numbers, total, mask=own)


# gradient[c] = sum over chunks of sums[chunk, number of c]
@triton.jit(do_not_specialize=["chunks"])
def _replace_kernel(
    sums,
    columns,
    gradient,
    chunks,
    features,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    count = tl.load(columns + features)
    first = tl.program_id(0) * BLOCK_F
    if first < count:
        numbers = first + tl.arange(0, BLOCK_F)
        own = numbers < count
        value = tl.full((BLOCK_R, BLOCK_F), 0, WIDE)
        for start in range(0, chunks, BLOCK_R):
            rows = start + tl.arange(0, BLOCK_R)
            inside = (rows < chunks)[:, None] & own[None, :]
            value += tl.load(sums + rows.to(tl.int64)[:, None] * features + numbers[None, :], mask=inside, other=0)
        tl.store(gradient + tl.load(columns + numbers, mask=own, other=0), tl.sum(value, 0), mask=own)


def grad_of_scale_out(
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    center: Tensor | None,
    parts: int = 1,
    groups: int = 1,
    *,
    smallest_divisor: float,
    largest_relative_center: float,
) -> tuple[Tensor, Tensor]:
    """colsum(grad * product) for the product in ``y = product * scale_out + center``, and colsum(grad).

    The product is ``(x * scale_in) weight^T``. It is read off y, except in the columns where that is inaccurate: where
    ``|scale_out| < smallest_divisor``, or ``center != 0`` and
    ``|center| * norm(grad) >= largest_relative_center * norm(grad * (y - center))`` over the tokens. In those it is
    computed anew and added up without being rounded.

    Args:
        grad: (tokens, out_features).
        y: (tokens, out_features).
        x: (tokens, in_features).
        weight: (out_features, in_features), any strides; cast to the dtype of ``x`` after scale_in.
        scale_in: (parts, in_features). Output feature ``o`` is of part ``(o // size) % parts`` with
            ``size = out_features // (parts * groups)``.
        scale_out: (out_features,), what the product in ``y`` was multiplied with.
        center: (out_features,), what was added to it.
        smallest_divisor: a Python number, as is ``largest_relative_center``: each value is a kernel of its own.

    Returns:
        The gradient and the total, both (out_features,) in fp32, fp64 where an argument is.
    """
    tokens, out_features = grad.shape
    in_features = x.shape[-1]
    wide = wide_dtype(grad, y, x, weight, scale_in, scale_out, center)

    def empty(*shape: int, dtype: torch.dtype = wide) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=grad.device)

    gradient, total = empty(out_features), empty(out_features)
    if not grad.numel():
        return gradient.zero_(), total.zero_()
    grad, y, scale_out, center = dense_rows(grad), dense_rows(y), dense(scale_out), dense(center)
    chunk_tokens = tokens_per_chunk(tokens)
    chunks = blocks(tokens, chunk_tokens)
    sums = empty(2 if center is None else 4, chunks, out_features)
    may_flag = scale_out is not None or center is not None
    flags = empty(out_features, dtype=torch.int32) if may_flag else None
    wide_in_triton = TRITON_DTYPE[wide]
    block_f = min(_FEATURES_SUMMED, power_of_two(out_features))
    blocks_added = blocks(out_features, _FEATURES_ADDED)
    with torch.cuda.device_of(grad):
        _sums_kernel[(chunks, blocks(out_features, block_f))](
            grad,
            y,
            center,
            sums,
            tokens,
            chunk_tokens,
            out_features,
            grad.stride(0),
            y.stride(0),
            WIDE=wide_in_triton,
            BLOCK_T=_TOKENS_SUMMED,
            BLOCK_F=block_f,
        )
        _divide_kernel[(blocks_added,)](
            sums,
            scale_out,
            center,
            gradient,
            total,
            flags,
            chunks,
            out_features,
            SMALLEST_DIVISOR=smallest_divisor,
            LARGEST_CENTER=largest_relative_center,
            WIDE=wide_in_triton,
            BLOCK_R=_CHUNKS_ADDED,
            BLOCK_F=_FEATURES_ADDED,
        )
        if not may_flag:
            return gradient, total
        columns = empty(out_features + 1, dtype=torch.int32)
        _number_kernel[(1,)](flags, columns, out_features, BLOCK=_COLUMNS_NUMBERED)
        x = dense_rows(x)
        # NumPy has no bf16, so the interpreter's dot takes the same values in fp32.
        dot = x.dtype if x.is_cuda or x.dtype is torch.float64 else torch.float32
        block_t, block_c, block_i = _TILE_FP64 if dot is torch.float64 else _TILE
        _product_kernel[(blocks(out_features, block_c), chunks)](
            grad,
            x,
            weight,
            dense(scale_in),
            columns,
            sums,
            tokens,
            chunk_tokens,
            out_features,
            in_features,
            out_features // (parts * groups),
            grad.stride(0),
            x.stride(0),
            *weight.stride(),
            PARTS=parts,
            WIDE=wide_in_triton,
            DOT=TRITON_DTYPE[dot],
            ELEMENTWISE=dot is torch.float64,
            BLOCK_T=block_t,
            BLOCK_C=block_c,
            BLOCK_I=block_i,
        )
        _replace_kernel[(blocks_added,)](
            sums,
            columns,
            gradient,
            chunks,
            out_features,
            WIDE=wide_in_triton,
            BLOCK_R=_CHUNKS_ADDED,
            BLOCK_F=_FEATURES_ADDED,
        )
    return gradient, total
