r"""Weightings ``W(lambda)`` of ``||eps_hat - eps||^2`` over the half log-SNR lambda: what is minimised.

Published weights are of other errors, or of times: ``||x0_hat - x0|| = sigma / alpha ||eps_hat - eps||``, ``||v_hat -
v|| = ||eps_hat - eps|| / cos``, and equal weight in t is ``W = dt / d lambda``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdediff.documents import Finite, Positive
from sdediff.numerics import softplus
from sdediff.parametrization import SIGMA_DATA, Prediction
from sdediff.sde import SDE
from sdediff.training.time_laws import lambda_speed
from sdediff.types import Level

Weighting = Callable[[SDE, Level], Tensor]
"""``(sde, level)`` to the weight ``W(lambda)`` of ``||eps_hat - eps||^2``, float64 ``(B,)``."""

_NOISY = np.array([0.5 * np.pi - 1e-3])
_MOST_GAIN = 10.0
"""Angle of almost pure noise, and the gain there from which on a network has the velocity's error all in the noise."""


def simple(sde: SDE, level: Level) -> Tensor:
    """Weight equally in t (Ho et al. 2020, eq. 14): W = dt / d lambda, which depends on the process."""
    return 1.0 / lambda_speed(sde, torch.as_tensor(level.t))


def likelihood(sde: SDE, level: Level) -> Tensor:  # noqa: ARG001 - the table's signature
    """Weight equally in lambda: the bound on the negative log-likelihood (Song et al. 2021; Kingma et al. 2021)."""
    return torch.ones_like(torch.as_tensor(level.half_log_snr))


def min_snr(sde: SDE, level: Level, gamma: Positive = 5.0) -> Tensor:
    """Weight equally in t, times ``min(1, gamma / SNR)`` (Hang et al. 2023)."""
    snr = torch.exp(2.0 * torch.as_tensor(level.half_log_snr))
    return simple(sde, level) * (gamma / snr).clamp(max=1.0)


def velocity_error(sde: SDE, level: Level) -> Tensor:
    """Weight equally in t the error ``||v_hat - v||^2 = ||eps_hat - eps||^2 / cos^2`` (Salimans & Ho 2022)."""
    return simple(sde, level) * torch.exp(softplus(-2.0 * torch.as_tensor(level.half_log_snr)))


def p2(sde: SDE, level: Level, k: Positive = 1.0, gamma: Finite = 1.0) -> Tensor:
    """Weight equally in t, over ``(k + SNR)^gamma`` (Choi et al. 2022)."""
    snr = torch.exp(2.0 * torch.as_tensor(level.half_log_snr))
    return simple(sde, level) * (k + snr) ** -gamma


def edm(
    sde: SDE,  # noqa: ARG001 - the table's signature
    level: Level,
    mean: Finite = 1.2,
    std: Positive = 1.2,
    sigma_data: Positive = SIGMA_DATA,
) -> Tensor:
    """Weight the output of EDM's network equally, under a normal law of lambda (Karras et al. 2022, table 1).

    ``N(lambda; mean, std^2) (s^2 + sigma_data^2) / (s sigma_data)^2`` for x0, with ``s = exp(-lambda)``. The time law
    ``logsnr-normal`` of this mean and deviation makes the loss a plain mean, as published.
    """
    half_log_snr = torch.as_tensor(level.half_log_snr)
    normal = torch.exp(-0.5 * ((half_log_snr - mean) / std).square()) / (math.sqrt(2.0 * math.pi) * std)
    return normal * (torch.exp(-2.0 * half_log_snr) / sigma_data**2 + 1.0)


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "likelihood": likelihood,
    "min-snr": min_snr,
    "p2": p2,
    "edm": edm,
    "velocity": velocity_error,
}


def suited_weighting(prediction: Prediction) -> str:
    """Return the name of the weighting for a network: the velocity's error, or L_simple of those that predict noise.

    The velocity's error is that of the noise over ``cos``, 1e-4 and less at the noisy end: a network that predicts
    epsilon or the score would learn little else.
    """
    return "simple" if float(prediction.gain(_NOISY)[0]) > _MOST_GAIN else "velocity"
