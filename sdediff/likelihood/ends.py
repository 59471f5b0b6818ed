"""What the two ends of a path add to the error, estimated from what was seen there: no forward is spent on it.

With ``s = -eps / sin`` the score the model states in the frame, ``div s = -(D sin + cos tr J) / sin``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.likelihood.path import Path
from sdediff.moments import Moments
from sdediff.numerics import flatten, wide
from sdediff.sde import SDE
from sdediff.types import Level


def blur_effect(path: Path, sde: SDE) -> Tensor:
    """``log p`` at twice the first time less ``log p`` at the first, nats ``(B,)``: what another ``t_min`` would do.

    The density blurred by tau obeys the heat equation, ``d log p / d tau^2 = (div s + |s|^2) / 2`` in the data's units;
    the step is taken to first order.
    """
    first = path.levels[0]
    later = sde.levels([min(2.0 * float(first.t), float(path.levels[-1].t))])[0]
    score = -first.cos / first.sin * wide(path.noise[0])
    curvature = first.cos**2 * _score_divergence(path, 0) + score.square().sum(dim=1)
    return 0.5 * curvature * (math.exp(-2.0 * later.half_log_snr) - math.exp(-2.0 * first.half_log_snr))


def prior_effect(path: Path, moments: Moments | None) -> Tensor:
    """By how much the model's own law at the last level exceeds the prior's, ``log p - log prior``, nats ``(B,)``.

    The difference has the gradient ``m = s - s_prior``; ``m . (y - mean) - div m`` is the difference itself where it is
    linear, as that of a mean, and twice it where it is quadratic, as that of a covariance.
    """
    last, spot = path.levels[-1], path.white.at(path.levels[-1])
    score = -wide(path.noise[-1]) / last.sin
    if moments is None:
        offset = wide(path.white.turn(flatten(path.y)))
        variances = torch.full_like(offset[0], last.sin**2)
    else:
        rho = spot.rho.to(score).expand(score.shape[1])
        offset, variances = wide(path.states[-1]) * rho, rho.square()
    variances = variances.to(score)
    mismatch = score + offset / variances
    return (mismatch * offset).sum(dim=1) - (_score_divergence(path, -1) + (1.0 / variances).sum())


def _score_divergence(path: Path, node: int) -> Tensor:
    """``div s`` in the frame, ``(B,)``."""
    level: Level[float] = path.levels[node]
    dim = path.states.shape[2]
    return -(dim * level.sin + level.cos * path.seen[node].trace) / level.sin
