r"""The area under the ROC curve of a score, with the interval of DeLong, DeLong & Clarke-Pearson (1988).

The area is P(X > Y) + P(X = Y) / 2 for the scores X of an anomalous item and Y of another (Mann & Whitney 1947). Its
estimate is the mean over both kinds of their *placements*, the share of the other kind on the right side of an item,
and its variance follows from theirs. Placements are differences of midranks (Sun & Xu 2014), in O(n log n).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from sdediff.likelihood.result import normal_quantile


class Auroc(NamedTuple):
    """The area under a ROC curve.

    Attributes:
        value: the area, in [0, 1].
        standard_error: its standard error; NaN with fewer than two items of either kind.
        anomalous: number of anomalous items.
        others: number of the other items.

    >>> from sdediff.evaluation import auroc
    >>> auroc([3.0, 1.0, 2.0, 1.0], [True, True, False, False]).value
    0.625
    """

    value: float
    standard_error: float
    anomalous: int
    others: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the ends of the confidence interval, DeLong's on the scale of log-odds; NaN without standard error.

        Where the score separates the kinds, that interval is a point. Then the other end is exact and conservative:
        of an area A, ``min(anomalous, others)`` disjoint pairs are all in order with probability A to that power.

        Raises:
            ValueError: unless ``0 < confidence < 1``.
        """
        quantile = normal_quantile(confidence)
        if self.value in (0.0, 1.0):
            bound = (0.5 * (1.0 - confidence)) ** (1.0 / min(self.anomalous, self.others))
            return (bound, 1.0) if self.value == 1.0 else (0.0, 1.0 - bound)
        half = quantile * self.standard_error / (self.value * (1.0 - self.value))
        logit = scipy.special.logit(self.value)
        return float(scipy.special.expit(logit - half)), float(scipy.special.expit(logit + half))


def auroc(scores: ArrayLike, anomalous: ArrayLike) -> Auroc:
    """Return the area under the ROC curve of a score that is large where items are anomalous; ties count half.

    Args:
        scores: scores of the items, ``(n,)``.
        anomalous: whether each item is anomalous, booleans ``(n,)``.

    Raises:
        ValueError: if a score is NaN, the sizes differ, or one kind is missing.

    >>> from sdediff.evaluation import auroc
    >>> low, high = auroc([0.0, 1.0, 2.0], [False, False, True]).interval(0.95)
    >>> round(low, 3), high
    (0.025, 1.0)
    """
    own, others = _placements(scores, anomalous)
    return Auroc(float(own.mean()), _standard_error(own, others), len(own), len(others))


def auroc_difference(scores: ArrayLike, others: ArrayLike, anomalous: ArrayLike) -> tuple[float, float]:
    """Return the area of one score minus that of another on the same items, and its standard error.

    Args:
        scores: one score, ``(n,)``.
        others: the other score, ``(n,)``.
        anomalous: whether each item is anomalous, booleans ``(n,)``.

    Raises:
        ValueError: as :func:`auroc`.

    >>> from sdediff.evaluation import auroc_difference
    >>> auroc_difference([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [False, False, True, True])
    (1.0, 0.0)
    """
    first, second = _placements(scores, anomalous), _placements(others, anomalous)
    own, other = (a - b for a, b in zip(first, second, strict=True))
    return float(own.mean()), _standard_error(own, other)


def _placements(scores: ArrayLike, anomalous: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of others below each anomalous item, and of anomalous items above each other one."""
    score, kind = np.asarray(scores, dtype=np.float64), np.asarray(anomalous, dtype=np.bool_)
    if score.ndim != 1 or score.shape != kind.shape:
        raise ValueError(f"scores and kinds must be of one size (n,), not {score.shape} and {kind.shape}")
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} of {len(score)} scores are NaN and have no rank")
    count, rest = int(kind.sum()), int((~kind).sum())
    if not count or not rest:
        raise ValueError(f"an ROC curve needs items of both kinds, not {count} anomalous and {rest} others")
    ranks = scipy.stats.rankdata(score)
    own = (ranks[kind] - scipy.stats.rankdata(score[kind])) / rest
    return own, 1.0 - (ranks[~kind] - scipy.stats.rankdata(score[~kind])) / count


def _standard_error(own: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    if min(len(own), len(others)) < 2:
        return math.nan
    return math.sqrt(float(own.var(ddof=1)) / len(own) + float(others.var(ddof=1)) / len(others))
