r"""A recorded solve of a few trajectories, from which the error of any solver can be told without the network.

The path is solved on many nodes; its velocity ``v = d y / d theta`` is then a spline in the log of the noise level, and
the state at any angle is the integral of that spline. Near the path the network answers as on the path, plus the answer
of the data's own Gaussian to the distance: with variances l in the basis of the data's covariance and
``rho^2 = l cos^2 + sin^2``,

    v(y + d) = v(y) + (1 - l) sin cos / rho^2 d.

A solver that asks this stand-in instead of the network makes the errors of its nodes and of its weights, and those by
which they change the states that follow. This is the teacher forcing of learned solvers, but closed: errors feed back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x
from sdediff.gaussian import Moments, Whitened
from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.numerics import flatten
from sdediff.samplers.base import StepSampler, take_steps
from sdediff.samplers.clocks import FloatArray, angle_of, log_level
from sdediff.samplers.relative import Relative
from sdediff.types import Level, Split

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

_NEAR, _FAR = 1e-4, 1e-6
"""sigma / alpha, and its inverse, at which the clock of the spline flattens."""
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_COORDINATES, _ENTRIES = 256, 1 << 15
"""Largest number of coordinates on which paths are kept, and of an item's entries from which they are made."""
_LEAST_VARIANCE = 1e-4


clock, angle_at = partial(log_level, far=_FAR, near=_NEAR), partial(angle_of, far=_FAR, near=_NEAR)
"""Clock of the spline, the log of ``sigma / alpha`` with finite ends, and its inverse with its derivative."""


class _Recorder(Frame):
    """Frame that keeps every state it splits and its velocity, ``(n, D)`` in the model's dtype on the CPU."""

    def __init__(self, denoise: Denoiser, pixels: Tensor | None) -> None:
        super().__init__(denoise, denoise.sde)
        self.pixels, self.angles = pixels, list[float]()
        self.states, self.slopes = list[Tensor](), list[Tensor]()

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        split = super().__call__(y, level, rows)
        self.angles.append(float(level.angle))
        self.states.append(self.kept(y))
        self.slopes.append(self.kept(split.mix(-level.sin, level.cos)))
        return split

    def kept(self, x: Tensor) -> Tensor:
        """Return the entries that are kept of items ``(n, *shape)``."""
        flat = flatten(x).cpu()
        return flat if self.pixels is None else flat[:, self.pixels]


class PilotPaths:
    """Recorded trajectories of a model, from starts as in sampling to the data.

    Args:
        model: denoiser.
        shape: shape of an item.
        trajectories: number of trajectories.
        steps: number of forwards of each.
        seed: seed of the starts.

    Attributes:
        start: states at ``t_max``, ``(n, *shape)``.
        end: the data at which the recorded solve arrived, ``(n, *shape)``.
        moments: mean and variances of the coordinates that are kept, ``(d,)``.
        resolution: squared distance, for each trajectory, at which the path itself is known, ``(n,)``.
    """

    def __init__(self, model: Denoiser, shape: Sequence[int], trajectories: int, steps: int, seed: int = 0) -> None:
        from scipy.interpolate import CubicSpline  # takes as long to import as the rest of the library

        self.model, sde = model, model.sde
        size = (trajectories, *shape)
        noise = NoiseSource(seed, size, dtype=model.state_dtype, device=model.device)
        self.start = sde.prior_sample(size, moments=model.moments, noise=noise)
        recorder = _Recorder(model, _drawn_pixels(math.prod(shape)))
        levels = sde.levels(_pilot_times(model, steps))
        with torch.no_grad():
            y, _, _ = take_steps(Relative(), recorder, self.start, levels, noise, False, None)
        self.end = to_x(y, levels[-1])
        axes = _axes(model, recorder.kept(self.end).double())
        self._angles, self.moments = np.array(recorder.angles), axes.moments
        self._axes, self._kept = axes, recorder.kept
        states, slopes = (
            np.stack([axes.project(each) for each in kept]) for kept in (recorder.states, recorder.slopes)
        )
        self._shape = states.shape[1:]
        slopes = slopes.reshape(len(slopes), -1)
        self._spline = CubicSpline(clock(self._angles)[::-1], slopes[::-1])
        self._states = [states[0].reshape(-1)]
        for here, there in pairwise(self._angles):
            self._states.append(self._states[-1] + self._integral(here, there))
        self._found: dict[float, tuple[Tensor, Tensor]] = {}
        coarse = CubicSpline(clock(self._angles[::2])[::-1], slopes[::2][::-1])
        ends = list(pairwise([*self._angles, 0.0]))
        difference = np.sum([self._integral(*pair) - self._integral(*pair, coarse) for pair in ends], axis=0)
        self.resolution = np.square(difference.reshape(self._shape) / 8.0) @ self._axes.weights

    @property
    def weighs_moments(self) -> bool:
        """Tell whether the default solver uses moments of the model, which may not be those of its data."""
        return self.model.moments is not None and self.model.prediction.steady

    def _integral(self, here: float, there: float, spline: CubicSpline | None = None) -> FloatArray:
        first, last = clock(np.array([here, there]))
        angle, derivative = angle_at(0.5 * (first + last) + 0.5 * (last - first) * _POINTS)
        values = (spline or self._spline)(clock(np.maximum(angle, self._angles[-1])))
        found: FloatArray = (0.5 * (last - first) * _WEIGHTS * derivative) @ values
        return found

    def at(self, angle: float) -> tuple[Tensor, Tensor]:
        """Return state and velocity of the paths at an angle, each float64 ``(n, d)``."""
        if angle not in self._found:
            index = max(int(np.searchsorted(-self._angles, -angle, side="right")) - 1, 0)
            state, known = self._states[index], float(self._angles[index])
            if angle < known:
                state = state + self._integral(known, angle)
            slope = self._spline(clock(np.maximum(angle, self._angles[-1:])))[0]
            self._found[angle] = (
                torch.from_numpy(state.reshape(self._shape)),
                torch.from_numpy(slope.reshape(self._shape)),
            )
        return self._found[angle]

    def distances(self, y: Tensor, level: Level[float]) -> FloatArray:
        """Return the mean squared distance of states of the frame, those of the first trajectories, to the paths."""
        differences = self._axes.project(self._kept(y)) - self.at(level.angle)[0][: len(y)].numpy()
        found: FloatArray = np.square(differences) @ self._axes.weights
        return found

    def errors(self, method: StepSampler, levels: list[Level[float]]) -> FloatArray:
        """Predict the mean squared error of a solve at its end, for each trajectory: ``(n,)``."""
        frame, start, noise = PilotFrame(self), self.at(levels[0].angle)[0], NoiseSource(0, self._shape)
        with torch.no_grad(), np.errstate(all="ignore"):
            y, _, _ = take_steps(method, frame, to_x(start, levels[0]), levels, noise, False, None)
        found: FloatArray = (y - self.at(levels[-1].angle)[0]).square().numpy() @ self._axes.weights
        return found


class PilotFrame(Frame):
    """Stand-in for a network near the recorded paths; it costs no forward."""

    def __init__(self, pilot: PilotPaths) -> None:
        super().__init__(pilot.model, pilot.model.sde)
        self._pilot, self._variances = pilot, pilot.moments.variances

    @property
    def moments(self) -> Moments | None:
        """Moments of the coordinates that are kept, where the model knows any."""
        return None if self._pilot.model.moments is None else self._pilot.moments

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split the state ``y`` ``(n, d)``."""
        state, slope = self._pilot.at(float(level.angle))
        cos, sin, variances = level.cos, level.sin, self._variances
        slope = slope + (y - state) * ((1.0 - variances) * (sin * cos) / (variances * cos**2 + sin**2))
        return Split(cos * y - sin * slope, sin * y + cos * slope)


def _pilot_times(model: Denoiser, steps: int) -> Tensor:
    """Return nodes that serve any network: half of them those of the default grid, half finer towards the noise."""
    sde, parts = model.sde, []
    for name in ("reference", "asinh"):
        times = GRIDS[name](sde, 4000, sde.t_max, max(sde.t_min, 1e-9))
        parts.append(sde.half_log_snr(times))
    both = torch.cat(parts).sort().values
    both = both[torch.isfinite(both)]
    inner = sde.time(torch.quantile(both, torch.linspace(0.0, 1.0, steps, dtype=torch.float64)))
    times = torch.cat([inner.new_tensor([sde.t_max]), inner[1:].clamp(sde.t_min, sde.t_max), inner.new_zeros(1)])
    times = model.snap(times.sort().values.flip(0))
    return times[torch.cat([times[:1] >= 0.0, times.diff() < 0.0])]


class _Axes(NamedTuple):
    """Orthonormal axes ``(D, d)`` on which paths are kept, or indices of coordinates after a rotation.

    Attributes:
        project: function from entries ``(n, D)`` to coordinates ``(n, d)``.
        weights: weights of the coordinates in the mean square over all, ``(d,)``.
        moments: mean and variances of the coordinates.
    """

    project: Callable[[Tensor], FloatArray]
    weights: FloatArray
    moments: Moments


def _drawn_pixels(dim: int) -> Tensor | None:
    """Return indices of the entries that are kept of items of very many; ``None`` for all."""
    if dim <= _ENTRIES:
        return None
    return torch.from_numpy(np.sort(np.random.default_rng(0).choice(dim, _ENTRIES, replace=False)))


def _axes(model: Denoiser, ends: Tensor) -> _Axes:
    """Choose axes: those of the data's covariance where it is known, else of the ends and others at random.

    Errors that are made in the noise grow by ``sqrt(l)``, so that the axes of large variance count most.
    """
    dim = ends.shape[1]
    if model.moments is not None and dim == model.moments.variances.numel():
        return _axes_of_moments(Whitened(model.moments), model.moments.mean, dim)
    centred = ends - ends.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    rank = min(len(ends) - 1, dim)
    axes, variances = axes[:rank].T, sizes[:rank].square() / max(len(ends) - 1, 1)
    count = min(_COORDINATES, dim) - axes.shape[1]
    rest = torch.from_numpy(np.random.default_rng(0).standard_normal((dim, max(count, 0))))
    rest = torch.linalg.qr(rest - axes @ (axes.T @ rest)).Q
    level = max(0.5 * float(centred.square().sum()) / (max(len(ends) - 1, 1) * dim), _LEAST_VARIANCE)
    both = torch.cat([axes, rest], dim=1)
    weights = np.concatenate([np.ones(axes.shape[1]), np.full(rest.shape[1], (dim - axes.shape[1]) / max(count, 1))])
    variances = torch.cat([variances.clamp(min=level), variances.new_full((rest.shape[1],), level)])
    zero = torch.zeros(both.shape[1], dtype=torch.float64)
    return _Axes(lambda x: (x.double() @ both).numpy(), weights / dim, Moments(zero, variances))


def _axes_of_moments(white: Whitened, mean: Tensor, dim: int) -> _Axes:
    """Return axes of the data's covariance: half of the kept ones of the largest variances, the others drawn."""
    variances = white.std.square().expand(dim)
    order = np.argsort(-variances.numpy(), kind="stable")
    half = min(dim, _COORDINATES) // 2 if dim > _COORDINATES else dim
    count = min(dim, _COORDINATES) - half
    drawn = np.random.default_rng(0).choice(order[half:], count, replace=False)
    kept = torch.from_numpy(np.concatenate([order[:half], drawn]))
    weights = np.concatenate([np.ones(half), np.full(count, (dim - half) / max(count, 1))]) / dim
    centre = white.rotate(flatten(mean.double()[None]))[0]
    return _Axes(lambda x: white.rotate(x.double())[:, kept].numpy(), weights, Moments(centre[kept], variances[kept]))
