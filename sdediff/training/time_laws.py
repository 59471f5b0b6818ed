r"""Time laws: distributions of the noise levels of training, densities over the half log-SNR lambda.

A law says where the integral of the loss over lambda is sampled, and is divided out: it changes the noise of the
gradient, and nothing else. On the instants of a chain a law is a probability p of each; its density is that of the law
which spreads p evenly over the step before the instant, ``p N |dt / d lambda|``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sdediff.documents import Finite, Positive
from sdediff.instants import chain_steps
from sdediff.likelihood.bound.chain import ChainSteps, reverse_variance
from sdediff.likelihood.bound.stratified import LevelDistribution
from sdediff.numerics import softplus
from sdediff.sde import SDE

TimeLaw = Callable[[SDE, Tensor], tuple[Tensor, Tensor]]
"""``(sde, u)`` to ``(t, density of lambda)``, all float64 ``(B,)``; ``u`` uniform in [0, 1)."""


def _lambda_range(sde: SDE) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest lambda."""
    return sde.half_log_snr(sde.t_max), sde.half_log_snr(sde.t_min)


def lambda_speed(sde: SDE, t: Tensor) -> Tensor:
    """Return ``|d lambda / dt| = g^2 / (2 sigma^2)``."""
    return 0.5 * (sde.diffusion(t) / sde.sigma(t)).square()


def uniform(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample uniformly in t (Ho et al. 2020)."""
    t = sde.t_min + (sde.t_max - sde.t_min) * u
    return t, 1.0 / ((sde.t_max - sde.t_min) * lambda_speed(sde, t))


def logsnr(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample uniformly in lambda, that is in proportion to ``g^2 / sigma^2``."""
    low, high = _lambda_range(sde)
    t = sde.time(low + (high - low) * u).clamp(sde.t_min, sde.t_max)
    return t, torch.full_like(u, 1.0 / float(high - low))


def logsnr_normal(sde: SDE, u: Tensor, mean: Finite = 1.2, std: Positive = 2.0) -> tuple[Tensor, Tensor]:
    """Sample a truncated normal in lambda (Karras et al. 2022, with a wider spread)."""
    low, high = ((end - mean) / std for end in _lambda_range(sde))
    mass_low, mass_high = torch.special.ndtr(low), torch.special.ndtr(high)
    z = torch.special.ndtri(mass_low + (mass_high - mass_low) * u).clamp(low, high)
    density = torch.exp(-0.5 * z.square()) / (math.sqrt(2.0 * math.pi) * std * (mass_high - mass_low))
    return sde.time(mean + std * z).clamp(sde.t_min, sde.t_max), density


def angle(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample uniformly in theta = atan(sigma / alpha): ``d theta / d lambda = 1 / (2 cosh lambda)``."""
    start, end = sde.level(sde.t_min).angle, sde.level(sde.t_max).angle
    half_log_snr = -torch.log(torch.tan(start + (end - start) * u))
    t = sde.time(half_log_snr).clamp(sde.t_min, sde.t_max)
    return t, 0.5 / (torch.cosh(half_log_snr) * (end - start))


def squared_cosine(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample in proportion to ``cos^2`` over lambda: ``likelihood`` is then the plain error of the velocity v.

    The variance-reduced objective of i-DODE (Zheng et al. 2023) for the normalised velocity
    ``v = cos eps - sin x0``, since ``||eps_hat - eps||^2 = cos^2 ||v_hat - v||^2``.
    """
    low, high = (0.5 * softplus(2.0 * end) for end in _lambda_range(sde))  # the integral of cos^2 = 1 / (1 + e^-2l)
    mass = low + (high - low) * u
    half_log_snr = mass + 0.5 * torch.log(-torch.expm1(-2.0 * mass))
    t = sde.time(half_log_snr).clamp(sde.t_min, sde.t_max)
    return t, torch.sigmoid(2.0 * half_log_snr) / (high - low)


def instants(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample uniformly on the instants ``i / N`` of a chain (Ho et al. 2020, algorithm 1).

    Raises:
        ValueError: for a process that is no chain.
    """
    steps = chain_steps(sde)
    t = ((u * steps).floor() + 1.0).clamp(max=steps) / steps
    return t, 1.0 / lambda_speed(sde, t)


def important_instants(sde: SDE, u: Tensor, variance: Positive = 1.0) -> tuple[Tensor, Tensor]:
    """Sample the instants of a chain in proportion to their terms in the bound, for normal data of a ``variance``.

    The importance sampling of Nichol & Dhariwal (2021, section 3.3), which estimates the terms from the losses of the
    past, by the terms that they have for Gaussian data, so that a step of training depends on nothing but its number.

    Raises:
        ValueError: for a process that is no chain.
    """
    distribution = _bound_terms(sde, variance)
    step = distribution.cell(u)
    steps = len(distribution.probability)
    t = (step.double() + 1.0) / steps
    return t, distribution.probability[step] * steps / lambda_speed(sde, t)


@lru_cache(maxsize=8)
def _bound_terms(sde: SDE, variance: float) -> LevelDistribution:
    """Return the distribution of a chain's instants by their expected terms, with a thousandth spread over all."""
    steps = chain_steps(sde)
    levels = sde.levels(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    chain = ChainSteps(levels, reverse_variance("posterior"))
    errors = torch.sigmoid(2.0 * chain.half_log_snr[1:] + math.log(variance))  # of the noise, of the best denoiser
    terms = torch.cat([torch.full((1,), 0.5, dtype=torch.float64), chain.weight * errors])  # L_0: half a square of one
    edges = torch.cat([torch.full((1,), math.inf, dtype=torch.float64), chain.half_log_snr])
    return LevelDistribution(edges, 0.999 * terms / terms.sum() + 0.001 / steps)


TIME_LAWS: dict[str, TimeLaw] = {
    "uniform": uniform,
    "logsnr": logsnr,
    "logsnr-normal": logsnr_normal,
    "angle": angle,
    "velocity": squared_cosine,
    "instants": instants,
    "important-instants": important_instants,
}
