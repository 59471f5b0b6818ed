r"""The bound in continuous time, the limit of infinitely many steps between two noise levels.

    -log p(x0)  <=  KL(q(x_T | x0) || prior)  +  integral E|eps - eps_hat|^2 d lambda  -  E log p(x0 | x_1)

over the half log-SNR lambda between the two levels (Kingma et al. 2021, eq. 17-19, on the clock -2 lambda; Song et al.
2021, "Maximum likelihood training", theorem 3). It depends on no schedule but for the two ends, and on no choice of
variance. With an exact denoiser it is ``-log p(x0)`` itself, item by item, but for the two ends.
"""

from __future__ import annotations

import math

import torch

from sdediff.denoiser import Denoiser
from sdediff.likelihood.bound.chain import BoundBatch, Terms, split_at
from sdediff.likelihood.bound.stratified import (
    LevelDistribution,
    stratified_pairs,
    variance_of_draws,
    variance_of_pairs,
)
from sdediff.likelihood.discrete.decoder import reconstruction_cost
from sdediff.noise import Stage
from sdediff.numerics import sum_features, wide
from sdediff.types import Level


@torch.no_grad()
def continuous_terms(
    model: Denoiser, items: BoundBatch, first: Level[float], distribution: LevelDistribution, draws: int, samples: int
) -> Terms:
    """Estimate the integral from sampled levels, a row a stratum, and the reconstruction term.

    Args:
        model: denoiser with its process.
        items: batch of data.
        first: level of the data's end, where the decoder applies.
        distribution: distribution of the levels between the two ends.
        draws: number of levels an item, two a stratum.
        samples: number of draws of the noise at the first level.
    """
    u = stratified_pairs(items.noise, draws, Stage.BOUND_LEVELS)
    half_log_snr, density = distribution.half_log_snr(u), distribution.density(u)
    values = []
    for i, lam in enumerate(half_log_snr):
        eps = items.noise.normal(i, stage=Stage.BOUND_SAMPLED)
        split = split_at(model, items.x0, eps, model.sde.level_at(lam))
        error = sum_features(wide(split.eps - eps).square())
        values.append((error - items.control.squared_error(eps, lam)) / density[i].to(error))
    excess = torch.stack(values)
    mean = items.control.integral(distribution.half_log_snr(strata(draws)))
    std = math.exp(-first.half_log_snr)
    reconstruction = torch.stack(
        [
            reconstruction_cost(
                model,
                items.x0,
                items.noise.normal(0, stage=Stage.BOUND + draw),
                first,
                items.decoder,
                lambda _: std,
                items.control,
            )
            for draw in range(samples)
        ]
    )
    return Terms(
        mean + (excess[0::2] + excess[1::2]) / draws,
        reconstruction.mean(dim=0),
        variance_of_pairs(excess) + variance_of_draws(reconstruction),
        draws + samples * items.decoder.denoised,
    )


def strata(draws: int) -> torch.Tensor:
    """Return the edges of the strata in [0, 1], ``(M / 2 + 1,)``."""
    return torch.linspace(0.0, 1.0, draws // 2 + 1, dtype=torch.float64)
