"""Simple densities to set beside a model's, in the same units on the same items: a mixture of Gaussians.

Of continuous data it is a density in their units. Integers are dequantised uniformly, in training once and in scoring
by the mean over a few draws, which bounds the log-probability from below, as the model's uniform dequantisation does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.evaluation.methods import unit
from sdediff.extras import extra

COUNTS = (1, 2, 4, 8, 16)
"""Numbers of Gaussians that are tried."""
MOST_ROWS, MOST_DIMENSIONS = 20_000, 1024
"""Most items of a fit, drawn at random, and most dimensions, whose covariances are full."""

_DRAWS = 4  # of the dequantisation of a scored item
_HELD_OUT = 5  # every fifth row, to choose the number of Gaussians
_FIT, _SCORE = 2, 3  # streams of the seed's random numbers


@dataclass(frozen=True)
class Baseline:
    """A fitted density.

    Attributes:
        log_prob: function from rows ``(n, D)`` to their log-densities, nats ``(n,)``.
        description: description in a few words.
        discrete: whether the data are integers.
        seed: seed of the dequantisation.
    """

    log_prob: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    description: str
    discrete: bool
    seed: int

    def values(self, items: Tensor) -> NDArray[np.float64]:
        """Return the figures of items ``(n, *shape)`` in the unit of their evaluation, nats or bits/dim ``(n,)``.

        Raises:
            ValueError: for integers where the density is of continuous data, and the reverse.
        """
        if items.is_floating_point() == self.discrete:
            raise ValueError("the baseline's training data and these are of two kinds, integers and continuous data")
        rows = _rows(items)
        if not self.discrete:
            return self.log_prob(rows)
        generator = np.random.default_rng((self.seed % (1 << 64), _SCORE))
        draws = [self.log_prob(rows + generator.random(rows.shape)) for _ in range(_DRAWS)]
        cost: NDArray[np.float64] = -np.mean(draws, axis=0) * unit(items)[2]
        return cost


def fit_mixture(items: Tensor, seed: int = 0) -> Baseline:
    """Fit a mixture of Gaussians with full covariances, as many as give held-out rows the largest likelihood.

    Columns are standardised, and the density is that of the data as they are. The number is chosen of ``COUNTS`` with a
    fifth of the rows held out, and the mixture then fitted to all.

    Args:
        items: training data, integers or floats ``(n, *shape)``.
        seed: seed of the draws and of the fit.

    Raises:
        ValueError: for too many dimensions or too few items, or if scikit-learn is not installed.

    >>> data = sdediff.analytic.Gaussian([2.0, 0.0], 0.25)
    >>> sdediff.evaluation.fit_mixture(data.sample(500)).description
    '1 Gaussian with full covariances, fitted to 500 items'
    """
    dim, generator = items[0].numel(), np.random.default_rng((seed % (1 << 64), _FIT))
    if dim > MOST_DIMENSIONS:
        raise ValueError(f"the baseline gmm takes at most {MOST_DIMENSIONS:,} dimensions, not {dim:,}")
    if len(items) < 2 * _HELD_OUT:
        raise ValueError(f"the baseline gmm needs at least {2 * _HELD_OUT} training items, not {len(items)}")
    rows = _rows(items[torch.from_numpy(generator.permutation(len(items))[:MOST_ROWS])])
    discrete = not items.is_floating_point()
    rows = rows + generator.random(rows.shape) if discrete else rows
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale[scale == 0.0] = 1.0
    standard = (rows - mean) / scale
    kept = np.arange(len(rows)) % _HELD_OUT > 0
    chances = {count: _held_out(standard[kept], standard[~kept], count, seed) for count in COUNTS}
    count = max(chances, key=lambda each: chances[each])
    mixture, volume = _fit(standard, count, seed), float(np.log(scale).sum())

    def log_prob(x: NDArray[np.float64]) -> NDArray[np.float64]:
        density: NDArray[np.float64] = mixture.score_samples((x - mean) / scale) - volume
        return density

    plural = "s" if count > 1 else ""
    text = f"{count} Gaussian{plural} with full covariances, fitted to {len(rows):,} items"
    return Baseline(log_prob, text, discrete, seed)


BASELINES: dict[str, Callable[[Tensor, int], Baseline]] = {"gmm": fit_mixture}
"""Fits of simple densities to training data, by name."""


def _rows(items: Tensor) -> NDArray[np.float64]:
    return items.reshape(len(items), -1).double().numpy()


def _held_out(train: NDArray[np.float64], rest: NDArray[np.float64], count: int, seed: int) -> float:
    """Return the mean log-likelihood of held-out rows; minus infinity where a mixture of that many has no fit."""
    if count > len(train):
        return -math.inf
    try:
        return float(_fit(train, count, seed).score(rest))
    except ValueError:  # a covariance without inverse
        return -math.inf


def _fit(rows: NDArray[np.float64], count: int, seed: int) -> Any:
    with extra("train", "the baseline gmm needs"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture short of its optimum is still a density
        return GaussianMixture(count, random_state=seed % (1 << 32)).fit(rows)
