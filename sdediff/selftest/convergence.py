"""Orders of convergence: slopes, exact references, and the affine map that a linear sampler is on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from sdediff.analytic import GaussianMixture
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y, velocity
from sdediff.noise import NoiseSource
from sdediff.samplers import Sampler
from sdediff.sde import SDE

TimesOf = Callable[[SDE, int, float, float], Tensor]


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Return the order: minus the least-squares slope of log error against log size."""
    return -float(np.polyfit(np.log(np.asarray(sizes)), np.log(np.asarray(errors)), 1)[0])


def times_at(sde: SDE, half_log_snr: Tensor, t_from: float, t_to: float) -> Tensor:
    """Return the times of given half log-SNRs, with exact ends."""
    times = sde.time(half_log_snr)
    times[0], times[-1] = t_from, t_to
    return times


def uniform_logsnr(sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
    """Return the times of equal steps in lambda, the clock of the reverse SDE."""
    start, end = float(sde.half_log_snr(t_from)), float(sde.half_log_snr(t_to))
    return times_at(sde, torch.linspace(start, end, steps + 1, dtype=torch.float64), t_from, t_to)


def graded_angle(sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
    """Return the times of Chebyshev nodes in ``asinh(tan(theta) / 0.3)``.

    First steps are of order 1/N^2, so that a multistep method's low-order start does not show.
    """
    ratio = torch.exp(-sde.half_log_snr(torch.tensor([t_from, t_to], dtype=torch.float64)))
    start, end = torch.asinh(ratio / 0.3)
    share = 0.5 - 0.5 * torch.cos(torch.linspace(0.0, math.pi, steps + 1, dtype=torch.float64))
    return times_at(sde, -torch.log(0.3 * torch.sinh(start + (end - start) * share)), t_from, t_to)


def probability_flow(model: Denoiser, x: Tensor, t_from: float, t_to: float) -> Tensor:
    """Return where the probability-flow ODE takes ``x``, by scipy's DOP853 at 1e-12 on the angle."""
    start, end = model.sde.levels([t_from, t_to])
    frame = Frame(model, model.sde)

    def field(angle: float, flat: np.ndarray) -> np.ndarray:
        level = frame.at_angle(float(angle))
        return velocity(frame(torch.from_numpy(flat).reshape(x.shape), level), level).numpy().ravel()

    y = to_y(x, start).numpy().ravel()
    solution = scipy.integrate.solve_ivp(field, (start.angle, end.angle), y, method="DOP853", rtol=1e-12, atol=1e-12)
    return to_x(torch.from_numpy(solution.y[:, -1].copy()).reshape(x.shape), end)


class Silence:
    """A noise source of zeros that remembers what was asked of it."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape, self.asked = tuple(shape), list[tuple[int, int]]()

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Return zeros."""
        self.asked.append((step, stage))
        return torch.zeros(self.shape, dtype=torch.float64)


class Units:
    """A noise source that gives every row of a batch one unit normal of its own.

    Row ``first + k D + d`` gets a one in dimension d of the k-th draw, and as many rows later another a minus one.
    """

    def __init__(self, draws: Sequence[tuple[int, int]], dim: int, first: int) -> None:
        self.draws = {draw: k for k, draw in enumerate(draws)}
        self.dim, self.first = dim, first
        self.shape = (first + 2 * dim * len(draws), dim)

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Return the units of a draw, ``(rows, D)``."""
        z = torch.zeros(self.shape, dtype=torch.float64)
        for sign, part in ((1.0, 0), (-1.0, len(self.draws))):
            row = self.first + (part + self.draws[step, stage]) * self.dim
            z[row : row + self.dim] = sign * torch.eye(self.dim, dtype=torch.float64)
        return z


class AffineMap(NamedTuple):
    """``x_end = offset + from_start x_start + sum_k from_noise[k]^T z_k``, exactly, on Gaussian data."""

    offset: Tensor  # (D,)
    from_start: Tensor  # (D, D)
    from_noise: Tensor  # (draws D, D)

    def push(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the end, given those of the start."""
        spread = self.from_start @ covariance @ self.from_start.T + self.from_noise.T @ self.from_noise
        return self.offset + self.from_start @ mean, spread


def affine_map(sampler: Sampler, model: Denoiser, times: Tensor, dim: int) -> AffineMap:
    """Read the affine map off the sampler's own ``sample``, fed with unit vectors.

    What is even in the normals, as the squares in the Milstein terms of torchsde's srk are, has a mean, which goes into
    the offset.
    """
    silence = Silence((1, dim))
    zero = torch.zeros(1, dim, dtype=torch.float64)
    sampler.sample(model, model.sde, zero, times, silence)  # type: ignore[arg-type]
    units = Units(sorted(set(silence.asked)), dim, first=1 + dim)
    x = torch.zeros(units.shape, dtype=torch.float64)
    x[1 : 1 + dim] = torch.eye(dim, dtype=torch.float64)
    out = sampler.sample(model, model.sde, x, times, units).x  # type: ignore[arg-type]
    both, count = out[1 + dim :] - out[0], dim * len(units.draws)
    plus, minus = both[:count], both[count:]
    offset = out[0] + 0.5 * (plus + minus).sum(dim=0)
    return AffineMap(offset, (out[1 : 1 + dim] - out[0]).T, 0.5 * (plus - minus))


def moments_at(data: GaussianMixture, sde: SDE, t: float) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of ``x_t``."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return alpha * data.mean, alpha**2 * data.covariance + sigma**2 * torch.eye(data.dim, dtype=torch.float64)


def weak_error(sampler: Sampler, data: GaussianMixture, sde: SDE, times: Tensor) -> float:
    """Return the distance of the end's mean and covariance from the truth when the start is exact; nothing random."""
    t_from, t_to = float(times[0]), float(times[-1])
    mean, covariance = affine_map(sampler, data.model(sde), times, data.dim).push(*moments_at(data, sde, t_from))
    true_mean, true_covariance = moments_at(data, sde, t_to)
    return float(torch.sqrt((mean - true_mean).square().sum() + (covariance - true_covariance).square().sum()))


def quiet(shape: Sequence[int]) -> NoiseSource:
    """Return the source of a deterministic solve."""
    return NoiseSource(0, shape, dtype=torch.float64)


def pathwise_error(sampler: Sampler, model: Denoiser, x: Tensor, times: Tensor, truth: Tensor) -> float:
    """Return the RMS distance of the end from the truth."""
    end = sampler.sample(model, model.sde, x, times, quiet(x.shape)).x
    return float((end - truth).square().mean().sqrt())
