r"""Coefficients of multistep methods on any grid, in float64.

The held quantity is interpolated by the polynomial in a clock ``w`` through its values at some nodes, and averaged over
a step with its kernel: ``weight_j = mass <L_j>``. With ``s = (w - w_here) / (w_there - w_here)`` the averages of the
powers, ``<s^k>``, are Gauss-Legendre sums, exact to rounding, of terms of one size: nothing cancels however small the
step. Published formulas of second and third order alter single averages; those are the rules below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sdediff.samplers.exponential import NODES, WEIGHTS, Array, Held
from sdediff.types import Level

_BEND = 0.3

CLOCKS: dict[str, Callable[[Array], Array]] = {
    "logsnr": lambda angle: -np.log(np.tan(angle)),
    "angle": lambda angle: angle,
    "asinh": lambda angle: np.arcsinh(np.tan(angle) / _BEND),  # linear near the data, logarithmic in the noise
}
"""Functions of the angle in which a held quantity is a polynomial."""


def exact(averages: Array) -> Array:
    """The interpolating polynomial's own average."""
    return averages


def middle(averages: Array) -> Array:
    """Through two values, the polynomial at the middle of the step (Lu et al. 2022b; Zhao et al. 2023, B_2)."""
    return np.array([1.0, 0.5]) if len(averages) == 2 else averages


def half(averages: Array) -> Array:
    """Through three values, half the quadratic term (the third-order stochastic update of k-diffusion's code)."""
    return averages * np.array([1.0, 1.0, 0.5]) if len(averages) == 3 else averages


def halved(averages: Array) -> Array:
    """As ``half``; through two values, as ``middle`` (the third-order update of Lu et al.'s code)."""
    return half(averages) if len(averages) == 3 else middle(averages)


RULES: dict[str, Callable[[Array], Array]] = {"exact": exact, "middle": middle, "half": half, "halved": halved}
"""What becomes of the averages ``<s^k>`` of a step."""


def weights(
    held: Held,
    clock: str,
    rule: str,
    known: Sequence[Level[float]],
    here: Level[float],
    there: Level[float],
) -> list[float]:
    """Factors of the held values at ``known`` in the step from ``here`` to ``there``.

    Where the clock is infinite at an end of the step, or only the value at the end counts (the clean sample on the
    clean level; any, where noise is added before), the first of ``known`` stands for all: a step of order 1, as usual
    for the last one.

    Args:
        held: what is interpolated.
        clock: a name of ``CLOCKS``.
        rule: a name of ``RULES``.
        known: the levels of the values.
        here: start of the step.
        there: end of the step.
    """
    mass, read = held.mass(here, there), CLOCKS[clock]
    with np.errstate(divide="ignore"):
        start, end, *at = read(np.array([here.angle, there.angle, *(level.angle for level in known)]))
    lands = held.keep(here, there) == 0.0 or (held.eta > 0.0 and there.sin == 0.0)
    if not (np.isfinite(start) and np.isfinite(end)) or lands:
        return [mass] + [0.0] * (len(known) - 1)
    angle, share = _quadrature(here, there)
    share = share * held.kernel(angle)
    powers = np.arange(len(known))[:, None]
    averages = (((read(angle) - start) / (end - start)) ** powers) @ share / share.sum()
    nodes = (np.array(at) - start) / (end - start)
    return [float(mass * weight) for weight in np.linalg.solve(nodes**powers, RULES[rule](averages))]


def _quadrature(here: Level[float], there: Level[float]) -> tuple[Array, Array]:
    """Nodes (angles) and weights over a step: in lambda, where the kernels are entire, else in the angle."""
    if math.isinf(there.half_log_snr) or math.isinf(here.half_log_snr):
        centre, half = 0.5 * (here.angle + there.angle), 0.5 * (there.angle - here.angle)
        return centre + half * NODES, half * WEIGHTS
    centre = 0.5 * (here.half_log_snr + there.half_log_snr)
    half = 0.5 * (there.half_log_snr - here.half_log_snr)
    angle = np.arctan(np.exp(-(centre + half * NODES)))
    return angle, half * WEIGHTS * np.sin(angle) * np.cos(angle)
