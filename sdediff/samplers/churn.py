r"""Stochastic sampling by churn (Karras et al. 2022, algorithm 2): before each step the noise is raised a little.

With ``tan = sigma / alpha`` raised to ``(1 + gamma) tan``, in the variance-preserving frame,

    y' = (cos' / cos) y + cos' sqrt(tan'^2 - tan^2) S_noise z,       gamma = min(S_churn / N, sqrt(2) - 1),

which at ``S_noise = 1`` is the forward process itself, so that the marginal of the raised level is exact for any amount
of churn. A deterministic step leads from there to the next node; the weak order is that step's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import combine
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.singlestep import Singlestep
from sdediff.types import Level

_MOST_GAMMA = math.sqrt(2.0) - 1.0  # at which the variance of the noise doubles

EDM_HEUN = Singlestep("epsilon", "logsnr", (1.0,), "middle")
"""Heun's method on ``d(x / alpha) / d(sigma / alpha) = eps`` (Karras et al. 2022, algorithm 1)."""


@dataclass(frozen=True)
class Churn(StepSampler):
    """Churn: fresh noise before every step of a deterministic method (Karras et al. 2022).

    Args:
        churn: ``S_churn``, the sum over all steps; 0 is the deterministic method.
        low: ``S_tmin``, the smallest sigma / alpha at which noise is added.
        high: ``S_tmax``, the largest such sigma / alpha.
        inflate: ``S_noise``, factor of the fresh noise. Above 1 (Karras et al. take 1.003 to 1.007) it compensates
            networks that remove too much noise, and the limit of many steps is no longer the process's own law.
        method: deterministic step.

    Raises:
        ValueError: for negative amounts, or ``low`` not below ``high``.
    """

    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True
    steps: ClassVar[int] = 100

    churn: float = 40.0
    low: float = 0.05
    high: float = 50.0
    inflate: float = 1.0
    method: Singlestep = EDM_HEUN

    def __post_init__(self) -> None:
        if not (self.churn >= 0.0 and self.inflate >= 0.0):
            raise ValueError(f"churn and inflate must be at least 0, not {self.churn} and {self.inflate}")
        if not 0.0 <= self.low < self.high:
            raise ValueError(f"low must be at least 0 and below high, not {self.low} and {self.high}")

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def stochastic(self) -> bool:
        return self.churn > 0.0

    @property
    def evaluations(self) -> int:
        return self.method.evaluations

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> float:
        """Return gamma, the relative increase of sigma / alpha in a step."""
        return min(self.churn / (len(levels) - 1), _MOST_GAMMA)

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: float
    ) -> tuple[Tensor, float]:
        """Take a step, with as many forwards as the deterministic method."""
        raised = self.raised(denoise, here, carry)
        if raised.half_log_snr < here.half_log_snr:
            y = combine([(raised.cos / here.cos, y), (self.inflate * noise_std(here, raised), noise(0))])
        return self.method.step(denoise, y, raised, there, noise, None)[0], carry

    def raised(self, frame: Frame, here: Level[float], gamma: float) -> Level[float]:
        """Return the level to which ``here`` is raised: at most the noisiest level of the process."""
        if gamma == 0.0 or not self.low <= math.tan(here.angle) <= self.high:
            return here
        return frame.at_half_log_snr(here.half_log_snr - math.log1p(gamma))


def noise_std(here: Level[float], there: Level[float]) -> float:
    """Return the standard deviation of the state ``there`` given the less noisy state ``here``, in the frame."""
    return there.sin * math.sqrt(-math.expm1(2.0 * (there.half_log_snr - here.half_log_snr)))
