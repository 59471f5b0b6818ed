r"""The bound in continuous time: infinitely many steps between two noise levels.

    -log p(x0)  <=  KL(q(x_T | x0) || prior)  +  integral E|eps - eps_hat|^2 d lambda  -  E log p(x0 | x_1)

over the half log-SNR lambda between the two levels (Kingma et al. 2021, eq. 17-19, on the clock -2 lambda; Song et al.
2021, "Maximum likelihood training", theorem 3). No schedule is left in it but the two ends, and no choice of variance.
With an exact denoiser it is ``-log p(x0)`` itself, item by item, but for the two ends.
"""

from __future__ import annotations

import math

import torch

from sdediff.denoiser import Denoiser
from sdediff.likelihood.bound.chain import Items, Terms, split_at
from sdediff.likelihood.bound.stratified import LevelDistribution, of_draws, of_pairs, stratified_pairs
from sdediff.likelihood.discrete.decoder import reconstruction_cost
from sdediff.noise import Stage
from sdediff.numerics import sum_features
from sdediff.types import Level


@torch.no_grad()
def continuous_terms(
    model: Denoiser, items: Items, first: Level[float], places: LevelDistribution, draws: int, samples: int
) -> Terms:
    """The integral from sampled levels, a row a stratum, and the reconstruction term.

    Args:
        model: the denoiser.
        items: the data.
        first: the less noisy end, where the decoder stands.
        places: the law of the levels between the two ends.
        draws: levels an item, two a stratum.
        samples: draws of the noise at the first level.
    """
    u = stratified_pairs(items.noise, draws, Stage.BOUND_LEVELS)
    half_log_snr, density = places.half_log_snr(u), places.density(u)
    values = []
    for i, lam in enumerate(half_log_snr):
        eps = items.noise.normal(i, stage=Stage.BOUND_SAMPLED)
        split = split_at(model, items.x0, eps, model.sde.level_at(lam))
        error = sum_features((split.eps - eps).double().square())
        values.append((error - items.control.drawn(eps, lam)) / density[i].to(error.device))
    beyond = torch.stack(values)
    known = items.control.integral(places.half_log_snr(strata(draws)))
    std = math.exp(-first.half_log_snr)
    last = torch.stack(
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
        known + (beyond[0::2] + beyond[1::2]) / draws,
        last.mean(dim=0),
        of_pairs(beyond) + of_draws(last),
        draws + samples * items.decoder.denoised,
    )


def strata(draws: int) -> torch.Tensor:
    """Edges of the strata in [0, 1], ``(M / 2 + 1,)``."""
    return torch.linspace(0.0, 1.0, draws // 2 + 1, dtype=torch.float64)
