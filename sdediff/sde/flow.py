r"""The rectified flow as a diffusion: ``alpha = 1 - t``, ``sigma = t`` (Liu et al. 2023; Lipman et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.sde.base import SDE


@dataclass(frozen=True)
class RectifiedFlow(SDE):
    """Straight-line interpolation between data (``t = 0``) and noise (``t = 1``).

    The drift is singular at ``t = 1``, where no signal is left; solvers start at ``t_max = 0.9999``.

    >>> sdediff.RectifiedFlow().perturb(torch.zeros(1, 2), 0.25, torch.ones(1, 2))
    tensor([[0.2500, 0.2500]])
    """

    t_max: ClassVar[float] = 0.9999

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return torch.log(t)

    def _time(self, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-half_log_snr)

    def _drift_rate(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return (2.0 * t / (1.0 - t)).sqrt()
