"""The normal distributions that Fréchet distances compare, from rows that come batch by batch."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

# Rows to collect before they are added to the sums: one large matrix product is much faster than many small ones.
SUMMED_ROWS = 1024


@attrs.frozen(eq=False)
class Gaussian:
    """Mean and covariance of features: the normal distribution that a Fréchet distance assumes.

    Attributes:
        mu: mean, (F,) float64.
        sigma: unbiased covariance, (F, F) float64.
    """

    mu: np.ndarray
    sigma: np.ndarray

    def trouble(self) -> str:
        """Return what keeps this from being a normal distribution, in words; empty if nothing does."""
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            return f"a mean of shape {self.mu.shape} with a covariance of shape {self.sigma.shape}"
        for what, array in (("mean", self.mu), ("covariance", self.sigma)):
            if bad := int((~np.isfinite(array)).sum()):
                return f"{bad:,} of {array.size:,} numbers of the {what} are NaN or infinite"
        if not np.allclose(self.sigma, self.sigma.T, rtol=1e-3, atol=1e-6 * float(np.abs(self.sigma).max(initial=0.0))):
            return "the covariance is not symmetric"
        variances = np.diag(self.sigma)
        # Rounding may leave a feature that does not vary slightly below 0.
        if len(variances) and variances.min() < -1e-6 * max(1.0, variances.max()):
            return f"the smallest variance is {variances.min():.4g}, below 0"
        return ""

    def varies(self) -> bool:
        """Return whether the features differ at all, by more than rounding."""
        return bool(np.trace(self.sigma) > 1e-12 * float(self.mu @ self.mu))


class RunningGaussian:
    """Mean and covariance of rows added batch by batch, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows (B, F)."""
        self._held.append(rows)
        if sum(map(len, self._held)) >= SUMMED_ROWS:
            self._sum_up()

    def _sum_up(self) -> None:
        # In float64: FID is a small difference of large numbers, so float32 sums over 50,000 rows would show in it.
        rows = torch.cat(self._held).double()
        self._held = []
        # Only the first rows say how wide they are, and on which device.
        if not self.count:
            width = rows.shape[1]
            self.mean = rows.new_zeros(width)
            self.scatter = rows.new_zeros(width, width)
        total = self.count + len(rows)
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self.mean
        # Scatters around two means add up to the scatter around the joint mean with an outer product of their shift.
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(shift, shift, alpha=self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of all rows added so far, of which there must be at least two."""
        if self._held:
            self._sum_up()
        return Gaussian(self.mean.cpu().numpy(), (self.scatter / (self.count - 1)).cpu().numpy())
