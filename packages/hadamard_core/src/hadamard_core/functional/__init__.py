"""What the Hadamard family computes, as ops of PyTorch with gradients that cost no third matrix product.

* :func:`scaled_linear`: a frozen projection with its input and output scaled and shifted (HUT, Hadamard adapter, ...);
* :func:`scale_shift`: activations scaled and shifted;
* :func:`low_rank_linear`: a frozen projection with a low-rank update (LoRA, VeRA).

Each is an op of ``torch.library`` (``torch.ops.hadamard``) with rules for shapes, autograd and batching, so that
``torch.compile(fullgraph=True)``, ``torch.export``, autocast, gradient checkpointing and ``torch.func`` go through.
"""

from hadamard_core.functional.derived import VectorRule, derived_scaled_linear
from hadamard_core.functional.low_rank_linear import LowRankCompute, low_rank_linear, prefers_composing
from hadamard_core.functional.primitives import scaled_weight
from hadamard_core.functional.scale_shift import scale_shift
from hadamard_core.functional.scaled_linear import (
    Compute,
    Slices,
    prefers_weight,
    scale_in_of_parts,
    scaled_linear,
)

__all__ = [
    "Compute",
    "LowRankCompute",
    "Slices",
    "VectorRule",
    "derived_scaled_linear",
    "low_rank_linear",
    "prefers_composing",
    "prefers_weight",
    "scale_in_of_parts",
    "scale_shift",
    "scaled_linear",
    "scaled_weight",
]
