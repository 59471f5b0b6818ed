r"""The sliced Wasserstein distance (Bonneel et al. 2015): that of projections on random directions.

    SW^2 = mean over unit vectors u of W_2^2(u . x, u . y)

In one dimension W_2 is the mean square of the difference of the two quantile functions, which for items is a sum over
the intervals between the steps of either, whatever the two numbers of items are. Directions come in orthogonal sets: of
every complete one the mean of ``(u . d)^2`` is ``|d|^2 / D`` exactly, so that a shift d counts that and no random part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdediff.quality.measure import HalfSampled
from sdediff.quality.resampling import Statistic, Stream, generator


def directions(dim: int, least: int, seed: int) -> Tensor:
    """Draw unit vectors in orthogonal sets, at least ``least`` of them, ``(K, dim)`` in float64."""
    rng, sets = generator(seed, Stream.DIRECTIONS, dim), []
    size = min(dim, least)
    for _ in range(-(-least // size)):
        sets.append(torch.linalg.qr(torch.from_numpy(rng.standard_normal((dim, size)))).Q.T)
    return torch.cat(sets)


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distances of sorted numbers ``(K, n)`` and ``(K, m)``, ``(K,)``."""
    n, m = x.shape[1], y.shape[1]
    ends = np.unique(np.concatenate([m * np.arange(n + 1), n * np.arange(m + 1)]))  # of the intervals, times n m
    rows_x, rows_y = (torch.from_numpy(ends[:-1] // step) for step in (m, n))
    widths = torch.from_numpy(np.diff(ends) / (n * m))
    return (x[:, rows_x] - y[:, rows_y]).square() @ widths


@dataclass(frozen=True)
class SlicedWasserstein(HalfSampled):
    """Sliced 2-Wasserstein distance of the features.

    Attributes:
        least: least number of directions.
    """

    most: int = 10_000
    least: int = 128

    meanings: ClassVar = {"sliced_wasserstein": "distance that projections must be moved, in units of the features"}
    ends: ClassVar = (0.0, math.inf)
    extrapolated: ClassVar = True
    power: ClassVar = 0.5

    def statistic(self, x: Tensor, y: Tensor, seed: int) -> Statistic:
        """Return the squared distance as a function of rows."""
        vectors = directions(x.shape[1], self.least, seed)
        sorted_x, sorted_y = (_Sorted(vectors @ items.T) for items in (x, y))

        def distance(a: Tensor, b: Tensor) -> tuple[float, ...]:
            return (float(squared_wasserstein(sorted_x.part(a), sorted_y.part(b)).mean()),)

        return distance

    def perfect(self, y: Tensor, seed: int) -> tuple[float, ...]:
        """Return 0, that of equal laws."""
        return (0.0,)


class _Sorted:
    """Numbers ``(K, n)`` sorted once, of which parts are taken in order."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers, self.order = numbers.sort(dim=1)

    def part(self, rows: Tensor) -> Tensor:
        """Return the sorted numbers of some of the items, ``(K, len(rows))``."""
        taken = torch.zeros(self.numbers.shape[1], dtype=torch.bool)
        taken[rows] = True
        return self.numbers[taken[self.order]].reshape(len(self.numbers), len(rows))
