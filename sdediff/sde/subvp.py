r"""The sub-VP process: the VP-SDE's signal with ``sigma = 1 - alpha^2`` (Song et al. 2021, eq. 29)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.numerics import log1mexp
from sdediff.sde.vp import LinearBeta


@dataclass(frozen=True)
class SubVPSDE(LinearBeta):
    """The sub-VP SDE with linear beta.

    Args:
        beta_min: rate at ``t = 0``.
        beta_max: rate at ``t = 1``.

    >>> sde = sdediff.SubVPSDE()
    >>> (sde.sigma(0.5) + sde.alpha(0.5) ** 2).round(decimals=6)
    tensor(1., dtype=torch.float64)
    """

    def _log_sigma(self, t: Tensor) -> Tensor:
        return log1mexp(2.0 * self._log_alpha(t))

    def _time(self, half_log_snr: Tensor) -> Tensor:
        # (1 - alpha^2) / alpha = exp(-lambda), that is 2 sinh(-log alpha) = exp(-lambda)
        return self._time_of_signal(-torch.asinh(0.5 * torch.exp(-half_log_snr)))

    def _diffusion(self, t: Tensor) -> Tensor:
        return (-self._beta(t) * torch.expm1(4.0 * self._log_alpha(t))).sqrt()
