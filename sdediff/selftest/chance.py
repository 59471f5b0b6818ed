"""What chance may do: limits that an exact law passes with a probability of at most ``FALSE_ALARM``."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import scipy
import torch
from torch import Tensor

from sdediff.analytic import GaussianMixture

FALSE_ALARM = 1e-7
"""Probability that one figure of a right program is out of its limits; of a whole self-test it is below 1e-4."""

DEVIATIONS = -NormalDist().inv_cdf(0.5 * FALSE_ALARM)
"""Standard errors within which the mean of many items is found."""


def gaussian_deviance(x: Tensor, law: GaussianMixture, slack: float = 0.0) -> tuple[float, float]:
    """Return how far mean and covariance of samples are from those of a Gaussian, and the limit of chance.

    Twice the log-likelihood ratio against the Gaussian fitted to the samples ``(n, D)``, which is asymptotically
    chi-square with ``D + D (D + 1) / 2`` degrees of freedom, of non-centrality ``n slack^2`` where a relative error of
    ``slack`` is allowed.
    """
    x = x.double()
    root = torch.linalg.cholesky(law.covariance)
    white = torch.linalg.solve_triangular(root, (x - law.mean).T, upper=False)
    mean, spread = white.mean(dim=1), white.cov(correction=0)
    count, dim = x.shape
    deviance = count * float(spread.trace() - spread.logdet() - dim + mean.square().sum())
    degrees, excess = dim + dim * (dim + 1) // 2, count * slack**2
    law_of_chance = scipy.stats.ncx2(degrees, excess) if excess > 0.0 else scipy.stats.chi2(degrees)
    return deviance, float(law_of_chance.isf(FALSE_ALARM))


def kolmogorov_distance(shares: Tensor) -> tuple[float, float]:
    """Return the largest distance between the distribution of samples and their law, and the limit of chance.

    Args:
        shares: the law's distribution function at the samples, ``(n,)``.
    """
    ranked, count = shares.sort().values.numpy(), len(shares)
    steps = np.arange(count + 1) / count
    distance = float(np.maximum(steps[1:] - ranked, ranked - steps[:-1]).max())
    return distance, float(scipy.stats.kstwo.isf(FALSE_ALARM, count))


def largest_share(count: int, probability: float = 0.05) -> float:
    """Return the largest share of ``count`` items of which each is found with a probability, but for a false alarm."""
    return float(scipy.stats.binom.isf(FALSE_ALARM, count, probability)) / count
