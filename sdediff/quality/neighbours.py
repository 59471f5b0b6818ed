"""Precision and recall by nearest neighbours (Kynkäänniemi et al. 2019, eqs. 1 and 2).

The support of a law is taken as the balls about its items that reach to the k-th neighbour of each. Precision is the
share of samples within the data's balls, recall the share of data within the samples'. Items of one law have about
``1 - exp(-k)`` of another draw of it, not 1, so ``perfect`` is measured, between halves of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.quality.measure import HalfSampled
from sdediff.quality.resampling import Statistic, Stream, generator, random_rows

_SPLITS = 8  # of the data into halves, for the figures of perfect samples


def precision_and_recall(within_x: Tensor, within_y: Tensor, between: Tensor, neighbours: int) -> tuple[float, float]:
    """Return precision and recall.

    Args:
        within_x: distances between the samples, ``(n, n)``.
        within_y: distances between the data, ``(m, m)``.
        between: distances from the samples to the data, ``(n, m)``.
        neighbours: number k of neighbours that a ball reaches.
    """
    precision = (between <= _radii(within_y, neighbours)).any(dim=1)
    recall = (between <= _radii(within_x, neighbours)[:, None]).any(dim=0)
    return float(precision.double().mean()), float(recall.double().mean())


def _radii(within: Tensor, neighbours: int) -> Tensor:
    """Return the distance of every item's k-th neighbour; the nearest of all is the item itself."""
    return within.kthvalue(neighbours + 1, dim=1).values


@dataclass(frozen=True)
class PrecisionRecall(HalfSampled):
    """Precision and recall of the supports.

    Attributes:
        neighbours: number of neighbours that a ball reaches.
        most: largest number of samples, and of data, that are taken: all their distances are held.
    """

    most: int = 4000
    neighbours: int = 3

    meanings: ClassVar = {
        "precision": "share of the samples that lie among the data",
        "recall": "share of the data that lie among the samples: low where kinds of items are missing",
    }
    ends: ClassVar = (0.0, 1.0)
    extrapolated: ClassVar = False

    def statistic(self, x: Tensor, y: Tensor, seed: int) -> Statistic:
        """Return precision and recall as a function of rows."""
        within_x, within_y, between = _distances(x, x), _distances(y, y), _distances(x, y)

        def both(a: Tensor, b: Tensor) -> tuple[float, ...]:
            pairs = _part(within_x, a, a), _part(within_y, b, b), _part(between, a, b)
            return precision_and_recall(*pairs, self.neighbours)

        return both

    def perfect(self, y: Tensor, seed: int) -> tuple[float, ...]:
        """Return the figures of one half of the data beside the other, the mean over splits and both directions."""
        within, total = _distances(y, y), 0.0
        for index in range(_SPLITS):
            rows = random_rows(len(y), len(y), generator(seed, Stream.SPLITS, index))
            a, b = rows[: len(y) // 2], rows[len(y) // 2 :]
            pairs = _part(within, a, a), _part(within, b, b), _part(within, a, b)
            total += sum(precision_and_recall(*pairs, self.neighbours)) / (2 * _SPLITS)
        return total, total


def _part(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return distances[rows][:, columns]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return distances ``(n, m)``, computed in double precision, in which near neighbours do not cancel."""
    return torch.cdist(x, y).float()
