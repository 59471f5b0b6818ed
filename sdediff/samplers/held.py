r"""What a multistep solver holds, and the exact form of the probability-flow ODE that goes with it.

In the variance-preserving frame, from the angle theta to theta':

    velocity   y' = y                + int v d theta
    epsilon    y' = (cos'/cos) y     + cos' int eps d tan(theta)
    sample     y' = (sin'/sin) y     + sin' int x0 d cot(theta)

All three are exact (Lu et al. 2022a, eq. 3.4; Lu et al. 2022b, eq. 8); they differ in what has to be approximated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff.dynamics import velocity
from sdediff.types import Level, Split

Array = NDArray[np.float64]


class Held(ABC):
    """A choice of what is held; stateless."""

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


class Velocity(Held):
    """``v = cos eps - sin x0``: no linear term, nothing divided by sigma."""

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return velocity(split, here)

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return 1.0

    def mass(self, here: Level[float], there: Level[float]) -> float:
        return there.angle - here.angle

    def kernel(self, angle: Array) -> Array:
        return np.ones_like(angle)


class Epsilon(Held):
    """The noise."""

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return split.eps

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return there.cos / here.cos

    def mass(self, here: Level[float], there: Level[float]) -> float:
        return float(np.sin(there.angle - here.angle)) / here.cos

    def kernel(self, angle: Array) -> Array:
        return np.cos(angle) ** -2


class Sample(Held):
    """The clean sample."""

    def value(self, split: Split, here: Level[float]) -> Tensor:
        return split.x0

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return there.sin / here.sin

    def mass(self, here: Level[float], there: Level[float]) -> float:
        return float(np.sin(here.angle - there.angle)) / here.sin

    def kernel(self, angle: Array) -> Array:
        return np.sin(angle) ** -2


HELD: dict[str, Held] = {"velocity": Velocity(), "epsilon": Epsilon(), "sample": Sample()}
