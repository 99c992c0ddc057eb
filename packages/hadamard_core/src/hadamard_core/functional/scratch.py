"""Memory for what an op computes and uses up before it returns.

On a CPU, new memory of some MiB costs its page faults, as much as the pass that fills it. A scaled weight or a scaled
input is read by one product and gone, so that one piece of memory a thread can serve all layers; it also stays in the
cache. A GPU has a caching allocator of its own.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

LARGEST_BYTES = 128 * 2**20
"""The most that a thread keeps for a dtype; what needs more gets new memory."""

_thread = threading.local()


def scratch_like(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A tensor of the shape and strides of ``tensor``, which the next call on this thread hands out again.

    Returns:
        values are arbitrary; None where new memory is as good or has to do: on a GPU, for more than ``LARGEST_BYTES``,
        and for strides that leave gaps.
    """
    if not tensor.is_cpu or not (tensor.is_contiguous() or tensor.t().is_contiguous()):
        return None
    size = tensor.numel()
    buffers: dict[torch.dtype, Tensor] = vars(_thread)
    buffer = buffers.get(dtype)
    if buffer is None or buffer.numel() < size:
        if size * dtype.itemsize > LARGEST_BYTES:
            return None
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            buffers[dtype] = buffer = torch.empty(size, dtype=dtype, device="cpu")
    return buffer.as_strided(tensor.shape, tensor.stride())
