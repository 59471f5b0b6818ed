"""Samplers with one fault each, which the laws must catch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame, velocity
from sdediff.samplers import StepSampler
from sdediff.samplers.base import Noise
from sdediff.samplers.bridge import bridge_std, recombine
from sdediff.samplers.multistep import Multistep, MultistepHistory, MultistepUpdate
from sdediff.samplers.predictor_corrector import PredictorCorrector
from sdediff.types import Level


@dataclass(frozen=True)
class HeunWithoutCorrector(StepSampler):
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        return y + (there.angle - here.angle) * velocity(denoise(y, here), here), carry


@dataclass(frozen=True)
class EqualStepWeights(Multistep):
    """Adams-Bashforth with the textbook weights of equal steps on a grid whose steps are not."""

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> MultistepHistory:
        table = ([1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
        widths = [there.angle - here.angle for here, there in pairwise(levels)]
        plan = [MultistepUpdate(1.0, [h * w for w in table[min(i, self.memory - 1)]]) for i, h in enumerate(widths)]
        return MultistepHistory(plan, 0, [])


@dataclass(frozen=True)
class AncestralWithTooMuchNoise(StepSampler):
    """The forward step's noise, and a mean that does not know of it: 5 % too much variance a step."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        std = bridge_std(here, there)
        return recombine(denoise(y, here), there, 1.05**0.5 * std, noise, mean_std=std), carry


@dataclass(frozen=True)
class CorrectorWithoutProviso(PredictorCorrector):
    """Langevin moves that are sized by each sample's norms on every grid."""

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        y = recombine(denoise(y, here), there, bridge_std(here, there), noise)
        z, eps = noise(1), denoise(y, there).eps
        size = 2.0 * self.snr**2 * (there.half_log_snr - here.half_log_snr) * (z / eps).square().clamp(max=1.0)
        return y + there.sin * ((2.0 * size).sqrt() * z - size * eps), carry
