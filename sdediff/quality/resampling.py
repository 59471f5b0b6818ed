"""Random numbers of a seed, and intervals by half samples.

A half of n items, drawn without replacement, has a mean that differs from the mean of all by the variance
``(2/n - 1/n) s^2 = s^2 / n``: just the error of the mean of all. The spread of a statistic over halves is therefore its
standard error (the delete-d jackknife with d = n/2, Shao & Wu 1989), also for statistics that are not smooth, and for
those of nearest neighbours and classifiers, in which the repeated items of a bootstrap with replacement would find
themselves.

A statistic whose bias falls as 1/n has twice the bias on halves, so that ``2 whole - mean of halves`` has none of that
order: the extrapolation to infinitely many items (Chong & Forsyth 2020, who take more sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

Statistic = Callable[[Tensor, Tensor], tuple[float, ...]]
"""Function of rows of the samples and rows of the data, indices ``(a,)`` and ``(b,)``, to numbers."""


@unique
class Stream(IntEnum):
    """Register of the uses of a seed, so that no two share a stream."""

    HALVES = 0
    DIRECTIONS = 1
    CLASSIFIER = 2
    FILTERS = 3
    CHOICE = 4
    SPLITS = 5


def generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """Return the random numbers of one use of a seed."""
    return np.random.default_rng((seed % (1 << 64), stream, *more))


def random_rows(count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Draw ``size`` of the rows ``0 .. count - 1`` without replacement, in a random order."""
    return torch.from_numpy(rng.permutation(count)[:size])


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; NaN ends where there is none."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampling:
    """Settings of the intervals.

    Attributes:
        count: number of pairs of halves; 0 for no intervals.
        seed: seed of the halves and of everything else that is random.
        confidence: confidence of the intervals.
        report: function called after every pair of halves.
    """

    count: int
    seed: int
    confidence: float
    report: Callable[[], None]

    def halves(self, statistic: Statistic, samples: int, data: int) -> Tensor:
        """Return a statistic of pairs of halves, one of the samples and one of the data, ``(count, numbers)``."""
        values = []
        for index in range(self.count):
            rng = generator(self.seed, Stream.HALVES, index)
            values.append(statistic(*(random_rows(count, count // 2, rng) for count in (samples, data))))
            self.report()
        return torch.tensor(values, dtype=torch.float64)

    def interval(self, whole: float, halves: Tensor, *, extrapolate: bool) -> Interval:
        """Return the interval of a statistic by Student's law, whose scale is the spread over halves.

        Args:
            whole: the statistic of all items.
            halves: the statistic of halves, ``(count,)``.
            extrapolate: whether its bias falls as 1/n, and is taken out.
        """
        if len(halves) < 2:
            return Interval(whole, math.nan, math.nan)
        estimate = 2.0 * whole - float(halves.mean()) if extrapolate else whole
        width = float(scipy.stats.t.ppf(0.5 + 0.5 * self.confidence, len(halves) - 1)) * float(halves.std())
        return Interval(estimate, estimate - width, estimate + width)
