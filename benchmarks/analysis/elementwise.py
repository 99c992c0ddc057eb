"""Least-squares fits of functions that act on each hidden unit by itself, without keeping the tokens.

For every unit the outputs after fine-tuning, y, are fitted by functions of those before, x, with coefficients that all
tokens share. What is fitted is the change y - x, which gives the same functions and loses no digits where the change is
small; since 1, z, z^2, z^3 of the standardised z are the regressors, all functions here are coefficients on them.

Of the matrix [1, z, z^2, z^3, y - x] (tokens, 5) of a unit only the triangle R of its QR decomposition is kept, to
which tokens are added a block at a time. As R is the matrix in another orthogonal basis, it gives coefficients, sums of
squares and sums of any function of that form, exactly as the matrix would; nothing is squared on the way, as it would
be in sums of powers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POWERS = 4
"""Regressors: 1, z, z^2, z^3."""
CHANGE = POWERS
"""The column of y - x."""

DEGREES = {"shift": 0, "linear": 1, "quadratic": 2, "cubic": 3}
"""Function -> its highest power in the change: x + b, w x + b, and polynomials."""

FLAT = 1e-7
"""A unit whose standard deviation is less than this share of its mean is constant: fp32 resolves no more."""

BLOCK = 1024
"""Tokens that are added at once; bounds memory to BLOCK * 5 numbers a unit."""


@dataclass(frozen=True)
class Standard:
    """How x is centred and scaled: z = (x - centre) / scale, each (units,)."""

    centre: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Standard:
        """Returns the standard of some tokens (tokens, units); a unit that does not vary there is only centred."""
        centre, spread = x.mean(dim=0), x.std(dim=0, unbiased=False)
        return cls(centre, torch.where(spread > FLAT * centre.abs(), spread, torch.ones_like(spread)))


class Triangle:
    """All that is kept of the tokens seen: for each unit, R of [1, z, z^2, z^3, y - x].

    Attributes:
        r: (units, 5, 5), float64, upper triangular.
        tokens: how many were seen.
    """

    def __init__(self, standard: Standard) -> None:
        self.standard = standard
        self.r = torch.zeros(len(standard.centre), POWERS + 1, POWERS + 1, dtype=torch.float64)
        self.tokens = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds tokens: outputs before and after, (tokens, units) each."""
        for x_block, y_block in zip(x.double().split(BLOCK), y.double().split(BLOCK), strict=True):
            z = (x_block - self.standard.centre) / self.standard.scale
            columns = torch.stack([z**power for power in range(POWERS)] + [y_block - x_block], dim=-1)
            self.r = torch.linalg.qr(torch.cat([self.r, columns.transpose(0, 1)], dim=1), mode="r").R
        self.tokens += len(x)

    def fit(self, function: str) -> Tensor:
        """Returns the coefficients (units, 4) of one of :data:`DEGREES` that leave the least squares of the change.

        A unit that does not vary, or takes too few values for a power, gets 0 for what it does not determine.
        """
        size = DEGREES[function] + 1
        regressors = self.r[:, :size, :size].clone()
        regressors[self.is_flat(), :, 1:] = 0
        length = regressors.norm(dim=1)
        length = torch.where(length > 0, length, torch.ones_like(length))
        target = self.r[:, :size, CHANGE:]
        scaled = torch.linalg.lstsq(regressors / length[:, None], target, rcond=1e-12, driver="gelsd").solution
        coefficients = torch.zeros(len(self.r), POWERS, dtype=torch.float64)
        coefficients[:, :size] = scaled[..., 0] / length
        return coefficients

    def is_flat(self) -> Tensor:
        """Whether x does not vary, for each unit."""
        spread = self.r[:, 1:, 1].norm(dim=1) * self.standard.scale / max(self.tokens, 1) ** 0.5
        return spread <= FLAT * self.mean_before().abs()

    def constant(self) -> Tensor:
        """Returns the coefficients (units, 4) of the constant nearest to y, its mean."""
        return self.affine(torch.zeros_like(self.standard.centre), self.mean_after())

    def affine(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Returns the coefficients (units, 4) of ``weight * x + bias``, each (units,)."""
        coefficients = torch.zeros(len(self.r), POWERS, dtype=torch.float64)
        coefficients[:, 0] = (weight - 1) * self.standard.centre + bias
        coefficients[:, 1] = (weight - 1) * self.standard.scale
        return coefficients

    def weight_and_bias(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns w and b (units,) of ``w * x + b``, from the coefficients of a linear function."""
        slope = coefficients[:, 1] / self.standard.scale
        return 1 + slope, coefficients[:, 0] - slope * self.standard.centre

    def residual(self, coefficients: Tensor) -> float:
        """Returns the sum over tokens and units of the squares that a function leaves of y."""
        left = self.r[:, :, CHANGE] - torch.einsum("urp,up->ur", self.r[:, :, :POWERS], coefficients)
        return float(left.square().sum())

    def change(self) -> float:
        """Returns the sum over tokens and units of the squares of y - x."""
        return float(self.r[:, :, CHANGE].square().sum())

    def variation(self) -> float:
        """Returns the sum over tokens and units of the squares of y about each unit's mean."""
        return float(self._after()[:, 1:].square().sum())  # the first row is along the column of ones

    def relative_residual(self, coefficients: Tensor) -> float | None:
        """Returns the residual over the squares of the change: 1 without adapting; None if nothing has changed."""
        change = self.change()
        return self.residual(coefficients) / change if change else None

    def r_squared(self, coefficients: Tensor) -> float | None:
        """Returns the share of y's variation about each unit's mean that a function explains; None if there is none."""
        variation = self.variation()
        return 1 - self.residual(coefficients) / variation if variation else None

    def mean_before(self) -> Tensor:
        """Returns the mean of x over tokens, (units,)."""
        return self.standard.centre + self.standard.scale * self._mean(self.r[:, :, 1])

    def mean_after(self) -> Tensor:
        """Returns the mean of y over tokens, (units,)."""
        return self._mean(self._after())

    def mean_fitted(self, coefficients: Tensor) -> Tensor:
        """Returns the mean over tokens of what a function makes of x, (units,)."""
        change = torch.einsum("urp,up->ur", self.r[:, :, :POWERS], coefficients)
        return self.mean_before() + self._mean(change)

    def _after(self) -> Tensor:
        """The column of y: x = centre * 1 + scale * z, plus the change."""
        x = self.standard.centre[:, None] * self.r[:, :, 0] + self.standard.scale[:, None] * self.r[:, :, 1]
        return x + self.r[:, :, CHANGE]

    def _mean(self, column: Tensor) -> Tensor:
        """The mean of a column, (units,): its product with the column of ones, which has a first entry only."""
        return self.r[:, 0, 0] * column[:, 0] / max(self.tokens, 1)
