"""``scaled_linear`` whose vectors are computed from parameters, as one node of autograd.

HUT's vectors are means over r. Computed beforehand and given to ``scaled_linear``, they would be kept until the
backward pass, with a node of autograd for each operation, which a layer of few tokens notices. Here the parameters
alone are kept, and the vectors computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hadamard_core.functional.operators import cast_for_autocast, is_plain
from hadamard_core.functional.scaled_linear import (
    Compute,
    check_arguments,
    computes_by_weight,
    forward,
    operator,
    scaled_linear,
)


class VectorRule(Protocol):
    """How ``scale_in``, ``scale_out`` and ``shift`` come from parameters.

    Attributes:
        sources: for each of the three, the places of the parameters that it is computed from.
    """

    sources: tuple[Sequence[int], Sequence[int], Sequence[int]]

    def vectors(self, *parameters: Tensor | None) -> tuple[tuple[Tensor | None, Tensor | None, Tensor | None], Any]:
        """Returns the three vectors, and what :meth:`gradients` wants of how they were computed.

        It consists of operations that autograd knows.
        """

    def gradients(
        self,
        of_vectors: tuple[Tensor | None, Tensor | None, Tensor | None],
        kept: Any,
        *parameters: Tensor | None,
    ) -> Sequence[Tensor | None]:
        """Returns the gradients of the parameters from those of the vectors; None for None."""


def derived_scaled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rule: VectorRule,
    parameters: Sequence[Tensor | None],
    compute: Compute = "auto",
) -> Tensor:
    """Returns :func:`scaled_linear` of the vectors that ``rule`` computes from ``parameters``.

    What is traced, differentiated by ``torch.func``, or called without gradients is ``scaled_linear`` itself.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features), any strides.
        bias: (out_features,), not scaled.
        rule: how the vectors are computed.
        parameters: what from; None where there is none.
        compute: as of :func:`scaled_linear`.

    Raises:
        ValueError: as :func:`scaled_linear`.
    """
    if torch.is_grad_enabled() and is_plain(x):
        return _Derived.apply(rule, compute, cast_for_autocast(x), weight, bias, *parameters)
    return scaled_linear(x, weight, bias, *rule.vectors(*parameters)[0], compute=compute)


class _Derived(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rule: VectorRule, compute: Compute, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters):
        vectors, _ = rule.vectors(*parameters)
        check_arguments(x, weight, bias, *vectors, compute=compute)
        ctx.rule, ctx.by_weight = rule, computes_by_weight(compute, x, weight)
        y, _ = forward(x, weight, bias, *vectors, None, [], 1, 1, ctx.by_weight)
        _, _, _, needs_weight, _, *of_parameters = ctx.needs_input_grad
        ctx.needs = [any(of_parameters[place] for place in places) for places in rule.sources]
        needs_scale_in, needs_scale_out, _ = ctx.needs
        ctx.save_for_backward(
            x if needs_weight or needs_scale_in or needs_scale_out else None,
            weight,
            bias,
            y if needs_scale_out else None,
            *parameters,
        )
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, bias, y, *parameters = ctx.saved_tensors
        _, _, *needs = ctx.needs_input_grad[:5]
        vectors, kept = ctx.rule.vectors(*parameters)
        of_x, of_weight, of_bias, *of_vectors = operator.backward(
            grad, x, weight, bias, *vectors, None, y, [], 1, 1, ctx.by_weight, [*needs, *ctx.needs]
        )
        return None, None, of_x, of_weight, of_bias, *ctx.rule.gradients(of_vectors, kept, *parameters)
