"""What is bound by memory: one pass over activations or weights each.

On CUDA these are kernels in Triton, where it is installed (:mod:`hadamard_core.kernels`). On a CPU, PyTorch has a
fused, parallel loop for ``x * scale + shift`` in 16 bits, and one for the gradients of both vectors in any dtype, with
sums in fp32: batch norm in evaluation mode, with a mean of zero and a variance of one. Its mean is also a way to
subtract a vector from what is summed, without a pass of its own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hadamard_core import kernels
from hadamard_core.functional.operators import cast
from hadamard_core.functional.scratch import scratch_like


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to multiply and add up in: fp64 if one of these is, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@functools.lru_cache(maxsize=64)
def constant(value: float, features: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A vector of one number, to be read only."""
    return torch.full((features,), value, dtype=dtype, device=device)


def scale_shift(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    index: Tensor | None = None,
    *,
    overwrite: bool = False,
    scratch: bool = False,
) -> Tensor:
    """``x * scale + shift`` in one pass, in the dtype of ``x``.

    Args:
        x: (tokens, features).
        scale: (features,); with ``index``, (adapters, features).
        shift: as ``scale``.
        index: (samples,), the adapter of each sample; all samples have equally many tokens.
        overwrite: the result may be written over ``x``, which spares a CPU the page faults of new memory.
        scratch: so does this: the result is gone with the next one that asks for scratch memory.
    """
    if scale is None and shift is None:
        return x
    if kernels.usable(x):
        matrices = (None if vector is None else torch.atleast_2d(vector) for vector in (scale, shift))
        return kernels.scale_shift.scale_shift(_by_sample(x, index), *matrices, index).view(x.shape)
    if index is not None:
        gathered = (None if vector is None else vector[index][:, None] for vector in (scale, shift))
        by_sample = _by_sample(x, index)
        return _elementwise(by_sample, *gathered, by_sample if overwrite else None).view(x.shape)
    if x.dtype in (torch.bfloat16, torch.float16) and x.numel():
        zeros, ones = (constant(value, x.shape[-1], torch.float32, x.device) for value in (0.0, 1.0))
        weight = ones if scale is None else cast(scale, torch.float32)
        bias = zeros if shift is None else cast(shift, torch.float32)
        return torch.native_batch_norm(x.contiguous(), weight, bias, zeros, ones, False, 0.0, 0.0)[0]
    return _elementwise(x, scale, shift, x if overwrite else scratch_like(x, x.dtype) if scratch else None)


def scale_shift_backward(
    grad: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None = None,
    *,
    center: Tensor | None = None,
    needs_input: bool = True,
    needs_scale: bool = True,
    needs_shift: bool = True,
    adapters: int = 1,
    overwrite: bool = False,
    scratch: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of :func:`scale_shift`; None for one that is not needed.

    On CUDA in one pass over ``grad`` and ``x``; on a CPU in one for the vectors and one for the input.

    Args:
        grad: (tokens, features).
        x: (tokens, features); read for the gradient of ``scale`` only.
        scale: (features,); with ``index``, (adapters, features).
        index: (samples,), the adapter of each sample; all samples have equally many tokens.
        center: (features,), subtracted from ``x`` before it is multiplied with ``grad``.
        adapters: how many there are, with ``index``.
        overwrite: the first result may be written over ``grad``.
        scratch: the first result may be scratch memory, as of :func:`scale_shift`.

    Returns:
        ``grad * scale`` in the dtype of ``grad``; the sums over tokens of ``grad * (x - center)`` and of ``grad``, in
        fp32 (fp64 of fp64): (features,), with ``index`` (adapters, features).
    """
    if not (needs_scale or needs_shift):
        of_input = None
        if needs_input:
            of_input = scale_shift(grad, scale, None, index, overwrite=overwrite, scratch=scratch)
        return of_input, None, None
    if kernels.usable(grad):
        found = kernels.scale_shift.scale_shift_backward(
            _by_sample(grad, index),
            None if x is None else _by_sample(x, index),
            None if scale is None else torch.atleast_2d(scale),
            index,
            adapters,
            center=center,
            needs_input=needs_input,
            needs_scale=needs_scale,
            needs_shift=needs_shift,
        )
        of_input, *sums = found
        sums = (sum_ if sum_ is None or index is not None else sum_[0] for sum_ in sums)
        return None if of_input is None else of_input.view(grad.shape), *sums
    if index is not None or not grad.numel():
        return _sums_by_sample(grad, x, scale, index, center, needs_input, needs_scale, needs_shift, adapters)
    wide = accumulation_dtype(grad.dtype)
    grad = grad.contiguous()
    zeros, ones = (constant(value, grad.shape[1], wide, grad.device) for value in (0.0, 1.0))
    _, of_scale, of_shift = _batch_norm_backward(
        grad,
        grad if x is None else x.contiguous(),
        ones,
        zeros if center is None else cast(center, wide),
        ones,
        None,
        None,
        False,
        0.0,
        # Its gradient of the input would be a second pass as well, and one into new memory.
        [False, needs_scale, needs_shift],
    )
    of_input = scale_shift(grad, scale, None, overwrite=overwrite, scratch=scratch) if needs_input else None
    return of_input, of_scale if needs_scale else None, of_shift if needs_shift else None


_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


def _sums_by_sample(
    grad: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    center: Tensor | None,
    needs_input: bool,
    needs_scale: bool,
    needs_shift: bool,
    adapters: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wide = accumulation_dtype(grad.dtype)

    def add_up(product: Tensor) -> Tensor:
        by_sample = _by_sample(product, index).sum(1)
        if index is None:
            return by_sample[0]
        return by_sample.new_zeros(adapters, by_sample.shape[-1]).index_add_(0, index, by_sample)

    of_scale = None
    if needs_scale:
        of_scale = add_up(grad.to(wide) * (x.to(wide) if center is None else x.to(wide) - center))
    of_shift = add_up(grad.to(wide)) if needs_shift else None
    return scale_shift(grad, scale, None, index) if needs_input else None, of_scale, of_shift


def _by_sample(x: Tensor, index: Tensor | None) -> Tensor:
    """(tokens, features) as (samples, tokens, features)."""
    if index is None:
        return x[None]
    return x.reshape(len(index), len(x) // max(len(index), 1), x.shape[-1])


def _elementwise(x: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor | None) -> Tensor:
    """``x * scale + shift``; ``out`` may be written to."""
    dtype, wide = x.dtype, accumulation_dtype(x.dtype)
    scale, shift, out = cast(scale, wide), cast(shift, wide), out if dtype == wide else None
    if scale is None:
        y = torch.add(x, shift, out=out)
    elif shift is None:
        y = torch.mul(x, scale, out=out)
    else:
        y = torch.addcmul(shift, cast(x, wide), scale, out=out)
    return cast(y, dtype)


def scaled_weight(
    weight: Tensor,
    scale_in: Tensor | None,
    scale_out: Tensor | None,
    dtype: torch.dtype | None = None,
    *,
    parts: int = 1,
    groups: int = 1,
    scratch: bool = False,
) -> Tensor:
    """``weight * outer(scale_out, scale_in)``, multiplied in at least fp32, cast once, strides as those of ``weight``.

    Args:
        weight: (out_features, in_features).
        scale_in: (in_features,); of a fused projection, (parts, in_features), a row for each part.
        scale_out: (out_features,).
        dtype: that of the result; the weight's if None.
        parts: number of parts of a fused projection.
        groups: number of groups that each have all parts.
        scratch: the result may be memory that the next one which asks for scratch memory writes over.
    """
    dtype = weight.dtype if dtype is None else dtype
    if scale_in is None and scale_out is None:
        return cast(weight, dtype)
    if kernels.usable(weight):
        matrix = None if scale_in is None else torch.atleast_2d(scale_in)
        return kernels.scaled_weight.scaled_weight(weight, matrix, scale_out, dtype, parts, groups)
    wide = accumulation_dtype(*(scale.dtype for scale in (scale_in, scale_out) if scale is not None), weight.dtype)
    out = scratch_like(weight, wide) if scratch else None
    scaled = weight
    if scale_in is not None:
        if parts == 1:
            scaled = torch.mul(scaled, cast(scale_in, wide).reshape(-1), out=out)
        else:
            layout = (groups, parts, -1)
            by_part = None if out is None else out.unflatten(0, layout)
            scaled = torch.mul(weight.unflatten(0, layout), cast(scale_in, wide)[:, None], out=by_part).flatten(0, 2)
    if scale_out is not None:
        column = cast(scale_out, wide)[:, None]
        # The first product is a tensor of its own, so that the second may be written over it.
        scaled = torch.mul(scaled, column, out=out) if scaled is weight else scaled.mul_(column)
    return cast(scaled, dtype)
