"""A projection adapted by HUT.

Paper's symbols (eq. 8 to 10) and where they are: M_A is ``hut_A``, M_B is ``hut_B``, gamma is ``hut_gamma``, beta is
``hut_beta``; m_A, the mean of M_A over r, becomes ``scale_in``, and gamma times m_B ``scale_out``. The paper does not
say what happens to the projection's own bias; here it is added unscaled, as in the base model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hadamard_core.layer import ScaledLinear, Vectors
from hut.config import HutConfig


class HutLinear(ScaledLinear):
    """``y = ((x * m_A) W^T) * gamma * m_B + bias + beta``.

    For each adapter ``hut_A`` holds (in_features, r), ``hut_B`` (r, out_features), ``hut_gamma`` and ``hut_beta``
    (out_features,). On slices of a fused projection ``hut_A`` is (slices, in_features, r), and the others lay the
    slices' output features side by side.
    """

    adapter_layer_names = ("hut_A", "hut_B", "hut_gamma", "hut_beta")

    def create_parameters(self, adapter_name: str, config: HutConfig, sizes: Sequence[int]) -> None:
        slices = () if self.slices[adapter_name] is None else (len(sizes),)
        features = sum(sizes)
        spread = 0.0 if config.init_weights else 0.2
        self.hut_A[adapter_name] = _around(1.0, spread, *slices, self.in_features, config.r)
        self.hut_B[adapter_name] = _around(1.0, spread, config.r, features)
        if config.scale:
            self.hut_gamma[adapter_name] = _around(1.0, spread, features)
        if config.shift:
            self.hut_beta[adapter_name] = _around(0.0, spread, features)

    def vectors(self, adapter_name: str) -> list[Vectors]:
        scale_in, scale_out, shift = self._over_slices(adapter_name)
        slices = self.slices[adapter_name]
        if slices is None:
            return [Vectors(scale_in, scale_out, shift)]
        sizes = [own.size(self.out_features) for own in slices]
        shifts = [None] * len(slices) if shift is None else shift.split(sizes)
        return [Vectors(*each) for each in zip(scale_in, scale_out.split(sizes), shifts, strict=True)]

    def _over_slices(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """m_A, gamma * m_B, and beta (None if it is not used), slices side by side as in the parameters."""
        scale_in, scale_out = _Scales.apply(
            self.hut_A[adapter_name], self.hut_B[adapter_name], self.hut_gamma.get(adapter_name)
        )
        return scale_in, scale_out, self.hut_beta.get(adapter_name)

    @torch.no_grad()
    def compact(self, adapter_name: str) -> None:
        """Replaces M_A and M_B by their means, and gamma by its product with m_B; see :meth:`HutModel.compact`."""
        scale_in, scale_out, _ = self._over_slices(adapter_name)
        trains = self.hut_A[adapter_name].requires_grad
        self.hut_A[adapter_name] = nn.Parameter(scale_in[..., None], requires_grad=trains)
        self.hut_B[adapter_name] = nn.Parameter(scale_out[None], requires_grad=trains)
        if adapter_name in self.hut_gamma:
            del self.hut_gamma[adapter_name]


class _Scales(torch.autograd.Function):
    """m_A and gamma * m_B: one node of autograd in place of six, which a layer of few tokens would notice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix_a: Tensor, matrix_b: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
        mean_b = _mean(matrix_b, 0)
        return _mean(matrix_a, -1), mean_b if gamma is None else mean_b * gamma

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        matrix_a, matrix_b, gamma = inputs
        ctx.ranks = matrix_a.shape[-1], matrix_b.shape[0]
        ctx.save_for_backward(matrix_b, gamma)

    @staticmethod
    def backward(ctx, grad_in: Tensor, grad_out: Tensor):
        matrix_b, gamma = ctx.saved_tensors
        rank_a, rank_b = ctx.ranks
        of_a = (grad_in / rank_a).unsqueeze(-1).expand(*grad_in.shape, rank_a)
        of_b = ((grad_out if gamma is None else grad_out * gamma) / rank_b).expand(rank_b, *grad_out.shape)
        return of_a, of_b, None if gamma is None else grad_out * _mean(matrix_b, 0)


def _around(center: float, spread: float, *shape: int) -> nn.Parameter:
    values = torch.full(shape, center)
    return nn.Parameter(values + spread * torch.randn(shape) if spread else values)


def _mean(matrix: Tensor, dim: int) -> Tensor:
    """The mean, exactly 1 for a matrix of ones.

    ``Tensor.mean``, and on a GPU division by a number, may multiply by the reciprocal of the count, which for some
    counts does not bring r ones back to one.
    """
    return matrix.sum(dim) / matrix.new_full((1,), matrix.shape[dim])
