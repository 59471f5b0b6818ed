"""Distances between samples, of common starts or as draws of two distributions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.numerics import flatten, sum_features, wide


class Errors(NamedTuple):
    """RMS error over samples and dimensions, and the median over samples of the RMS error of each."""

    rms: float
    median: float

    @staticmethod
    def of(x: Tensor, truth: Tensor) -> Errors:
        """Compute the errors of states ``(n, *shape)``."""
        squared = wide(sum_features((x - truth).square())) / math.prod(x.shape[1:])
        return Errors(float(squared.mean().sqrt()), float(squared.sqrt().median()))


def energy_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the energy distance from ``n`` draws of each of two distributions, and its jackknife standard error.

    Draw k of one may depend on draw k of the other, as for a common start: such pairs are left out, so that the
    estimate is unbiased (and may be negative for similar distributions).

    Args:
        x: draws of one distribution, ``(n, *shape)``.
        y: draws of the other, ``(n, *shape)``.

    Returns:
        The distance as a share of ``2 E|X - Y|``, and its standard error.
    """
    u, v, n = flatten(x).double(), flatten(y).double(), len(x)
    cross = torch.cdist(u, v)
    cross = cross + cross.T
    pairs = (cross - torch.cdist(u, u) - torch.cdist(v, v)).fill_diagonal_(0.0)
    total, rows, scale = pairs.sum(), pairs.sum(dim=1), (cross.sum() - cross.trace()) / (n * (n - 1))
    without = (total - 2.0 * rows) / ((n - 1) * (n - 2))
    error = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    return float(total / (n * (n - 1)) / scale), error / float(scale)
