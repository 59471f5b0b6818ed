r"""Clocks: functions of the noise level in which the integrand of a solver is smooth.

All are functions of ``tan(theta) = sigma / alpha``, and fall or rise monotonically while we denoise:

- ``"logsnr"``, ``-log tan``, the exponential integrators' own; infinite at both ends;
- ``"angle"``, theta, in which the ODE has no linear term;
- ``"asinh"``, ``asinh(tan / 0.3)``, linear near the data and logarithmic in the noise;
- :func:`clock_of`, ``log((1 + tan / NEAR) / (1 + tan / FAR))``: linear in sigma / alpha near the data, logarithmic
  between ``NEAR`` and ``FAR``, and linear in alpha / sigma in the noise: at both ends the velocity is a power series in
  it;
- :func:`log_level`, ``log tan`` with finite ends: the variable of the quadrature over a step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gauss-Legendre quadrature on [-1, 1]."""

BEND = 0.3
"""sigma / alpha at which the clock "asinh" turns from linear to logarithmic."""

CLOCKS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "logsnr": lambda angle: -np.log(np.tan(angle)),
    "angle": lambda angle: angle,
    "asinh": lambda angle: np.arcsinh(np.tan(angle) / BEND),  # linear near the data, logarithmic in the noise
}
"""Functions of the angle, by name, in which an integrand is interpolated by polynomials."""

NEAR, FAR = 0.15, 3.0
"""sigma / alpha at which ``clock_of`` turns from linear to logarithmic, and back (measured on three kinds of data)."""


def clock_of(tan: FloatArray) -> FloatArray:
    """Return the clock at a ratio ``sigma / alpha``; it falls while we denoise."""
    return np.log1p(tan / NEAR) - np.log1p(tan / FAR)


def tan_of(clock: FloatArray) -> FloatArray:
    """Return the ratio ``sigma / alpha`` at a value of :func:`clock_of`."""
    grown = np.expm1(clock)
    return grown / (1.0 / NEAR - (grown + 1.0) / FAR)


def cosine(tan: FloatArray) -> FloatArray:
    """Return the cosine of an angle from its tangent."""
    return 1.0 / np.hypot(1.0, tan)


_FLAT = 0.005
"""sigma / alpha below which, and above the inverse of which, ``log_level`` flattens by default."""


def log_level(angle: FloatArray, far: float = _FLAT, near: float = _FLAT) -> FloatArray:
    """Return ``log tan`` with finite ends at 0 and pi/2: ``log (tan + near) / (1 + far tan)``."""
    sin, cos = np.sin(angle), np.cos(angle)
    level: FloatArray = np.log((sin + near * cos) / (cos + far * sin))
    return level


def angle_of(level: FloatArray, far: float = _FLAT, near: float = _FLAT) -> tuple[FloatArray, FloatArray]:
    """Return the angle at a value of :func:`log_level`, and its derivative."""
    tan = np.exp(level)
    over, under = tan - near, 1.0 - far * tan
    return np.arctan2(over, under), tan * (1.0 - near * far) / (over**2 + under**2)
