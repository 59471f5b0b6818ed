r"""Interpolation by a kernel instead of a polynomial: weights for few, long steps.

A polynomial through the last values extrapolates too boldly when steps are long or unequal. Take what is interpolated
for a random function of the angle instead: an unknown constant, a line of slope about 1, and parts with the covariance

    exp(-(theta - theta')^2 / (2 0.7^2))  +  0.3 exp(-(w - w')^2 / (2 3^2))  +  1e-4 exp(-(q - q')^2 / (2 2^2)):

one that changes over the whole way; one that changes within factors of the noise level, down to 0.05, as fine structure
does (``w = asinh(theta / 0.05)``); and the network's own error, small but of another sign at every scale of the noise
(``q`` is the log of the noise level), for which a sum of values must not have large weights of both signs. The
conditional mean given the known values is the best linear interpolation (O'Hagan 1991). On short steps it *is* the
polynomial, the flat limit of smooth kernels (Driscoll & Fornberg 2002), so orders are those of Adams methods. The
numbers were chosen on exact problems and one trained network; data are taken to be of size about 1.
"""

from __future__ import annotations

import numpy as np

from sdediff.samplers.held import Array

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


def _fine(angle: Array) -> Array:
    return np.arcsinh(angle / 0.05)


_PARTS = ((1.0, 0.7, lambda angle: angle), (0.3, 3.0, _fine), (1e-4, 2.0, log_level))
"""Variance, length and clock of each part of the covariance."""


def covariance(a: Array, b: Array) -> Array:
    """The kernel between two sets of angles, ``(len(a), len(b))``."""
    total = np.outer(a, b)
    for variance, length, clock in _PARTS:
        total += variance * np.exp(-0.5 * ((clock(a)[:, None] - clock(b)) / length) ** 2)
    return total


def cardinals(known: Array, at: Array) -> Array:
    """The functions that interpolate, ``(len(known), len(at))``: the j-th is 1 at ``known[j]`` and 0 at the others.

    Args:
        known: angles of the known values, all different.
        at: angles at which the functions are wanted.
    """
    gram = covariance(known, known)
    if np.linalg.cond(gram) > _WORST:
        return lagrange(known, at)
    ones = np.ones((len(known), 1))
    bordered = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    solved: Array = np.linalg.solve(bordered, np.concatenate([covariance(known, at), np.ones((1, len(at)))]))
    return solved[:-1]


def lagrange(known: Array, at: Array) -> Array:
    """The same for the polynomial in the angle."""
    powers, reach = np.arange(len(known))[:, None], np.abs(known - at.mean()).max()
    solved: Array = np.linalg.solve(((known - known[0]) / reach) ** powers, ((at - known[0]) / reach) ** powers)
    return solved
