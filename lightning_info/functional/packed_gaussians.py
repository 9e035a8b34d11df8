r"""Many Gaussians at many points by one matrix product.

With the precision P and the mean m of each, the quadratic form is linear in the products of the coordinates of a point,

.. math:: (z - m)^\top P (z - m) = \sum_{k \ge l} (2 - \delta_{kl}) P_{kl}\, z_k z_l - 2 (Pm)^\top z + m^\top P m ,

so the log densities of all Gaussians at all points are a product over ``d(d+1)/2 + d + 1`` columns, and one more for
the log determinants. Terms cancel in it: :meth:`PackedGaussians.log_density` uses the requested precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedGaussians(NamedTuple):
    """A Gaussian of each of N inputs for each of F folds.

    Attributes:
        mean: ``(F, N, d)``.
        columns: ``(F, N, q)`` float64 as they are made, ``q = d(d+1)/2 + d + 2``, of diagonal covariances ``2d + 2``.
    """

    mean: Tensor
    columns: Tensor

    @classmethod
    def empty(cls, folds: int, inputs: int, d: int, *, full: bool, like: Tensor) -> PackedGaussians:
        """Return empty ones, to be filled by :meth:`put`, on the device of a float64 tensor."""
        width = d * (d + 1) // 2 if full else d
        return cls(like.new_empty(folds, inputs, d), like.new_empty(folds, inputs, width + d + 2))

    @property
    def is_full(self) -> bool:
        """Whether there are correlations; with one dimension it makes no difference."""
        return self.columns.shape[2] != 2 * self.mean.shape[2] + 2

    def put(self, part: slice, mean: Tensor, covariance: Tensor) -> None:
        """Set some inputs: means ``(F, n, d)``, covariances ``(F, n, d, d)`` or variances ``(F, n, d)``."""
        self.mean[:, part] = mean
        d, columns = mean.shape[2], self.columns[:, part]
        width = columns.shape[2] - d - 2
        if covariance.ndim == 3:
            columns[..., :width] = 1 / covariance
            along, log_determinant = mean / covariance, covariance.log().sum(2)
        else:
            root = torch.linalg.cholesky(covariance)
            precision = torch.cholesky_inverse(root)
            log_determinant = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(2)
            along = (precision @ mean[..., None])[..., 0]
            rows, others = torch.tril_indices(d, d, device=mean.device)
            below = precision.mT.flatten(2).index_select(2, rows * d + others)  # symmetric, and contiguous so
            columns[..., :width] = below.mul_(torch.where(rows == others, 1.0, 2.0))
        columns[..., width:-2] = -2 * along
        columns[..., -2] = (along * mean).sum(2)
        columns[..., -1] = log_determinant

    def to(self, dtype: torch.dtype) -> PackedGaussians:
        """Return them with columns of another precision."""
        return self._replace(columns=self.columns.to(dtype))

    def log_density(self, fold: int, z: Tensor, dtype: torch.dtype, wider: float = 1.0) -> Tensor:
        """Return ``log q(z_r | x_j)`` but for a constant, ``(R, N)``.

        Args:
            fold: Fold of the Gaussians.
            z: Points ``(R, d)``.
            dtype: Dtype of the product.
            wider: Factor of the covariances; the constant is another one then.
        """
        rows, d = z.shape
        z = z.to(dtype)
        width = self.columns.shape[2] - d - 2
        point = z.new_empty(rows, width + d + 2)
        if self.is_full:
            start = 0
            for k in range(d):
                torch.mul(z[:, : k + 1], z[:, k : k + 1], out=point[:, start : start + k + 1])
                start += k + 1
        else:
            torch.square(z, out=point[:, :width])
        point[:, width:-2] = z
        point[:, -2:] = 1
        point[:, :-1] /= wider
        return (point @ self.columns[fold].to(dtype).T).mul_(-0.5)
