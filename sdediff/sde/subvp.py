r"""The sub-VP process: the VP-SDE's signal with ``sigma = 1 - alpha^2`` (Song et al. 2021, eq. 29)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.numerics import log1mexp
from sdediff.sde.base import SDE
from sdediff.sde.vp import check_linear_beta, linear_log_alpha_step, linear_time


@dataclass(frozen=True)
class SubVPSDE(SDE):
    """The sub-VP SDE with linear beta.

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

    def _log_alpha(self, t: Tensor) -> Tensor:
        return linear_log_alpha_step(torch.zeros_like(t), t, self.beta_min, self.beta_max)

    def _log_alpha_step(self, s: Tensor, t: Tensor) -> Tensor:
        return linear_log_alpha_step(s, t, self.beta_min, self.beta_max)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2.0 * self._log_alpha(t))

    def _time(self, half_log_snr: Tensor) -> Tensor:
        # (1 - alpha^2) / alpha = exp(-lambda), that is 2 sinh(-log alpha) = exp(-lambda)
        return linear_time(torch.asinh(0.5 * torch.exp(-half_log_snr)), self.beta_min, self.beta_max)

    def _drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return (-self._beta(t) * torch.expm1(4.0 * self._log_alpha(t))).sqrt()
