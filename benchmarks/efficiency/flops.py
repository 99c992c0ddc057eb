"""FLOPs by formula, as the HUT paper counts them (Zhang, Zhou, Chen; arXiv 2409.13501, Table 2).

One forward of one adapted matrix, with d = ``in_features``, k = ``out_features``, N = ``tokens``::

    HUT:  (2d - 1) N k + 4 d k + r d + r k
    LoRA: (2d - 1) N k + (2r + 1) d k

Table 2 (0.20 and 0.86 GFLOPs on RoBERTa-large) is the part that does not depend on N, times 48 matrices. It has LoRA
form A B and add it to the weight in every forward. LoRA as people run it computes (x A) B beside x W, which is
``linear_flops(N, d, r) + linear_flops(N, r, k)`` = 2 N r (d + k) more: report both, and say which is which.
"""

from __future__ import annotations

from hadamard_core.accounting import linear_flops


def _paper_product(tokens: int, in_features: int, out_features: int) -> int:
    """The paper's count of the product with the weight, which has one addition less than multiplications."""
    return linear_flops(tokens, in_features, out_features) - tokens * out_features


def hut_flops(tokens: int, in_features: int, out_features: int, r: int) -> int:
    """The paper's count for HUT; with ``tokens=0`` the cost of composing the weight, as in its Table 2."""
    composing = 4 * in_features * out_features + r * (in_features + out_features)
    return _paper_product(tokens, in_features, out_features) + composing


def lora_flops(tokens: int, in_features: int, out_features: int, r: int) -> int:
    """The paper's count for LoRA; with ``tokens=0`` the cost of composing the weight, as in its Table 2."""
    return _paper_product(tokens, in_features, out_features) + (2 * r + 1) * in_features * out_features
