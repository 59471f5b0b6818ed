r"""Adams-Bashforth on the probability-flow ODE ``dy / d theta = v``.

The last values of ``v`` are interpolated by a polynomial in the clock ``w = asinh(tan(theta) / c)`` and integrated
exactly over the step (Hairer, Norsett & Wanner 1993, section III.5, variable steps). On this clock, logarithmic in
sigma / alpha when noisy and linear near the data, ``v`` is close to a polynomial; neither clock knows the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff.dynamics import Frame, velocity
from sdediff.samplers.base import Draw, StepSampler
from sdediff.types import Level

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)  # exact far beyond rounding for one step's smooth integrand

Carry = tuple[Iterator[list[float]], list[Tensor]]


@dataclass(frozen=True)
class AdamsBashforth(StepSampler):
    """Adams-Bashforth on the angle: one forward a step, lower order while its history fills.

    Args:
        max_order: number of velocities used, 1 to 6.
        bend: the ``sigma / alpha`` at which the clock turns from linear to logarithmic.
    """

    order: ClassVar[int] = 4
    stochastic: ClassVar[bool] = False

    max_order: int = 4
    bend: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 6 or not self.bend > 0.0:
            raise ValueError(f"max_order must be 1 to 6 and bend positive, not {self.max_order} and {self.bend}")
        object.__setattr__(self, "order", self.max_order)

    def begin(self, levels: list[Level[float]]) -> Carry:
        """The weights of every step (newest velocity first), and no history."""
        angles = np.array([level.angle for level in levels])
        return (self._weights(angles, i) for i in range(len(levels) - 1)), []

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Carry
    ) -> tuple[Tensor, Carry]:
        """One forward."""
        weights, history = carry
        history = [velocity(denoise(y, here), here), *history[: self.max_order - 1]]
        for weight, slope in zip(next(weights), history, strict=True):
            y = y + weight * slope
        return y, (weights, history)

    def _clock(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.arcsinh(np.tan(angle) / self.bend)

    def _weights(self, angles: NDArray[np.float64], i: int) -> list[float]:
        """Integrals over step i of the Lagrange polynomials through the last nodes."""
        start, end = angles[i], angles[i + 1]
        known = self._clock(angles[max(0, i + 1 - self.max_order) : i + 1][::-1])
        at = self._clock(start + 0.5 * (end - start) * (_NODES + 1.0))
        weights = []
        for j in range(len(known)):
            others = np.delete(known, j)
            basis = np.prod((at[:, None] - others) / (known[j] - others), axis=1)
            weights.append(float(0.5 * (end - start) * (_WEIGHTS @ basis)))
        return weights
