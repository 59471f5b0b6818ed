r"""Interpolation by a kernel instead of a polynomial: weights for few, long steps.

A polynomial through the last values extrapolates too boldly when steps are long or unequal. Take what is interpolated
for a random function of the angle instead: a constant, a line of slope about 1, and parts with the covariance

    exp(-(theta - theta')^2 / (2 0.7^2))  +  0.3 exp(-(w - w')^2 / (2 3^2))  +  e e' exp(-(q - q')^2 / (2 2^2)):

one that changes over the whole way; one that changes within factors of the noise level, down to 0.05, as fine structure
does (``w = asinh(theta / 0.05)``); and the network's own error, which has another sign at every scale of the noise
(``q`` is the log of the noise level). It is small (e = 0.01) unless what the network predicts magnifies it: a relative
error in epsilon is 1 / cos as large in the velocity, and only the kernel's own shape makes that harmless (such an error
is then integrated like DDIM does, as one in epsilon). The conditional mean given the known values is the best linear
interpolation (O'Hagan 1991). On short steps it *is* the polynomial, the flat limit of smooth kernels (Driscoll &
Fornberg 2002), so orders are those of Adams methods. The numbers were chosen on exact problems and two trained
networks; data are taken to be of size about 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sdediff.samplers.exponential import Array

_CONSTANT, _NOISE, _MAGNIFIED = 10.0, 1e-4, 1e-2
"""Variances: of the constant, of the network's error, and of what a prediction magnifies, per unit of gain^2 - 1."""
_NEAR = 0.005
"""The noise level below which, and its inverse above which, ``log_level`` flattens."""
_WORST = 1e10
"""Condition number from which the kernel matrix is left for its polynomial limit."""


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


def error(gain: Array) -> Array:
    """Standard deviation of the network's error, which its prediction magnifies by ``gain``, in the velocity."""
    deviation: Array = np.sqrt(_NOISE + _MAGNIFIED * np.maximum(gain**2 - 1.0, 0.0))
    return deviation


def _fine(angle: Array) -> Array:
    return np.arcsinh(angle / 0.05)


def _bump(a: Array, b: Array, length: float) -> Array:
    value: Array = np.exp(-0.5 * ((a[:, None] - b) / length) ** 2)
    return value


def covariance(a: Array, b: Array, error_a: Array, error_b: Array) -> Array:
    """The kernel between two sets of angles with their errors, ``(len(a), len(b))``."""
    smooth = _CONSTANT + np.outer(a, b) + _bump(a, b, 0.7) + 0.3 * _bump(_fine(a), _fine(b), 3.0)
    return smooth + np.outer(error_a, error_b) * _bump(log_level(a), log_level(b), 2.0)


def cardinals(known: Array, at: Array, gain: Callable[[Array], Array] = np.ones_like) -> Array:
    """The functions that interpolate, ``(len(known), len(at))``: the j-th is 1 at ``known[j]``, 0 at the others.

    Args:
        known: angles of the known values, all different.
        at: angles at which the functions are wanted.
        gain: by which the network's error is magnified, as a function of the angle.
    """
    error_known = error(gain(known))
    gram = covariance(known, known, error_known, error_known)
    if np.linalg.cond(gram) > _WORST:
        return lagrange(known, at)
    return np.linalg.solve(gram, covariance(known, at, error_known, error(gain(at)))).astype(np.float64)


def lagrange(known: Array, at: Array) -> Array:
    """The same for the polynomial in the angle, ``(len(known), len(at))``."""
    powers, reach = np.arange(len(known))[:, None], np.abs(known - at.mean()).max()
    solved: Array = np.linalg.solve(((known - known[0]) / reach) ** powers, ((at - known[0]) / reach) ** powers)
    return solved
