r"""What the two ends of a path add to the error, estimated from what was seen there: no forward is spent on it.

With ``s = -eps / sin`` the score the model states in the frame, its Jacobian is ``-(sin I + cos J) / sin``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.gaussian import Moments
from sdediff.likelihood.trace import End
from sdediff.numerics import flatten, wide

WIDEST = 0.999
"""Largest share of the blur in the variance along a direction that is told from all of it."""


def blur_effect(first: End) -> Tensor:
    r"""Return ``log p`` of the data with the noise of the first level less ``log p`` without it, nats ``(B,)``.

    With ``tau = sigma / alpha`` the density obeys the heat equation, ``d log p / d tau^2 = (div s + |s|^2) / 2`` in the
    data's units: to first order the effect is ``tau^2`` times that. Where the blur is not small beside the data it is
    taken to be a Gaussian's, ``1/2 log det(I - S) + tau^2/2 s . (I - S)^{-1} s`` with ``S = -tau^2 ds/dx``, whose
    eigenvalues are the blur's share of the variance along each direction. Known of S are its trace and that of its
    square: ``tr S / kappa`` directions count as having the share ``kappa = tr S^2 / tr S`` each, the others none. That
    is exact for Gaussians equally narrow along some directions; of unequal ones it states too little.
    """
    trace, share = _blur(first)
    log_det = torch.where(share > 0.0, torch.log1p(-share) / share.clamp(min=1e-300), -1.0)
    squared = wide(first.noise).square().sum(dim=1)  # tau^2 |s|^2, s = -cos eps / sin in the data's units
    return 0.5 * (trace * log_det + squared / (1.0 - share))


def blur_share(first: End) -> Tensor:
    """Return the blur's share of the variance along the directions that it blurs, 0 to ``WIDEST``, ``(B,)``."""
    return _blur(first)[1]


def _blur(first: End) -> tuple[Tensor, Tensor]:
    """The trace of S, and the share of the directions that count; 0 where there is no telling."""
    cos, sin, dim = first.level.cos, first.level.sin, first.noise.shape[1]
    trace = sin * (dim * sin + cos * first.seen.trace)
    square = sin**2 * (dim * sin**2 + 2.0 * sin * cos * first.seen.trace + cos**2 * first.seen.square)
    square = square.clamp(min=0.0)
    share = square / trace.clamp(min=torch.finfo(trace.dtype).tiny)
    # no direction's share exceeds the root of the square's trace
    return trace, torch.where(trace > 0.0, torch.minimum(share, square.sqrt()).clamp(max=WIDEST), 0.0)


def prior_effect(last: End, moments: Moments | None) -> Tensor:
    """Return how much the model's own law at the last level exceeds the prior's, ``log p - log prior``, nats ``(B,)``.

    The difference has the gradient ``m = s - s_prior``; ``m . (y - mean) - div m`` is the difference itself where it is
    linear, as that of a mean, and twice it where it is quadratic, as that of a covariance.
    """
    level, white = last.level, last.white
    score = -wide(last.noise) / level.sin
    if moments is None:
        offset = wide(white.turn(flatten(last.y)))
        variances = torch.full_like(offset[0], level.sin**2)
    else:
        rho = white.at(level).rho.to(score).expand(score.shape[1])
        offset, variances = wide(white.into(last.y, white.at(level))) * rho, rho.square()
    variances = variances.to(score)
    mismatch = score + offset / variances
    divergence = -(score.shape[1] * level.sin + level.cos * last.seen.trace) / level.sin
    return (mismatch * offset).sum(dim=1) - (divergence + (1.0 / variances).sum())
