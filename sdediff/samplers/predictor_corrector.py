r"""Predictor-corrector (Song et al. 2021, algorithm 1 and appendix G): ancestral steps, each followed by Langevin.

A Langevin move at noise level sin is ``y + e score + sqrt(2 e) z`` with ``e = 2 (snr |z| / |score|)^2``, for each
sample by its own norms. Two changes make it safe. Near a mode the score vanishes and ``e`` would diverge, so it is
limited to its value for pure noise, ``2 snr^2 sin^2``. And a move whose size depends on its own state and noise does
not preserve the density, so where the step in lambda is below 1, ``e`` is multiplied by it and the share of the
sample's own norms in ``e`` is too: the bias that remains is of second order in a step, and the method is of order 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import expand, sum_features
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.bridge import bridge_std, recombine
from sdediff.types import Level


@dataclass(frozen=True)
class PredictorCorrector(StepSampler):
    """Predictor-corrector: ancestral steps, Langevin moves.

    Args:
        snr: signal-to-noise ratio of a Langevin move.
        corrections: number of Langevin moves after each step.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True
    grid: ClassVar[str] = "reference"
    steps: ClassVar[int] = 100

    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.snr < 1.0 or self.corrections < 0:
            raise ValueError(
                f"snr must lie in (0, 1) and corrections be at least 0, not {self.snr} and {self.corrections}"
            )

    @property
    def evaluations(self) -> int:
        return 1 + self.corrections

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; one forward, and one a correction."""
        y = recombine(denoise(y, here), there, bridge_std(here, there), noise)
        share = min(1.0, there.half_log_snr - here.half_log_snr)
        for k in range(self.corrections):
            z, eps = noise(k + 1), denoise(y, there).eps
            ratio = (sum_features(z.square()) / sum_features(eps.square())).clamp(max=1.0)
            size = 2.0 * self.snr**2 * share * (1.0 + share * (ratio - 1.0))  # in units of sin^2
            y = y + there.sin * (expand((2.0 * size).sqrt(), y) * z - expand(size, y) * eps)
        return y, carry
