r"""Denoising score matching: the distribution of the noise levels, their weighting, and the loss.

Every usual loss is ``integral W(lambda) E||eps_hat - eps||^2 d lambda`` over the half log-SNR (Kingma & Gao 2023). The
*weighting* W defines what is minimised; the *time law*, a density over lambda, says where the integral is sampled and
is divided out. A law changes the noise of the gradient and nothing else: ``simple`` under ``uniform`` is the loss of
Ho et al. (2020, eq. 14), ``likelihood`` under ``logsnr`` the importance-sampled bound of Song et al. (2021, eq. 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.documents import Finite, Named, Positive, function, typed_entry
from sdediff.numerics import flatten, softplus
from sdediff.sde import SDE
from sdediff.types import Level

TimeLaw = Callable[[SDE, Tensor], tuple[Tensor, Tensor]]
"""``(sde, u)`` to ``(t, density of lambda)``, all float64 ``(B,)``; ``u`` uniform in [0, 1)."""
Weighting = Callable[[SDE, Level], Tensor]
"""``(sde, level)`` to the weight ``W(lambda)`` of ``||eps_hat - eps||^2``, float64 ``(B,)``."""


def _lambda_range(sde: SDE) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest lambda."""
    return sde.half_log_snr(sde.t_max), sde.half_log_snr(sde.t_min)


def _lambda_speed(sde: SDE, t: Tensor) -> Tensor:
    """Return ``|d lambda / dt| = g^2 / (2 sigma^2)``."""
    return 0.5 * (sde.diffusion(t) / sde.sigma(t)).square()


def uniform(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Sample uniformly in t (Ho et al. 2020)."""
    t = sde.t_min + (sde.t_max - sde.t_min) * u
    return t, 1.0 / ((sde.t_max - sde.t_min) * _lambda_speed(sde, t))


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


def simple(sde: SDE, level: Level) -> Tensor:
    """Weight equally in t (Ho et al. 2020, eq. 14): W = dt / d lambda, which depends on the process."""
    return 1.0 / _lambda_speed(sde, torch.as_tensor(level.t))


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


TIME_LAWS: dict[str, TimeLaw] = {
    "uniform": uniform,
    "logsnr": logsnr,
    "logsnr-normal": logsnr_normal,
    "angle": angle,
}

WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "likelihood": likelihood,
    "min-snr": min_snr,
    "velocity": velocity_error,
}


_LAW_ARGUMENTS, _WEIGHTING_ARGUMENTS = ("sde", "u"), ("sde", "level")
"""Arguments that a configuration cannot set."""


def typed_objective(time_law: str | Named, weighting: str | Named) -> dict[str, str | Named]:
    """Return the settings ``time_law`` and ``weighting`` with parameters of the types that they take.

    Raises:
        ValueError: for a name that is not in its table, or parameters that its entry does not take.
    """
    return {
        "time_law": typed_entry(TIME_LAWS, time_law, "training.time_law", "time law", given=_LAW_ARGUMENTS),
        "weighting": typed_entry(WEIGHTINGS, weighting, "training.weighting", "weighting", given=_WEIGHTING_ARGUMENTS),
    }


class Objective:
    """A time law and a weighting for one process.

    Args:
        sde: the forward process.
        time_law: a name of ``TIME_LAWS``, or a name and parameters.
        weighting: a name of ``WEIGHTINGS``, or a name and parameters.

    Raises:
        ValueError: for a name that is not in its table, or parameters that its entry does not take.
    """

    def __init__(self, sde: SDE, time_law: str | Named = "logsnr", weighting: str | Named = "likelihood") -> None:
        self.sde = sde
        self._law = function(TIME_LAWS, time_law, "time law", given=_LAW_ARGUMENTS)
        self._weighting = function(WEIGHTINGS, weighting, "weighting", given=_WEIGHTING_ARGUMENTS)
        # Weights of the velocity's error, ``||eps_hat - eps||^2 / cos^2``, have mean one: the loss is a weighted mean
        # of errors of order one, so its size, and the bound on the gradient, are comparable for all weightings.
        level, weights = self._weights((torch.arange(4096, dtype=torch.float64) + 0.5) / 4096)
        self._mean = float((weights * torch.as_tensor(level.cos).square()).mean())

    def _weights(self, u: Tensor) -> tuple[Level, Tensor]:
        t, density = self._law(self.sde, u)
        level = self.sde.level(t)
        return level, self._weighting(self.sde, level) / density

    def levels(self, u: Tensor) -> tuple[Level, Tensor]:
        """Return the levels for uniform numbers ``u`` ``(B,)`` and the weights of the errors of the noise."""
        level, weights = self._weights(u.double().cpu())
        return level, weights / self._mean

    def loss(self, model: Denoiser, x0: Tensor, u: Tensor, eps: Tensor) -> Tensor:
        """Return the weighted loss of each item.

        Args:
            model: the denoiser.
            x0: clean states ``(B, *shape)``.
            u: uniform numbers in [0, 1) ``(B,)``, from which the noise levels follow.
            eps: standard normals of the shape of ``x0``.

        Returns:
            Weight times the mean square error of the predicted noise, ``(B,)``.
        """
        level, weights = self.levels(u)
        error = flatten(model(level.perturb(x0, eps), level).eps - eps).square().mean(dim=1)
        return weights.to(error) * error


def stratified(offset: float, indices: Tensor, count: int) -> Tensor:
    """Return low-discrepancy uniforms (Kingma et al. 2021, appendix I.1): one in each of ``count`` equal strata.

    Args:
        offset: one number in [0, 1) for all strata, drawn anew for each batch.
        indices: indices of the strata, ``(B,)`` of ``0 .. count - 1``.
        count: size of the whole batch.
    """
    return (offset + indices.double() / count).remainder(1.0)
