r"""The variance-exploding process: ``alpha = 1``, ``sigma = sigma_min (sigma_max / sigma_min)^t``.

Song et al. (2021), eq. 30 and appendix C: ``sigma(0) = 0``, so t = 0 is the data and ``sigma(0+) = sigma_min``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.sde.base import SDE


@dataclass(frozen=True)
class VESDE(SDE):
    """The VE-SDE with geometric noise levels.

    Args:
        sigma_min: noise just above ``t = 0``, in units of the data.
        sigma_max: noise at ``t = 1``; of the order of the largest distance between two data points.

    >>> sdediff.VESDE(sigma_max=10.0).sigma(torch.tensor([0.0, 1.0])).round(decimals=6)
    tensor([ 0., 10.], dtype=torch.float64)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma needs 0 < sigma_min < sigma_max, not sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    def _log_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min) + t * self._log_ratio

    def _time(self, half_log_snr: Tensor) -> Tensor:
        return -(half_log_snr + math.log(self.sigma_min)) / self._log_ratio

    def _half_log_snr_step(self, s: Tensor, t: Tensor) -> Tensor:
        return -(t - s) * self._log_ratio

    def _drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_sigma(t)) * math.sqrt(2.0 * self._log_ratio)
