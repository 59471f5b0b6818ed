r"""Time grids: the N + 1 nodes of a solver of N steps.

A grid is a callable ``(sde, steps, t_from, t_to) -> times``, float64 ``(N + 1,)`` from ``t_from`` down to ``t_to``.
``t_to = 0`` is the data themselves. Grids on the log-SNR cannot reach it; they run to ``t_min`` in N - 1 steps and the
last step denoises, the "zero appended" of Karras et al. (2022).

Recommended use, from long to short steps near the data:

    time        ancestral sampling of a process that is no chain
    angle       few steps of DPM-Solver++ where rare samples pass close between modes: the smallest RMS, not median
    quadratic   the default on broad data at 10 forwards or fewer
    reference   the default: one rule for every process, between quadratic and cubic
    mixed       the default of "ode" for networks that predict epsilon or the score, rougher in the noise: half
                reference, half asinh
    cubic       as good as the default on few, separate modes; UniPC
    asinh       linear in sigma near the data, log-SNR in the noise: short steps at both ends
    karras      EDM's Heun, as published; exponential solvers on data with image-like correlations
    logsnr      UniPC and exponential solvers in 8 steps or fewer; stochastic solvers in many
    chain       ancestral sampling, and networks that were trained at the instants of a chain alone

``exponential`` is ``logsnr`` by its name in diffusers and k-diffusion (uniform log sigma).

A multistep method starts by a step of order 1, another of order 2, and so on. From pure noise, where little changes,
the grids above suit that start; from inside the interval :func:`graded` puts some of the nodes into the first step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdediff.numerics import to_nearest
from sdediff.sde import SDE, VPSDE

_FINE = 2048
"""Steps by which the density of a grid is found."""
_REGULAR = 3.0
"""Largest step, in units of 1 / N of the path's angle, whose error is like that of the others."""


class Grid(ABC):
    """Rule for the nodes of a solve; a frozen dataclass.

    Attributes:
        bound: whether no nodes may be added between its own.
    """

    bound: ClassVar[bool] = False

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """Return the number of steps where the user gives none and the sampler proposes one."""
        return proposed

    @abstractmethod
    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        """Compute nodes, float64 ``(steps + 1,)``; the first and the last may be off by rounding."""

    def __call__(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        """Return nodes from ``t_from`` to ``t_to``, both exact.

        Raises:
            ValueError: for fewer than one step or equal ends, or if two nodes coincide.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if t_from == t_to:
            raise ValueError(f"t_from and t_to must differ; both are {t_from:g}")
        question = self, sde, steps, t_from, t_to
        times = (_kept_nodes if _is_hashable(question) else _nodes)(*question).clone()
        if bool((times.diff() * math.copysign(1.0, t_to - t_from) <= 0.0).any()):
            raise ValueError(f"{steps} steps from {t_from:g} to {t_to:g} are too many: two nodes coincide")
        return times


def _nodes(grid: Grid, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
    times = grid.nodes(sde, steps, t_from, t_to)
    times[0], times[-1] = t_from, t_to
    return times


_kept_nodes = lru_cache(maxsize=64)(_nodes)
"""Nodes by grid, process, steps and ends, once for all solves: some take longer than twenty steps of a solver."""


def _is_hashable(value: object) -> bool:
    """Return whether a value can be a key: not where a process of the user's has arrays."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def graded(grid: Grid, sde: SDE, steps: int, t_from: float, t_to: float, order: int) -> Tensor:
    """Return nodes of a grid, float64 ``(steps + 1,)``, with short first steps for start-up from order 1 to ``order``.

    The error of the first step is its width squared. It is made as small as the sum of the errors of the others by
    dividing the first step of the grid of ``steps - m`` steps into m + 1, each at most twice as long as the one before:
    where steps grow faster, the values behind them are too close together to extrapolate from.
    """
    for extra in range(max(steps - 1, 1)):
        times = grid(sde, steps - extra, t_from, t_to)
        start, second, end = (level.angle for level in sde.levels(times[[0, 1, -1]]))
        width, first = abs((second - start) / (end - start)), (_REGULAR / (steps - extra)) ** (0.5 * order)
        if order <= 2 or grid.bound or width <= first * (2.0 ** (extra + 1) - 1.0):
            break
    widths = _growth(width / first, extra + 1) ** torch.arange(extra + 1, dtype=torch.float64)
    share = widths.cumsum(0)[:-1] / widths.sum()
    return torch.cat([times[:1], times[0] + share * (times[1] - times[0]), times[1:]])


def _growth(total: float, terms: int) -> float:
    """Solve ``1 + g + ... + g^(terms - 1) = total`` for g between 1 and 2."""
    roots = np.roots([*[1.0] * (terms - 1), 1.0 - total])
    return float(np.clip(max((root.real for root in roots if abs(root.imag) < 1e-9), default=1.0), 1.0, 2.0))


def _spaced(steps: int) -> Tensor:
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


class Clock(Grid):
    """Grid uniform in a clock, which may be infinite at the ends of the process."""

    @abstractmethod
    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        """Return the clock at a time."""

    @abstractmethod
    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        """Return the time at a value of the clock."""

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        def at(t: float) -> float:
            return float(self.clock(sde, torch.tensor(t, dtype=torch.float64)))

        start, end = at(t_from), at(t_to)
        first, last = (min(max(t, sde.t_min), sde.t_max) for t in (t_from, t_to))
        start_in, end_in = at(first), at(last)
        step = (end - start) / steps
        # An end outside [t_min, t_max] takes a step of its own, unless the nodes next to it are inside anyway.
        leave = int(first != t_from and not (start + step - start_in) * (end_in - start_in) >= 0.0)
        arrive = int(last != t_to and not (end - step - end_in) * (start_in - end_in) >= 0.0)
        start, end = (start_in if leave else start), (end_in if arrive else end)
        inner = steps - leave - arrive
        if inner < 1:  # one or two steps, both to the ends
            return torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64)
        times = self.invert(sde, start + (end - start) * _spaced(inner)).clamp(sde.t_min, sde.t_max)
        return torch.cat([times.new_tensor([t_from] * leave), times, times.new_tensor([t_to] * arrive)])


@dataclass(frozen=True)
class Power(Clock):
    """Grid uniform in ``t^(1/power)``: 1 is uniform, 2 is the "quadratic" of Song, Meng & Ermon (2021)."""

    power: float = 1.0

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        return t ** (1.0 / self.power)

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        times: Tensor = clock**self.power
        return times


@dataclass(frozen=True)
class Chain(Grid):
    """Grid uniform in t, moved to the nearest instants of a discrete chain where the process is one."""

    bound: ClassVar[bool] = True

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """Return ``proposed``, at most the length of the chain."""
        return proposed if sde.instants is None else min(proposed, len(sde.instants) - 1)

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        times = t_from + (t_to - t_from) * _spaced(steps)
        if sde.instants is None:
            return times
        instants: Tensor = sde.instants[to_nearest(times * (len(sde.instants) - 1)).long()]
        return instants


@dataclass(frozen=True)
class LogSNR(Clock):
    """Grid uniform in log-SNR, or log sigma (Lu et al. 2022)."""

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        return sde.half_log_snr(t)

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        return sde.time(clock)


@dataclass(frozen=True)
class Karras(Clock):
    """Grid uniform in ``(sigma / alpha)^(1/rho)`` (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        # sigma = 0 is a finite value here, but the paper appends it as an extra step
        return torch.where(t == 0.0, math.nan, torch.exp(-sde.half_log_snr(t) / self.rho))

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        return sde.time(-self.rho * torch.log(clock))


@dataclass(frozen=True)
class Angle(Clock):
    """Grid uniform in ``atan(sigma / alpha)``, the length of the path (Sabour et al. 2024, for Gaussian data)."""

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.atan(torch.exp(-sde.half_log_snr(t)))

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        return sde.time(-torch.log(torch.tan(clock)))


@dataclass(frozen=True)
class Asinh(Clock):
    """Grid uniform in ``asinh(sigma / (bend alpha))``: linear in sigma near the data, logarithmic in the noise."""

    bend: float = 0.03

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        return torch.asinh(torch.exp(-sde.half_log_snr(t)) / self.bend)

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        return sde.time(-torch.log(self.bend * torch.sinh(clock)))


@dataclass(frozen=True)
class Reference(Clock):
    """Grid uniform in ``tau^(1/power)``, ``tau`` the time at which the standard ``VPSDE()`` has the same log-SNR.

    For any process the nodes depend on the noise levels alone. Between the quadratic and the cubic grid of the linear
    process: the cubic one is better on few, separate modes, the quadratic one on broad data at 10 forwards or fewer.
    """

    power: float = 2.75

    def clock(self, sde: SDE, t: Tensor) -> Tensor:
        return VPSDE().time(sde.half_log_snr(t)) ** (1.0 / self.power)

    def invert(self, sde: SDE, clock: Tensor) -> Tensor:
        process, tau = VPSDE(), clock**self.power  # tau may pass 1 on processes that end noisier
        return sde.time(process._log_alpha(tau) - process._log_sigma(tau))


@dataclass(frozen=True)
class Mixed(Grid):
    """Grid as dense in log-SNR as two others on average: where one of them has few nodes, the other has some.

    Args:
        first: a grid.
        second: another, of equal weight.
    """

    first: Grid = Reference()
    second: Grid = Asinh(0.03)

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        found, ends = [], sorted((t_from, t_to), reverse=True)
        for grid in (self.first, self.second):
            half_log_snr = sde.half_log_snr(grid.nodes(sde, _FINE, *ends)).numpy()
            finite = np.isfinite(half_log_snr)
            found.append((half_log_snr[finite], np.linspace(0.0, 1.0, _FINE + 1)[finite]))
        places = np.sort(np.concatenate([half_log_snr for half_log_snr, _ in found]))
        share = np.mean([np.interp(places, *each) for each in found], axis=0)
        inner = np.interp(np.linspace(0.0, 1.0, steps + 1)[1:-1], share, places)
        times = sde.time(torch.from_numpy(inner)).clamp(sde.t_min, sde.t_max)
        times = torch.cat([times.new_tensor(ends[:1]), times, times.new_tensor(ends[1:])])
        return times if t_from > t_to else times.flip(0)


GRIDS: dict[str, Grid] = {
    "time": Power(1.0),
    "quadratic": Power(2.0),
    "cubic": Power(3.0),
    "reference": Reference(),
    "angle": Angle(),
    "asinh": Asinh(0.03),
    "mixed": Mixed(),
    "karras": Karras(7.0),
    "logsnr": LogSNR(),
    "exponential": LogSNR(),
    "chain": Chain(),
}
