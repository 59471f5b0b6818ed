r"""Euler-Maruyama on the reverse SDE in lambda (Maruyama 1955; Song et al. 2021, eq. 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame, diffusion, drift
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.ddim import check_eta
from sdediff.types import Level


@dataclass(frozen=True)
class EulerMaruyama(StepSampler):
    """Euler-Maruyama on the reverse SDE, in lambda.

    Args:
        eta: 1 for the reverse SDE, 0 for the probability-flow ODE, between for the family between.
    """

    order: ClassVar[int] = 1
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True
    steps: ClassVar[int] = 100

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; one forward."""
        width = there.half_log_snr - here.half_log_snr
        y = y + width * drift(y, denoise(y, here), here, self.eta)
        return (y + diffusion(here, self.eta) * math.sqrt(width) * noise(0) if self.eta > 0.0 else y), carry
