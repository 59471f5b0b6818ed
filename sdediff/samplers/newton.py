r"""Adams methods of variable step and order, one step a sample: integrals of Newton's polynomials.

A sample's velocity is interpolated by the polynomial in a clock ``w`` through its values at the last nodes, written in
divided differences. A step over ``[w_0, w_1]`` adds ``sum_p c_p v[n, ..., n - p]`` with

    c_p = int (w - w_n) ... (w - w_{n - p + 1}) d theta,

a Gauss-Legendre sum, exact to rounding on whatever nodes there are (Shampine & Gordon 1975, chapter 5, in the clock
``t``). The clock here is

    w = log((1 + tan / NEAR) / (1 + tan / FAR)),

linear in sigma / alpha near the data, logarithmic between ``NEAR`` and ``FAR``, and linear in alpha / sigma in the
noise: at both ends the velocity is a power series in the clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdediff.samplers.exponential import NODES, WEIGHTS, Array

Counts = NDArray[np.int64]

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


def integrals(start: Array, end: Array, nodes: Array, count: int, power: float = 0.0) -> Array:
    """Integrals over the angle of Newton's first polynomials, ``(B, count)``.

    Args:
        start: clocks ``(B,)`` at which the steps start.
        end: clocks ``(B,)`` at which they end.
        nodes: clocks ``(B, count - 1)`` or more of the zeros, in the order in which they enter.
        count: number of polynomials; the first is 1.
        power: of the cosine of the angle, by which all are multiplied.
    """
    half = 0.5 * (end - start)[:, None]
    w = 0.5 * (end + start)[:, None] + half * NODES
    tan = tan_of(w)
    product = half * WEIGHTS * (NEAR + tan) * (FAR + tan) / (FAR - NEAR) * cosine(tan) ** (2.0 + power)
    found = [product.sum(axis=1)]
    for p in range(count - 1):
        product = product * (w - nodes[:, p, None])
        found.append(product.sum(axis=1))
    return np.stack(found, axis=1)


def reach(here: Array, room: Array, nodes: Array, order: Counts, size: Array, aim: float, guess: Array) -> Array:
    """How far an Adams-Bashforth step may go: the length at which ``|c_order| size = aim``, at most ``room``.

    The integral grows like a power of the length where the angle is linear in the clock, and faster elsewhere; a few
    fixed-point steps in the logarithm find what the next forward will check in any case.

    Args:
        here: clocks ``(B,)`` of the last nodes.
        room: signed distance ``(B,)`` to the end of the interval.
        nodes: clocks ``(B, K)`` of the past nodes, newest first.
        order: the order of each, ``(B,)``.
        size: norm of the divided difference of that order, in units of the tolerance, ``(B,)``.
        aim: the error wanted.
        guess: a length to start from, ``(B,)``.
    """
    length, rows = guess, np.arange(len(here))
    for _ in range(6):
        error = np.abs(integrals(here, here + np.sign(room) * length, nodes, int(order.max()) + 1)[rows, order]) * size
        factor = (aim / np.maximum(error, 1e-300)) ** (1.0 / (order + 1))
        length = np.clip(length * np.clip(factor, 0.2, 5.0), 1e-12, np.abs(room))
    return length
