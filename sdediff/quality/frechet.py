r"""The Fréchet distance between Gaussians (Dowson & Landau 1982): on Inception's features, FID (Heusel et al. 2017).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

With factors ``S1 = A A'`` and ``S2 = B B'`` the last trace is the sum of the singular values of ``A' B``: no root of a
matrix is taken that is not symmetric. Eigenvalues below the rounding of the largest count as 0, as the root of 1e-16 is
1e-8: singular covariances, as of fewer items than features, are covariances like others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.quality.measure import HalfSampled
from sdediff.quality.resampling import Statistic


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> float:
    """Return the squared Fréchet distance between two Gaussians.

    Args:
        mean_1: mean of one, float64 ``(D,)``.
        covariance_1: covariance of one, ``(D, D)``.
        mean_2: mean of the other, ``(D,)``.
        covariance_2: covariance of the other, ``(D, D)``.
    """
    common = torch.linalg.svdvals(_factor(covariance_1).T @ _factor(covariance_2)).sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2.0 * common
    return float(distance)


def _factor(covariance: Tensor) -> Tensor:
    """Return a root ``A`` of ``A A'``."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    root: Tensor = vectors * torch.where(values > rounding, values, 0.0).sqrt()
    return root


@dataclass(frozen=True)
class Frechet(HalfSampled):
    """Squared Fréchet distance between the Gaussians with the moments of the features."""

    meanings: ClassVar = {"frechet": "squared distance of means and covariances of the features; 0 is best"}
    ends: ClassVar = (0.0, math.inf)
    extrapolated: ClassVar = True

    def statistic(self, x: Tensor, y: Tensor, seed: int) -> Statistic:
        """Return the distance as a function of rows."""

        def distance(a: Tensor, b: Tensor) -> tuple[float, ...]:
            u, v = x[a], y[b]
            return (frechet_distance(u.mean(dim=0), _covariance(u), v.mean(dim=0), _covariance(v)),)

        return distance

    def perfect(self, y: Tensor, seed: int) -> tuple[float, ...]:
        """Return 0, that of equal laws."""
        return (0.0,)


def _covariance(x: Tensor) -> Tensor:
    return x.T.cov().reshape(x.shape[1], x.shape[1])
