r"""Clocks: functions of the noise level in which what a solver integrates is smooth.

All are read off ``tan(theta) = sigma / alpha``, and fall or rise monotonically while we denoise:

- ``"logsnr"``, ``-log tan``, the exponential integrators' own; infinite at both ends;
- ``"angle"``, theta, in which the ODE has no linear term;
- ``"asinh"``, ``asinh(tan / 0.3)``, linear near the data and logarithmic in the noise;
- :func:`clock_of`, ``log((1 + tan / NEAR) / (1 + tan / FAR))``: linear in sigma / alpha near the data, logarithmic
  between ``NEAR`` and ``FAR``, and linear in alpha / sigma in the noise: at both ends the velocity is a power series in
  it;
- :func:`log_level`, ``log tan`` with finite ends, even steps in which are those of a quadrature over a step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gauss-Legendre quadrature on [-1, 1]."""

_BEND = 0.3
"""sigma / alpha at which the clock "asinh" turns from linear to logarithmic."""

CLOCKS: dict[str, Callable[[Array], Array]] = {
    "logsnr": lambda angle: -np.log(np.tan(angle)),
    "angle": lambda angle: angle,
    "asinh": lambda angle: np.arcsinh(np.tan(angle) / _BEND),  # linear near the data, logarithmic in the noise
}
"""Functions of the angle in which a remembered value is a polynomial."""

NEAR, FAR = 0.15, 3.0
"""sigma / alpha at which the clock turns from linear to logarithmic, and back (measured on three kinds of data)."""


def clock_of(tan: Array) -> Array:
    """The clock at a ratio ``sigma / alpha``; it falls while we denoise."""
    return np.log1p(tan / NEAR) - np.log1p(tan / FAR)


def tan_of(clock: Array) -> Array:
    """The inverse of :func:`clock_of`."""
    grown = np.expm1(clock)
    return grown / (1.0 / NEAR - (grown + 1.0) / FAR)


def cosine(tan: Array) -> Array:
    """The cosine of an angle, from its tangent."""
    return 1.0 / np.hypot(1.0, tan)


_NEAR = 0.005
"""The noise level below which, and its inverse above which, ``log_level`` flattens."""


def log_level(angle: Array) -> Array:
    """``log tan`` with finite ends at 0 and pi/2: ``log (tan + c) / (1 + c tan)``."""
    sin, cos = np.sin(angle), np.cos(angle)
    level: Array = np.log((sin + _NEAR * cos) / (cos + _NEAR * sin))
    return level


def angle_of(level: Array) -> tuple[Array, Array]:
    """The inverse of :func:`log_level`, and its derivative."""
    tan = np.exp(level)
    over, under = tan - _NEAR, 1.0 - _NEAR * tan
    return np.arctan2(over, under), tan * (1.0 - _NEAR**2) / (over**2 + under**2)
