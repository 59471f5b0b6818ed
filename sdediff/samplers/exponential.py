r"""Exponential integrators: three exact forms of the reverse process and the integrand of each.

From the level (cos, sin) to (cos', sin'), a step h in lambda, with ``eta = 0`` for the probability-flow ODE:

    velocity   y' = (cos/cos')^(eta^2) y           + (1 + eta^2) int (cos_s/cos')^(eta^2) v d theta     + std z
    epsilon    y' = (cos'/cos) y                   + (1 + eta^2) cos' int eps d tan                     + std z
    sample     y' = (sin'/sin) exp(-eta^2 h) y     + (1 + eta^2) sin' int exp(-eta^2 h_s) x0 d cot      + std z

with ``std = sqrt(1 - (cos/cos')^(2 eta^2))``, ``eta cos' sqrt(tan^2 - tan'^2)`` and ``sin' sqrt(1 - exp(-2 eta^2 h))``;
``h_s`` is the rest of the step and ``cos_s`` runs over it. All are exact (Lu et al. 2022a, eq. 3.4; Lu et al. 2022b,
eq. 8 and 18; the first from the drift of :mod:`sdediff.dynamics` by ``eps = sin y + cos v``); they differ in the
integrand that is approximated. For standard normal data v is zero, and the first exact in one step of any length.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import numpy as np
from torch import Tensor

from sdediff.samplers.clocks import NODES, WEIGHTS, FloatArray
from sdediff.types import Level, Split


def _step(here: Level[float], there: Level[float]) -> float:
    return there.half_log_snr - here.half_log_snr


class Integrand(ABC):
    """Integrand of an exponential integrator, in the process with a given eta; stateless."""

    def __init__(self, eta: float = 0.0) -> None:
        self.eta = eta

    @abstractmethod
    def factors(self, here: Level[float]) -> tuple[float, float]:
        """Return the factors of the clean and of the noise half in the integrand."""

    @final
    def value(self, split: Split, here: Level[float]) -> Tensor:
        """Evaluate the integrand, shape of the state."""
        return split.mix(*self.factors(here))

    @abstractmethod
    def keep(self, here: Level[float], there: Level[float]) -> float:
        """Return the factor of the old state."""

    @abstractmethod
    def mass(self, here: Level[float], there: Level[float]) -> float:
        """Return the factor of a constant integrand: the integral in closed form."""

    @abstractmethod
    def kernel(self, angle: FloatArray) -> FloatArray:
        """Return the weight function of the integral over the angle, up to a constant."""

    @abstractmethod
    def std(self, here: Level[float], there: Level[float]) -> float:
        """Return the standard deviation of the step's noise."""


class VelocityIntegrand(Integrand):
    """The velocity ``v = cos eps - sin x0``: nothing divided by sigma, and no linear term in the ODE."""

    def factors(self, here: Level[float]) -> tuple[float, float]:
        return -here.sin, here.cos

    def keep(self, here: Level[float], there: Level[float]) -> float:
        if self.eta > 0.0 and there.sin == 0.0:  # the last step denoises: x0 = cos y - sin v
            return here.cos
        return math.exp(-0.5 * self._log_decay(here, there))

    def mass(self, here: Level[float], there: Level[float]) -> float:
        power = self.eta**2
        if power == 0.0:
            return there.angle - here.angle
        if there.sin == 0.0:
            return -here.sin
        # in w = u^(1 + power), u = pi/2 - theta, the integrand is smooth even from pure noise, where cos is 0
        start, end = (math.atan2(level.cos, level.sin) for level in (here, there))
        low, high = math.pow(start, 1.0 + power), math.pow(end, 1.0 + power)
        u = (0.5 * (high + low) + 0.5 * (high - low) * NODES) ** (1.0 / (1.0 + power))
        return 0.5 * (low - high) * float(WEIGHTS @ (np.sin(u) / u) ** power) / math.pow(there.cos, power)

    def kernel(self, angle: FloatArray) -> FloatArray:
        kernel: FloatArray = np.cos(angle) ** self.eta**2
        return kernel

    def std(self, here: Level[float], there: Level[float]) -> float:
        return math.sqrt(-math.expm1(-self._log_decay(here, there)))

    def _log_decay(self, here: Level[float], there: Level[float]) -> float:
        """Return ``2 eta^2 log(cos' / cos)``; 0 in the last step, to the data."""
        if self.eta == 0.0 or there.sin == 0.0:
            return 0.0
        fall = -math.exp(-2.0 * here.half_log_snr) * math.expm1(-2.0 * _step(here, there))  # tan^2 - tan'^2
        return self.eta**2 * math.log1p(fall * there.cos**2)


class EpsilonIntegrand(Integrand):
    """The noise ``eps``."""

    def factors(self, here: Level[float]) -> tuple[float, float]:
        return 0.0, 1.0

    def keep(self, here: Level[float], there: Level[float]) -> float:
        return there.cos / here.cos

    def mass(self, here: Level[float], there: Level[float]) -> float:
        share = 1.0 + self.eta**2 if there.sin > 0.0 else 1.0  # the last step denoises and adds no noise
        return share * math.sin(there.angle - here.angle) / here.cos

    def kernel(self, angle: FloatArray) -> FloatArray:
        return np.cos(angle) ** -2

    def std(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0 or there.sin == 0.0:
            return 0.0
        return self.eta * there.cos * here.sin / here.cos * math.sqrt(-math.expm1(-2.0 * _step(here, there)))


class SampleIntegrand(Integrand):
    """The clean sample ``x0``."""

    def factors(self, here: Level[float]) -> tuple[float, float]:
        return 1.0, 0.0

    def keep(self, here: Level[float], there: Level[float]) -> float:
        decay = math.exp(-(self.eta**2) * _step(here, there)) if self.eta > 0.0 else 1.0
        return there.sin / here.sin * decay

    def mass(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0:
            return math.sin(here.angle - there.angle) / here.sin
        return -there.cos * math.expm1(-(1.0 + self.eta**2) * _step(here, there))

    def kernel(self, angle: FloatArray) -> FloatArray:
        return np.sin(angle) ** -2 * np.tan(angle) ** -(self.eta**2)

    def std(self, here: Level[float], there: Level[float]) -> float:
        if self.eta == 0.0:
            return 0.0
        return there.sin * math.sqrt(-math.expm1(-2.0 * self.eta**2 * _step(here, there)))


INTEGRANDS: dict[str, type[Integrand]] = {
    "velocity": VelocityIntegrand,
    "epsilon": EpsilonIntegrand,
    "sample": SampleIntegrand,
}
