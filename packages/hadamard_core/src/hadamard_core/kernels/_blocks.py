"""What the launches of all kernels have in common: dtypes, strides and how tokens are cut into chunks."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

TRITON_DTYPE = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# Sums over tokens have two stages. More chunks than this make the second stage long, and it runs on few programs;
# chunks of fewer tokens than this make the partial sums a noticeable share of the traffic.
_MOST_CHUNKS = 1024
_FEWEST_TOKENS = 64


def wide_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to multiply and add up in: fp64 if one of these is, else fp32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below ``least``."""
    return 1 << max(least - 1, 0).bit_length()


def blocks(length: int, size: int) -> int:
    """How many blocks of ``size`` cover ``length``."""
    return -(-length // size)


def tokens_per_chunk(tokens: int) -> int:
    """A power of two from the shape alone, so that sums are added in the same order in every run."""
    return max(_FEWEST_TOKENS, power_of_two(blocks(tokens, _MOST_CHUNKS)))


def dense_rows(tensor: Tensor) -> Tensor:
    """``tensor`` with a last stride of 1, copied only if it has another."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
