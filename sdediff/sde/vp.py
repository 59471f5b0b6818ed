r"""Variance-preserving processes: ``alpha^2 + sigma^2 = 1``.

Linear beta: ``dx = -1/2 beta(t) x dt + sqrt(beta(t)) dW`` with ``beta(t) = beta_min + t (beta_max - beta_min)``
(Song et al. 2021, eq. 32). Cosine: ``alpha^2 = cos^2(phi_t) / cos^2(phi_0)``, ``phi_t = (t + s)/(1 + s) pi/2``
(Nichol & Dhariwal 2021, eq. 17).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.numerics import log1mexp, softplus
from sdediff.sde.base import SDE


class VariancePreserving(SDE):
    """A process with ``sigma^2 = 1 - alpha^2``: one primitive is enough."""

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor:
        """Return the rate ``beta(t) = -2 d log alpha / dt``."""

    def _log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * log1mexp(2.0 * self._log_alpha(t))

    def _drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return self._beta(t).sqrt()

    def _transition_variance(self, s: Tensor, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self._log_alpha_step(s, t))


def check_linear_beta(beta_min: float, beta_max: float) -> None:
    """Refuse rates that do not grow from a positive start."""
    if not 0.0 < beta_min <= beta_max < math.inf:
        raise ValueError(f"beta needs 0 < beta_min <= beta_max, not beta_min = {beta_min}, beta_max = {beta_max}")


@dataclass(frozen=True)
class LinearBeta(SDE):
    """The signal of a process with linear beta; subclasses add the noise.

    Args:
        beta_min: rate at ``t = 0``.
        beta_max: rate at ``t = 1``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_linear_beta(self.beta_min, self.beta_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha_step(torch.zeros_like(t), t)

    def _log_alpha_step(self, s: Tensor, t: Tensor) -> Tensor:
        """Return minus half the integral of beta from s to t."""
        return -0.5 * (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))

    def _time_of_signal(self, log_alpha: Tensor) -> Tensor:
        """Return the time of a ``log alpha``: the quadratic's root in the form without cancellation."""
        half = 0.5 * self.beta_min
        return -2.0 * log_alpha / (half + (half**2 - (self.beta_max - self.beta_min) * log_alpha).sqrt())


@dataclass(frozen=True)
class VPSDE(LinearBeta, VariancePreserving):
    """The VP-SDE with linear beta.

    Args:
        beta_min: rate at ``t = 0``.
        beta_max: rate at ``t = 1``.

    >>> sdediff.VPSDE().alpha(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.0066], dtype=torch.float64)
    """

    def _time(self, half_log_snr: Tensor) -> Tensor:
        return self._time_of_signal(-0.5 * softplus(-2.0 * half_log_snr))


@dataclass(frozen=True)
class CosineVPSDE(VariancePreserving):
    """The VP-SDE with the cosine schedule.

    The rate is singular at ``t = 1``, where alpha = 0, so solvers start at ``t_max = 0.999`` (lambda = -6.5): the
    interval is cut, the formula and the network's time are not shifted.

    Args:
        s: offset that keeps the rate from vanishing at ``t = 0``.

    >>> sdediff.CosineVPSDE().half_log_snr(0.5)
    tensor(-0.0123, dtype=torch.float64)
    """

    t_max: ClassVar[float] = 0.999

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0.0 < self.s < math.inf:
            raise ValueError(f"the cosine offset s must be positive, not {self.s}")

    @property
    def _speed(self) -> float:
        return 0.5 * math.pi / (1.0 + self.s)

    def _phi(self, t: Tensor) -> Tensor:
        return (t + self.s) * self._speed

    def _beta(self, t: Tensor) -> Tensor:
        return 2.0 * self._speed * torch.cos((1.0 - t) * self._speed) / torch.sin((1.0 - t) * self._speed)

    def _log_alpha(self, t: Tensor) -> Tensor:
        # cos(phi) = sin((1 - t) speed); near the data use 1 - alpha, near the noise alpha itself
        phi_0 = self.s * self._speed
        one_minus_alpha = 2.0 * torch.sin(0.5 * (self._phi(t) + phi_0)) * torch.sin(0.5 * t * self._speed)
        one_minus_alpha = one_minus_alpha / math.cos(phi_0)
        alpha = torch.sin((1.0 - t) * self._speed) / math.cos(phi_0)
        return torch.where(one_minus_alpha < 0.5, torch.log1p(-one_minus_alpha.clamp(max=0.5)), torch.log(alpha))

    def _log_sigma(self, t: Tensor) -> Tensor:
        # sigma^2 = (cos^2 phi_0 - cos^2 phi) / cos^2 phi_0, a product of sines
        phi_0 = self.s * self._speed
        product = torch.sin(t * self._speed) * torch.sin(self._phi(t) + phi_0)
        return 0.5 * torch.log(product) - math.log(math.cos(phi_0))

    def _time(self, half_log_snr: Tensor) -> Tensor:
        # delta = phi - phi_0 from its sine and cosine, each a sum of positive terms
        sin_0, cos_0 = math.sin(self.s * self._speed), math.cos(self.s * self._speed)
        alpha = torch.exp(-0.5 * softplus(-2.0 * half_log_snr))
        sigma2 = torch.exp(-softplus(2.0 * half_log_snr))
        cos_phi = alpha * cos_0
        sin_phi = (sin_0**2 + cos_0**2 * sigma2).sqrt()
        sin_delta = cos_0**3 * sigma2 / (sin_phi + sin_0) + sin_0 * cos_0 * sigma2 / (1.0 + alpha)
        cos_delta = cos_phi * cos_0 + sin_phi * sin_0
        return torch.atan2(sin_delta, cos_delta) / self._speed
