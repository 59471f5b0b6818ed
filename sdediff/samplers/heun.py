r"""Heun's method on the probability-flow ODE ``dy / d theta = v`` (Karras et al. 2022, algorithm 1, on the angle)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame, velocity
from sdediff.samplers.base import Noise, StepSampler
from sdediff.types import Level


@dataclass(frozen=True)
class Heun(StepSampler):
    """Heun on the angle: the trapezoidal rule with an Euler predictor."""

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    evaluations: ClassVar[int] = 2
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; two forwards."""
        width = there.angle - here.angle
        slope = velocity(denoise(y, here), here)
        slope_there = velocity(denoise(y + width * slope, there), there)
        return y + 0.5 * width * (slope + slope_there), carry
