"""Orders: every solver converges at the order that it declares.

Deterministic methods: pathwise on a mixture, against DOP853 at 1e-12. Stochastic ones: mean and covariance of the end
on Gaussian data from an exact start, where a linear method is an affine map that its own ``sample`` gives away when fed
with unit vectors; what is not affine there is carried by quadrature on a line. No Monte Carlo. An adaptive method's
error falls with the tolerance to a power between ``p / (p + 1)``, where the errors of steps add up, and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.sde import SDE
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.convergence import (
    graded_angle,
    moments_at,
    pathwise_error,
    probability_flow,
    quiet,
    slope,
    weak_error,
)
from sdediff.selftest.problems import BLIND, GAUSSIAN, LINE, MIXTURE
from sdediff.selftest.quadrature import backward, hermite_rule, normal_rule

_TOLERANCE = 0.2
"""Largest distance of a measured order from the declared one."""
_T_TO = 1e-3
_FORWARDS, _NOISY_FORWARDS, _LINE_STEPS = (512, 1024), (256, 512), (64, 128)
_RTOLS, _NOISY_RTOLS, _FINEST = (1e-4, 1e-6, 1e-8), (0.1, 0.01, 0.001), 1e-4


def orders(settings: Settings) -> list[Case]:
    """Return a case for every solver of ``SAMPLERS``."""
    return [Case(name, partial(measure_order, sampler, settings.sde)) for name, sampler in SAMPLERS.items()]


def measure_order(sampler: Sampler, sde: SDE) -> Iterator[Finding]:
    """Yield the order of a sampler; of an adaptive one the power of the tolerance."""
    declared = sampler.order
    if sampler.adaptive:
        low, high = declared / (declared + 1) - _TOLERANCE, 1.0 + _TOLERANCE
        yield Finding("power of the tolerance", _tolerance_power(sampler, sde), low, high)
        return
    if not sampler.stochastic:
        found = _pathwise_order(sampler, sde)
    elif is_affine(sampler, sde):
        sizes = _steps(sampler, _NOISY_FORWARDS)
        # Steps that differ in lambda: where all are equal, first-order errors on Gaussian data telescope
        found = slope(
            sizes, [weak_error(sampler, BLIND, sde, GRIDS["reference"](sde, n, sde.t_max, _T_TO)) for n in sizes]
        )
    else:
        found = slope(_LINE_STEPS, [_line_error(sampler, sde, n) for n in _LINE_STEPS])
    yield Finding("order", found, declared - _TOLERANCE, declared + _TOLERANCE)


def _steps(sampler: Sampler, forwards: tuple[int, ...]) -> list[int]:
    """Return the numbers of steps that cost so many forwards."""
    cost = sampler.nfe(6)
    return [budget // (1 if cost is None else -(-cost // 6)) for budget in forwards]


def _starts(sde: SDE, count: int = 12) -> Tensor:
    """Return states at ``t_max``, none of which lies where flows part."""
    z = NoiseSource(4, (count, 2), dtype=torch.float64).normal(0)
    return MIXTURE.moments.sample(z, sde.levels([sde.t_max])[0])


def _pathwise_order(sampler: Sampler, sde: SDE) -> float:
    model, x, sizes = MIXTURE.model(sde), _starts(sde), _steps(sampler, _FORWARDS)
    truth = probability_flow(model, x, sde.t_max, _T_TO)
    grids = [graded_angle(sde, n, sde.t_max, _T_TO) for n in sizes]
    return slope(sizes, [pathwise_error(sampler, model, x, times, truth) for times in grids])


def _tolerance_power(sampler: Sampler, sde: SDE) -> float:
    """Return the power; one path of noise is the same at every tolerance, and a fine one its truth."""
    ends = torch.tensor([sde.t_max, _T_TO], dtype=torch.float64)

    def at(tolerance: float) -> Sampler:
        changed: Sampler = replace(sampler, rtol=tolerance, atol=tolerance)  # type: ignore[type-var]
        return changed

    if sampler.stochastic:
        model, x, tolerances = GAUSSIAN.model(sde), _starts(sde, 4), _NOISY_RTOLS
        truth = at(_FINEST).sample(model, sde, x, ends, quiet(x.shape)).x
    else:
        model, x, tolerances = MIXTURE.model(sde), _starts(sde), _RTOLS
        truth = probability_flow(model, x, sde.t_max, _T_TO)
    return -slope(tolerances, [pathwise_error(at(each), model, x, ends, truth) for each in tolerances])


class _Scaled:
    """A noise source whose normals are those of another, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor, self.shape = factor, (2, 2)
        self.source = NoiseSource(3, self.shape, dtype=torch.float64)

    def normal(self, step: int, stage: int = 0) -> Tensor:
        return self.factor * self.source.normal(step, stage)


def is_affine(sampler: Sampler, sde: SDE) -> bool:
    """Tell whether on Gaussian data the end's odd part in the normals doubles with them."""
    model, times = BLIND.model(sde), GRIDS["reference"](sde, 6, sde.t_max, _T_TO)
    x = torch.ones(2, 2, dtype=torch.float64)

    def odd(factor: float) -> Tensor:
        ends: list[Tensor] = []
        for sign in (1.0, -1.0):
            noise: Any = _Scaled(sign * factor)
            ends.append(sampler.sample(model, sde, x, times, noise).x)
        return ends[0] - ends[1]

    return torch.allclose(2.0 * odd(1.0), odd(2.0), rtol=1e-9, atol=1e-12)


def _line_error(sampler: Sampler, sde: SDE, steps: int) -> float:
    """Return the error of the end's mean and variance on Gaussian data on a line from an exact start."""
    start, end = float(sde.half_log_snr(sde.t_max)), float(sde.half_log_snr(_T_TO))
    times = sde.time(torch.linspace(start, end, steps + 1, dtype=torch.float64))
    times[0], times[-1] = sde.t_max, _T_TO
    starts, values = backward(
        sampler, LINE.model(sde), times, lambda x: np.stack([x, x * x], axis=-1), (hermite_rule(8), normal_rule(24))
    )
    (mean, variance), (true_mean, true_variance) = (
        tuple(float(v) for v in moments_at(LINE, sde, t)) for t in (sde.t_max, _T_TO)
    )
    z, weights = normal_rule(64)
    first, second = weights @ scipy.interpolate.CubicSpline(starts, values)(mean + math.sqrt(variance) * z)
    return math.hypot(first - true_mean, second - first**2 - true_variance)
