r"""What the remembered values of a multistep method weigh in a step: one interpolant, integrated over it, in float64.

Three interpolants of what a method remembers, each as the weights of its values:

- the *polynomial* in a clock w, averaged with the kernel of an exponential integrator, ``weight_j = mass <L_j>``
  (:func:`weights`). With ``s = (w - w_here) / (w_there - w_here)`` the averages of the powers, ``<s^k>``, are
  Gauss-Legendre sums, exact to rounding, of terms of one size: nothing cancels however small the step. Published
  formulas of second and third order alter single averages: the rules below.
- the *conditional mean of a random function* given its values (:func:`kernel_weights`). A polynomial extrapolates too
  boldly when steps are long or unequal. Take what is interpolated for a random function of the angle instead: a
  constant, a line of slope about 1, and parts with the covariance

      exp(-(theta - theta')^2 / (2 0.7^2))  +  0.3 exp(-(w - w')^2 / (2 3^2))  +  e e' exp(-(q - q')^2 / (2 2^2)):

  one that changes over the whole way; one that changes within factors of the noise level, down to 0.05, as fine
  structure does (``w = asinh(theta / 0.05)``); and the network's own error, which has another sign at every scale of
  the noise (``q`` is the log of the noise level). It is small (e = 0.01) unless what the network predicts magnifies it:
  a relative error in epsilon is 1 / cos as large in the velocity, and only the kernel's own shape makes that harmless
  (such an error is then integrated like DDIM does, as one in epsilon). The conditional mean is the best linear
  interpolation (O'Hagan 1991). On short steps it *is* the polynomial, the flat limit of smooth kernels (Driscoll &
  Fornberg 2002), so orders are those of Adams methods. The numbers were chosen on exact problems and two trained
  networks; data are taken to be of size about 1.
- *Newton's polynomial* in divided differences, one step a sample (:func:`newton_integrals`). A step over
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
    Array,
    angle_of,
    cosine,
    log_level,
    tan_of,
)
from sdediff.samplers.exponential import Held
from sdediff.types import Level

# ---- the polynomial of an exponential integrator ---------------------------------------------------------------


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


# ---- a random function ---------------------------------------------------------------------------------------

_CONSTANT, _NOISE, _MAGNIFIED = 10.0, 1e-4, 1e-2
"""Variances: of the constant, of the network's error, and of what a prediction magnifies, per unit of gain^2 - 1."""
_WORST = 1e10
"""Condition number from which the kernel matrix is left for its polynomial limit."""


def kernel_weights(
    known: Array,
    start: float,
    end: float,
    deviations: Array,
    power: float = 0.0,
    gain: Callable[[Array], Array] = np.ones_like,
) -> Array:
    """Return the weights of values of ``du / d phi`` in a step of each coordinate, ``(len(known), C)``.

    A coordinate of the data's Gaussian (:class:`~sdediff.gaussian.Whitened`) has the clock ``phi`` with
    ``d phi / d theta = sqrt(l) / (l cos^2 + sin^2)``; the interpolant is integrated over it, times
    ``(cos phi / cos phi_end)^power``.

    Args:
        known: angles of the known values.
        start: angle at which the step starts.
        end: angle at which it ends.
        deviations: standard deviations of the coordinates, ``(C,)``.
        power: of the cosine, ``eta^2`` of a reverse process.
        gain: factor by which the prediction magnifies the network's error, as a function of the angle.
    """
    low, high = log_level(np.array([start, end]))
    angle, slope = angle_of(0.5 * (high + low) + 0.5 * (high - low) * NODES)
    share = 0.5 * (high - low) * WEIGHTS * slope
    cosine = cos_phi(angle, deviations)
    clock = (cosine / np.cos(angle)[:, None]) ** 2 / deviations
    if power:
        clock = clock * (cosine / cos_phi(end, deviations)) ** power
    integrals: Array = cardinals(known, angle, gain) @ (share[:, None] * clock)
    return integrals


def cos_phi(angle: float | Array, deviations: Array) -> Array:
    """Return ``cos phi`` of each coordinate at some angles, ``(len(angle), C)``."""
    near, far = deviations * np.cos(np.atleast_1d(angle))[:, None], np.sin(np.atleast_1d(angle))[:, None]
    cosines: Array = near / np.hypot(near, far)
    return cosines


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


# ---- Newton's polynomial -----------------------------------------------------------------------------------------


def newton_integrals(start: Array, end: Array, nodes: Array, count: int, power: float = 0.0) -> Array:
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
