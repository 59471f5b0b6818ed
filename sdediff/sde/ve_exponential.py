r"""The variance-exploding process of Song's tutorial: ``alpha = 1``, ``dx = base^t dW``.

Its variance is the integral of the squared diffusion, ``sigma^2 = (base^(2t) - 1) / (2 log base)``, which is 0 at t = 0
(Song, "Generative modeling by estimating gradients of the data distribution", 2021: ``marginal_prob_std(t, sigma)``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.numerics import log1mexp, softplus
from sdediff.sde.base import SDE


@dataclass(frozen=True)
class ExponentialVESDE(SDE):
    """The VE-SDE ``dx = base^t dW``; the tutorial calls the base ``sigma``.

    Its networks return the score: ``ScoreModel(score_model, ExponentialVESDE(25.0), "score")``.

    Args:
        base: diffusion at ``t = 1``, where the noise is ``base / sqrt(2 log base)`` for a large base; above 1.

    Raises:
        ValueError: for a base that is not finite and above 1.

    >>> sdediff.ExponentialVESDE(25.0).sigma(torch.tensor([0.0, 1.0])).round(decimals=4)
    tensor([0.0000, 9.8452], dtype=torch.float64)
    """

    base: float = 25.0

    def __post_init__(self) -> None:
        if not 1.0 < self.base < math.inf:
            raise ValueError(f"the base of the diffusion base^t must be finite and above 1, not {self.base}")

    @property
    def _rate(self) -> float:
        """Growth rate of the squared diffusion."""
        return 2.0 * math.log(self.base)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0.0 * t

    def _log_sigma(self, t: Tensor) -> Tensor:
        # log(e^(rate t) - 1), without overflow for a large base and without cancellation near the data
        return 0.5 * (self._rate * t + log1mexp(-self._rate * t) - math.log(self._rate))

    def _time(self, half_log_snr: Tensor) -> Tensor:
        return softplus(math.log(self._rate) - 2.0 * half_log_snr) / self._rate

    def _transition_variance(self, s: Tensor, t: Tensor) -> Tensor:
        return torch.exp(self._rate * s) * torch.expm1(self._rate * (t - s)) / self._rate

    def _drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self._rate * t)
