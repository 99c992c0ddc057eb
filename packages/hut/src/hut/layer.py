"""A projection adapted by HUT.

Paper's symbols (eq. 8 to 10) and where they are: M_A is ``hut_A``, M_B is ``hut_B``, gamma is ``hut_gamma``, beta is
``hut_beta``; m_A, the mean of M_A over r, becomes ``scale_in``, and gamma times m_B ``scale_out``. The paper does not
say what happens to the projection's own bias; here it is added unscaled, as in the base model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hadamard_core.functional import derived_scaled_linear
from hadamard_core.layer import ScaledLinear, Vectors
from hadamard_core.orientation import weight_as_linear
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

    def _over_slices(self, adapter_name: str) -> Vectors:
        """m_A, gamma * m_B, and beta (None if it is not used), slices side by side as in the parameters."""
        vectors, _ = _RULE.vectors(*self._parameters_of(adapter_name))
        return Vectors(*vectors)

    def _parameters_of(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """M_A, M_B, gamma and beta."""
        # Past the attribute access of modules, which would take as long as the rest of a small layer.
        modules = self._modules
        return tuple(modules[name]._parameters.get(adapter_name) for name in self.adapter_layer_names)

    def adapted(self, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
        name = adapter_names[0]
        if len(adapter_names) > 1 or self.slices[name] is not None or self.computes_itself():
            return super().adapted(x, adapter_names)
        base = self.get_base_layer()
        return derived_scaled_linear(
            x, weight_as_linear(base), base.bias, _RULE, self._parameters_of(name), self.compute[name]
        )

    @torch.no_grad()
    def compact(self, adapter_name: str) -> None:
        """Replaces M_A and M_B by their means, and gamma by its product with m_B; see :meth:`HutModel.compact`."""
        scale_in, scale_out, _ = self._over_slices(adapter_name)
        trains = self.hut_A[adapter_name].requires_grad
        self.hut_A[adapter_name] = nn.Parameter(scale_in[..., None], requires_grad=trains)
        self.hut_B[adapter_name] = nn.Parameter(scale_out[None], requires_grad=trains)
        if adapter_name in self.hut_gamma:
            del self.hut_gamma[adapter_name]


class _MeansOverR:
    """m_A and gamma * m_B from M_A, M_B and gamma; beta is what it is."""

    sources = ((0,), (1, 2), (3,))

    def vectors(self, matrix_a: Tensor, matrix_b: Tensor, gamma: Tensor | None, beta: Tensor | None):
        mean_b = _mean(matrix_b, 0)
        return (_mean(matrix_a, -1), mean_b if gamma is None else mean_b * gamma, beta), mean_b

    def gradients(self, of_vectors, mean_b: Tensor, matrix_a: Tensor, matrix_b: Tensor, gamma: Tensor | None, _):
        of_in, of_out, of_shift = of_vectors
        of_a = of_b = of_gamma = None
        # Divided after they are expanded, because autograd would copy what is only expanded.
        if of_in is not None:
            rank = matrix_a.shape[-1]
            of_a = of_in[..., None].expand(*of_in.shape, rank) / rank
        if of_out is not None:
            rank = matrix_b.shape[0]
            of_b = (of_out if gamma is None else of_out * gamma).expand(rank, -1) / rank
            of_gamma = None if gamma is None else of_out * mean_b
        return of_a, of_b, of_gamma, of_shift


_RULE = _MeansOverR()


def _around(center: float, spread: float, *shape: int) -> nn.Parameter:
    values = torch.full(shape, center)
    return nn.Parameter(values + spread * torch.randn(shape) if spread else values)


def _mean(matrix: Tensor, dim: int) -> Tensor:
    """The mean, exactly 1 for a matrix of ones.

    On a GPU, ``Tensor.mean`` and division by a number may multiply by the reciprocal of the count, which for some
    counts does not bring r ones back to one.
    """
    if matrix.device.type == "cpu":
        return matrix.mean(dim)
    return matrix.sum(dim) / matrix.new_full((1,), matrix.shape[dim])
