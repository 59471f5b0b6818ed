r"""Stratified sampling of the noise levels of a bound, and the variance of the estimate.

A sum over the steps of a chain, or an integral over the half log-SNR lambda, is estimated from M of its terms, each
divided by the probability of its level. The distribution of levels is fixed before any draw, so the estimate is
unbiased for every distribution. Draws are stratified: the unit interval is cut into ``M / 2`` equal strata, each with
two independent draws, whose difference measures the variance of the stratum without bias (Cochran 1977). One draw a
stratum, or a rotated lattice (Kingma et al. 2021, appendix I.1), would give no estimate of the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.gaussian import Moments
from sdediff.noise import NoiseSource

LevelLaw = Callable[[Tensor, Moments], Tensor]
"""Function from the half log-SNR at the edges of G cells, falling, and moments to masses of the cells ``(G,)``."""

KURTOSIS = 5.0
"""Kurtosis of a draw of the bound, a sum of squares: between a normal's, 3, and that of the square of a normal, 15."""

MIN_DEGREES = 0.85
"""Fewest degrees of freedom: with a pair or two of such draws the statistic has longer tails than Cauchy's."""

CELLS = 512
"""Number of cells of the distribution of levels of a continuous bound."""


def uniform_in_log_snr(edges: Tensor, moments: Moments) -> Tensor:  # noqa: ARG001 - the table's signature
    """Return masses in proportion to the widths of the cells."""
    return -edges.diff()


def resolved(edges: Tensor, moments: Moments) -> Tensor:
    """Return masses for half of the draws uniform in lambda, half where data and noise are distinguished.

    Along a direction of variance c the angle of the data, ``atan(e^lambda sqrt(c))``, moves where signal and noise are
    alike: there a denoiser's error exceeds a Gaussian's. The other half bounds the cost for data unlike a Gaussian of
    their moments: at most twice the variance of uniform levels.
    """
    stds = moments.variances.double().sqrt()
    angles = torch.atan(torch.exp(edges)[:, None] * stds[stds > 0.0].to(edges.device)).mean(dim=1)
    flat, bent = -edges.diff(), -angles.diff()
    return flat / flat.sum() + (bent / bent.sum() if float(bent.sum()) > 0.0 else flat / flat.sum())


LAWS: dict[str, LevelLaw] = {"moments": resolved, "logsnr": uniform_in_log_snr}
"""Distributions of the noise levels of a sampled bound, by name."""


class LevelDistribution:
    """A distribution over cells of lambda.

    Args:
        edges: half log-SNR at the edges of the cells, falling, float64 ``(G + 1,)``.
        mass: masses of the cells, ``(G,)``, of any sum.
    """

    def __init__(self, edges: Tensor, mass: Tensor) -> None:
        self.edges, self.probability = edges, mass / mass.sum()
        self._cumulative = torch.cat([edges.new_zeros(1), torch.cumsum(self.probability, 0)])
        self._cumulative = self._cumulative / self._cumulative[-1]

    def cell(self, u: Tensor) -> Tensor:
        """Return the cell at ``u`` in [0, 1), int64, shape of ``u``; cell g with probability ``probability[g]``."""
        cell = torch.searchsorted(self._cumulative, u.contiguous(), right=True) - 1
        return cell.clamp(0, len(self.probability) - 1)

    def half_log_snr(self, u: Tensor) -> Tensor:
        """Return lambda at ``u`` in [0, 1], uniform within each cell."""
        cell = self.cell(u)
        within = ((u - self._cumulative[cell]) / self.probability[cell]).clamp(0.0, 1.0)
        return self.edges[cell] + within * (self.edges[cell + 1] - self.edges[cell])

    def density(self, u: Tensor) -> Tensor:
        """Return the density over lambda, at the lambda of ``u``."""
        cell = self.cell(u)
        density: Tensor = self.probability[cell] / (self.edges[cell] - self.edges[cell + 1])
        return density


def stratified_pairs(noise: NoiseSource, draws: int, stage: int) -> Tensor:
    """Draw uniforms in [0, 1), float64 ``(M, B)``: rows 2s and 2s + 1 are independent in stratum s of ``M / 2``.

    The draws of an item are a function of the source's seed and the item's index alone.
    """
    source = NoiseSource(noise.seed, (len(noise.samples), draws), samples=noise.samples, dtype=torch.float64)
    within = source.uniform(draws, stage=stage).T
    stratum = torch.arange(draws, dtype=torch.float64).div(2, rounding_mode="floor")[:, None]
    uniforms: Tensor = (stratum + within) * (2.0 / draws)
    return uniforms


@dataclass(frozen=True)
class StratifiedVariance:
    """The variance of an estimate, and its own uncertainty.

    Attributes:
        variance: variance of the estimate, unbiased, ``(B,)``; NaN for a single draw.
        uncertainty: half the variance of ``variance`` as an estimate, for draws that are sums of squares, not normals,
            ``(B,)``.
    """

    variance: Tensor
    uncertainty: Tensor

    def __add__(self, other: StratifiedVariance) -> StratifiedVariance:
        """Return the variance of the sum of two independent estimates."""
        return StratifiedVariance(self.variance + other.variance, self.uncertainty + other.uncertainty)

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom of Student's statistic (Satterthwaite 1946), at least ``MIN_DEGREES``, ``(B,)``."""
        certain = self.uncertainty <= 0.0  # nothing varied
        degrees = self.variance.square() / torch.where(certain, 1.0, self.uncertainty) - 2.0
        return torch.where(certain, math.inf, degrees.clamp(min=MIN_DEGREES))


def variance_of_pairs(values: Tensor) -> StratifiedVariance:
    """Return the variance of the mean of stratified pairs ``(M, B)``.

    Where the levels of a pair differ, so do the distributions of its draws: their difference has heavy tails, and half
    of the square of its square is the uncertainty (a third of a normal's, 4/9 of that of two squares of normals).
    """
    variances = (values[0::2] - values[1::2]).square() / len(values) ** 2
    return StratifiedVariance(variances.sum(dim=0), 0.5 * variances.square().sum(dim=0))


def variance_of_draws(values: Tensor) -> StratifiedVariance:
    """Return the variance of the mean of independent draws ``(n, B)``; NaN for a single one."""
    n = len(values)
    if n == 1:
        undefined = torch.full_like(values[0], math.nan)
        return StratifiedVariance(undefined, undefined)
    variance = values.var(dim=0) / n
    relative = KURTOSIS / n - (n - 3) / (n * (n - 1))  # variance of the variance, over its square
    return StratifiedVariance(variance, 0.5 * relative / (1.0 + relative) * variance.square())
