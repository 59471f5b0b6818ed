r"""What a multistep solver holds, and the exact form of the reverse process that goes with it.

From the level (cos, sin) to (cos', sin'), a step h in lambda, with ``eta = 0`` for the probability-flow ODE:

    velocity   y' = y                              + int v d theta                                      (eta = 0 only)
    epsilon    y' = (cos'/cos) y                   + (1 + eta^2) cos' int eps d tan                     + std z
    sample     y' = (sin'/sin) exp(-eta^2 h) y     + (1 + eta^2) sin' int exp(-eta^2 h_s) x0 d cot      + std z

with ``std = eta cos' sqrt(tan^2 - tan'^2)`` and ``std = sin' sqrt(1 - exp(-2 eta^2 h))``; ``h_s`` is the rest of the
step. All are exact (Lu et al. 2022a, eq. 3.4; Lu et al. 2022b, eq. 8 and 18); they differ in what is approximated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff.dynamics import velocity
from sdediff.types import Level, Split

Array = NDArray[np.float64]


def _step(here: Level[float], there: Level[float]) -> float:
    return there.half_log_snr - here.half_log_snr


class Held(ABC):
    """A choice of what is held, in the process with a given eta; stateless."""

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = eta

    @abstractmethod
    def value(self, split: Split, here: Level[float]) -> Tensor:
        """The held quantity, shape of the state."""

    @abstractmethod
    def keep(self, here: Level[float], there: Level[float]) -> float:
        """The factor of the old state."""

    @abstractmethod
    def mass(self, here: Level[float], there: Level[float]) -> float:
        """The factor of a constant held quantity: the integral in closed form."""

    @abstractmethod
    def kernel(self, angle: Array) -> Array:
        """What the held quantity is integrated against over the angle, up to a constant."""

    @abstractmethod
    def std(self, here: Level[float], there: Level[float]) -> float:
        """Standard deviation of the step's noise."""


class Velocity(Held):
    """``v = cos eps - sin x0``: no linear term, nothing divided by sigma."""

    def __init__(self, eta: float = 0.0) -> None:
        if eta != 0.0:
            raise ValueError(f"the velocity is held in the ODE only (eta = 0), not with eta = {eta}")
        super().__init__(eta)

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return velocity(split, here)

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return 1.0

    def mass(self, here: Level[float], there: Level[float]) -> float:
        return there.angle - here.angle

    def kernel(self, angle: Array) -> Array:
        return np.ones_like(angle)

    def std(self, here: Level[float], there: Level[float]) -> float:
        return 0.0


class Epsilon(Held):
    """The noise."""

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return split.eps

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return there.cos / here.cos

    def mass(self, here: Level[float], there: Level[float]) -> float:
        return (1.0 + self.eta**2) * math.sin(there.angle - here.angle) / here.cos

    def kernel(self, angle: Array) -> Array:
        return np.cos(angle) ** -2

    def std(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0:
            return 0.0
        return self.eta * there.cos * here.sin / here.cos * math.sqrt(-math.expm1(-2.0 * _step(here, there)))


class Sample(Held):
    """The clean sample."""

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return split.x0

    def keep(self, here: Level[float], there: Level[float]) -> float:
        decay = math.exp(-(self.eta**2) * _step(here, there)) if self.eta > 0.0 else 1.0
        return there.sin / here.sin * decay

    def mass(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0:
            return math.sin(here.angle - there.angle) / here.sin
        return -there.cos * math.expm1(-(1.0 + self.eta**2) * _step(here, there))

    def kernel(self, angle: Array) -> Array:
        return np.sin(angle) ** -2 * np.tan(angle) ** -(self.eta**2)

    def std(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0:
            return 0.0
        return there.sin * math.sqrt(-math.expm1(-2.0 * self.eta**2 * _step(here, there)))


HELD: dict[str, type[Held]] = {"velocity": Velocity, "epsilon": Epsilon, "sample": Sample}
