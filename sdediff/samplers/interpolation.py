r"""Weights of the past values of a multistep method: an interpolant integrated over a step, in float64.

Three interpolants of the past values, each as their weights:

- the *polynomial* in a clock w, averaged with the kernel of an exponential integrator, ``weight_j = mass <L_j>``
  (:func:`weights`). With ``s = (w - w_here) / (w_there - w_here)`` the averages of the powers, ``<s^k>``, are
  Gauss-Legendre sums, exact to rounding, of terms of one size: nothing cancels however small the step. Published
  formulas of second and third order alter single averages: the rules below.
- the *conditional mean of a random function* given its values (:func:`kernel_weights`). A polynomial extrapolates too
  boldly when steps are long or unequal. Take the integrand for a random function of the angle instead: a
  constant, a line of slope about 1, and parts with the covariance

      exp(-(theta - theta')^2 / (2 0.7^2))  +  0.3 exp(-(w - w')^2 / (2 3^2))  +  e e' exp(-(q - q')^2 / (2 2^2)):

  one that changes over the whole path; one that changes within factors of the noise level, down to 0.05, as fine
  structure does (``w = asinh(theta / 0.05)``); and the network's own error, whose sign differs at every scale of
  the noise (``q`` is the log of the noise level). It is small (e = 0.01) unless the prediction magnifies it:
  a relative error in epsilon is 1 / cos as large in the velocity, and only the kernel's own shape makes that harmless
  (such an error is then integrated like DDIM does, as one in epsilon). The conditional mean is the best linear
  interpolation (O'Hagan 1991). On short steps it *is* the polynomial, the flat limit of smooth kernels (Driscoll &
  Fornberg 2002), so orders are those of Adams methods. The numbers were chosen on exact problems and two trained
  networks; data are taken to be of size about 1.
- *Newton's polynomial* in divided differences, one step a sample (:func:`divided_difference_weights`). A step over
  ``[w_0, w_1]`` adds ``sum_p c_p v[n, ..., n - p]`` with ``c_p = int (w - w_n) ... (w - w_{n - p + 1}) d theta``
  (Shampine & Gordon 1975, chapter 5, in the clock ``t``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sdediff.samplers.clocks import (
    CLOCKS,
    FAR,
    NEAR,
    NODES,
    WEIGHTS,
    FloatArray,
    angle_of,
    cosine,
    log_level,
    tan_of,
)
from sdediff.samplers.exponential import Integrand
from sdediff.types import Level

# ---- the polynomial of an exponential integrator ---------------------------------------------------------------


def exact(averages: FloatArray) -> FloatArray:
    """Return the averages of the interpolating polynomial."""
    return averages


def middle(averages: FloatArray) -> FloatArray:
    """Take the polynomial through two values at the middle of the step (Lu et al. 2022b; Zhao et al. 2023, B_2)."""
    return np.array([1.0, 0.5]) if len(averages) == 2 else averages


def half(averages: FloatArray) -> FloatArray:
    """Halve the quadratic term through three values (the third-order stochastic update of k-diffusion's code)."""
    return averages * np.array([1.0, 1.0, 0.5]) if len(averages) == 3 else averages


def halved(averages: FloatArray) -> FloatArray:
    """Apply ``half`` to three values and ``middle`` to two (the third-order update of Lu et al.'s code)."""
    return half(averages) if len(averages) == 3 else middle(averages)


def equal(averages: FloatArray) -> FloatArray:
    """Take the averages of equal steps, ``1 / (k + 1)``: with equally spaced nodes, the weights of Adams methods."""
    return 1.0 / np.arange(1.0, len(averages) + 1.0)


RULES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "exact": exact,
    "middle": middle,
    "half": half,
    "halved": halved,
    "equal": equal,
}
"""Rules by name: each maps the averages ``<s^k>`` of a step to those of a published formula. ``"equal"``, of iPNDM (Liu
et al. 2022; Zhang & Chen 2023), takes the nodes for equally spaced, too: on steps that shorten it extrapolates less."""


def weights(
    integrand: Integrand,
    clock: str,
    rule: str,
    nodes: Sequence[Level[float]],
    here: Level[float],
    there: Level[float],
) -> list[float]:
    """Return the weights of the values at ``nodes`` in the step from ``here`` to ``there``.

    Where the clock is infinite at an end of the step, or only the value at the end counts (the clean sample on the
    clean level; any integrand, where noise is added before), all weight is on the first of ``nodes``: a step of order
    1, as the last one usually is.

    Args:
        integrand: integrand that is interpolated.
        clock: name in ``CLOCKS``.
        rule: name in ``RULES``.
        nodes: levels of the values.
        here: start of the step.
        there: end of the step.
    """
    mass, clock_at = integrand.mass(here, there), CLOCKS[clock]
    with np.errstate(divide="ignore"):
        start, end, *at = clock_at(np.array([here.angle, there.angle, *(level.angle for level in nodes)]))
    first_order = integrand.keep(here, there) == 0.0 or (integrand.eta > 0.0 and there.sin == 0.0)
    if not (np.isfinite(start) and np.isfinite(end)) or first_order:
        return [mass] + [0.0] * (len(nodes) - 1)
    angle, share = _quadrature(here, there)
    share = share * integrand.kernel(angle)
    powers = np.arange(len(nodes))[:, None]
    averages = (((clock_at(angle) - start) / (end - start)) ** powers) @ share / share.sum()
    positions = -np.arange(len(nodes)) if rule == "equal" else (np.array(at) - start) / (end - start)
    return [float(mass * weight) for weight in np.linalg.solve(positions**powers, RULES[rule](averages))]


def _quadrature(here: Level[float], there: Level[float]) -> tuple[FloatArray, FloatArray]:
    """Return nodes (angles) and weights over a step: in lambda, where the kernels are entire, else in the angle."""
    if math.isinf(there.half_log_snr) or math.isinf(here.half_log_snr):
        centre, half = 0.5 * (here.angle + there.angle), 0.5 * (there.angle - here.angle)
        return centre + half * NODES, half * WEIGHTS
    centre = 0.5 * (here.half_log_snr + there.half_log_snr)
    half = 0.5 * (there.half_log_snr - here.half_log_snr)
    angle = np.arctan(np.exp(-(centre + half * NODES)))
    return angle, half * WEIGHTS * np.sin(angle) * np.cos(angle)


# ---- conditional mean of a random function -------------------------------------------------------------------

_CONSTANT, _ERROR, _MAGNIFIED = 10.0, 1e-4, 1e-2
"""Variances: of the constant, of the network's error, and of the error that a prediction adds per gain^2 - 1."""
_FAR = 1e-8
"""alpha / sigma down to which the network's errors are told apart: at a level of a hundred times the noise they are a
hundred times as large in the velocity, and must not be taken for those of the next level."""
_LARGEST_CONDITION = 1e10
"""Condition number of the correlations above which the polynomial limit of the kernel is used."""


def kernel_weights(
    nodes: FloatArray,
    start: float,
    end: float,
    deviations: FloatArray,
    power: float = 0.0,
    gain: Callable[[FloatArray], FloatArray] = np.ones_like,
) -> FloatArray:
    """Return the weights of values of ``du / d phi`` in a step of each coordinate, ``(len(nodes), C)``.

    A coordinate of the data's Gaussian (:class:`~sdediff.gaussian.Whitened`) has the clock ``phi`` with
    ``d phi / d theta = sqrt(l) / (l cos^2 + sin^2)``; the interpolant is integrated over it, times
    ``(cos phi / cos phi_end)^power``.

    Args:
        nodes: angles of the values.
        start: angle at which the step starts.
        end: angle at which it ends.
        deviations: standard deviations of the coordinates, ``(C,)``.
        power: power of the cosine, ``eta^2`` of a reverse process.
        gain: factor by which the prediction magnifies the network's error, as a function of the angle.
    """
    low, high = log_level(np.array([start, end]))
    angle, slope = angle_of(0.5 * (high + low) + 0.5 * (high - low) * NODES)
    share = 0.5 * (high - low) * WEIGHTS * slope
    cosine = cos_phi(angle, deviations)
    clock = (cosine / np.cos(angle)[:, None]) ** 2 / deviations
    if power:
        clock = clock * (cosine / cos_phi(end, deviations)) ** power
    integrals: FloatArray = cardinals(nodes, angle, gain) @ (share[:, None] * clock)
    return integrals


def cos_phi(angle: float | FloatArray, deviations: FloatArray) -> FloatArray:
    """Return ``cos phi`` of each coordinate at some angles, ``(len(angle), C)``."""
    near, far = deviations * np.cos(np.atleast_1d(angle))[:, None], np.sin(np.atleast_1d(angle))[:, None]
    cosines: FloatArray = near / np.hypot(near, far)
    return cosines


def error_deviation(gain: FloatArray) -> FloatArray:
    """Return the standard deviation, in the velocity, of a network error that the prediction magnifies by ``gain``."""
    deviation: FloatArray = np.sqrt(_ERROR + _MAGNIFIED * np.maximum(gain**2 - 1.0, 0.0))
    return deviation


def _fine_clock(angle: FloatArray) -> FloatArray:
    return np.arcsinh(angle / 0.05)


def _gaussian(a: FloatArray, b: FloatArray, length: float) -> FloatArray:
    value: FloatArray = np.exp(-0.5 * ((a[:, None] - b) / length) ** 2)
    return value


def covariance(a: FloatArray, b: FloatArray, error_a: FloatArray, error_b: FloatArray) -> FloatArray:
    """Evaluate the kernel between two sets of angles with their errors, ``(len(a), len(b))``."""
    smooth = _CONSTANT + np.outer(a, b) + _gaussian(a, b, 0.7) + 0.3 * _gaussian(_fine_clock(a), _fine_clock(b), 3.0)
    errors = _gaussian(log_level(a, _FAR), log_level(b, _FAR), 2.0)
    return smooth + np.outer(error_a, error_b) * errors


def cardinals(nodes: FloatArray, at: FloatArray, gain: Callable[[FloatArray], FloatArray] = np.ones_like) -> FloatArray:
    """Return the interpolant's cardinal functions, ``(len(nodes), len(at))``, 1 at ``nodes[j]`` and 0 at the others.

    Args:
        nodes: angles of the values, all different.
        at: angles at which the functions are evaluated.
        gain: factor by which the network's error is magnified, as a function of the angle.
    """
    error_nodes = error_deviation(gain(nodes))
    gram = covariance(nodes, nodes, error_nodes, error_nodes)
    scale = np.sqrt(np.diag(gram))  # unlike variances alone make no system ill-conditioned
    correlations = gram / np.outer(scale, scale)
    if np.linalg.cond(correlations) > _LARGEST_CONDITION:
        return lagrange(nodes, at)
    mixed = covariance(nodes, at, error_nodes, error_deviation(gain(at))) / scale[:, None]
    functions: FloatArray = np.linalg.solve(correlations, mixed) / scale[:, None]
    return functions


def lagrange(nodes: FloatArray, at: FloatArray) -> FloatArray:
    """Return the cardinal functions of the polynomial in the angle, ``(len(nodes), len(at))``."""
    powers, reach = np.arange(len(nodes))[:, None], np.abs(nodes - at.mean()).max()
    solved: FloatArray = np.linalg.solve(((nodes - nodes[0]) / reach) ** powers, ((at - nodes[0]) / reach) ** powers)
    return solved


# ---- Newton's polynomial -----------------------------------------------------------------------------------------


def divided_difference_weights(
    start: FloatArray, end: FloatArray, nodes: FloatArray, count: int, power: float = 0.0
) -> FloatArray:
    """Return the weights of divided differences in a step of each sample, ``(B, count)``.

    They are the integrals over the angle of Newton's first polynomials.

    Args:
        start: clocks ``(B,)`` at which the steps start.
        end: clocks ``(B,)`` at which they end.
        nodes: clocks ``(B, count - 1)`` or more of the zeros, in the order in which they enter.
        count: number of polynomials; the first is 1.
        power: power of the cosine of the angle by which all are multiplied.
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
