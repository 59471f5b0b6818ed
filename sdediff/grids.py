r"""Time grids: where a solver of N steps puts its N + 1 nodes.

A grid is a callable ``(sde, steps, t_from, t_to) -> times``, float64 ``(N + 1,)`` from ``t_from`` down to ``t_to``.
``t_to = 0`` is the data themselves. Grids on the log-SNR cannot reach it; they run to ``t_min`` in N - 1 steps and the
last step denoises, the "zero appended" of Karras et al. (2022).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.sde import SDE, VPSDE


class Grid(ABC):
    """A rule for placing nodes; a frozen dataclass."""

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """The number of steps where the user gives none and the sampler proposes one."""
        return proposed

    @abstractmethod
    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        """Float64 ``(steps + 1,)``; the ends may be off by rounding."""

    def __call__(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        """Nodes from ``t_from`` to ``t_to``, both exact.

        Raises:
            ValueError: for fewer than one step or equal ends, or if two nodes coincide.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if t_from == t_to:
            raise ValueError(f"t_from and t_to must differ; both are {t_from:g}")
        times = self.nodes(sde, steps, t_from, t_to)
        times[0], times[-1] = t_from, t_to
        if bool((times.diff() * math.copysign(1.0, t_to - t_from) <= 0.0).any()):
            raise ValueError(f"{steps} steps from {t_from:g} to {t_to:g} are too many: two nodes coincide")
        return times


def _spaced(steps: int) -> Tensor:
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Power(Grid):
    """Uniform in ``t^(1/power)``: 1 is uniform, 2 is the "quadratic" of Song, Meng & Ermon (2021)."""

    power: float = 1.0

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        start, end = t_from ** (1.0 / self.power), t_to ** (1.0 / self.power)
        return torch.pow(start + (end - start) * _spaced(steps), self.power)


@dataclass(frozen=True)
class Chain(Grid):
    """Uniform in t, moved to the nearest instants of a discrete chain where the process is one."""

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """At most the chain's own length."""
        return proposed if sde.instants is None else min(proposed, len(sde.instants) - 1)

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        times = t_from + (t_to - t_from) * _spaced(steps)
        if sde.instants is None:
            return times
        instants: Tensor = sde.instants[(times * (len(sde.instants) - 1)).round().long()]
        return instants


class Clock(Grid):
    """A grid uniform in some function of lambda that may be infinite at the ends of the process."""

    @abstractmethod
    def read(self, half_log_snr: Tensor) -> Tensor:
        """The clock at a half log-SNR."""

    @abstractmethod
    def invert(self, clock: Tensor) -> Tensor:
        """The half log-SNR at a value of the clock."""

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        def clock(t: float) -> float:
            return float(self.read(sde.half_log_snr(t)))

        start, end = clock(t_from), clock(t_to)
        first, last = (min(max(t, sde.t_min), sde.t_max) for t in (t_from, t_to))
        start_in, end_in = clock(first), clock(last)
        step = (end - start) / steps
        # An end outside [t_min, t_max] costs a step of its own, unless the nodes next to it lie inside anyway.
        leave = int(first != t_from and not (start + step - start_in) * (end_in - start_in) >= 0.0)
        arrive = int(last != t_to and not (end - step - end_in) * (start_in - end_in) >= 0.0)
        start, end = (start_in if leave else start), (end_in if arrive else end)
        inner = steps - leave - arrive
        if inner < 1:  # one or two steps, both spent on the ends
            return torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64)
        times = sde.time(self.invert(start + (end - start) * _spaced(inner))).clamp(sde.t_min, sde.t_max)
        return torch.cat([times.new_tensor([t_from] * leave), times, times.new_tensor([t_to] * arrive)])


@dataclass(frozen=True)
class LogSNR(Clock):
    """Uniform in log-SNR (Lu et al. 2022)."""

    def read(self, half_log_snr: Tensor) -> Tensor:
        return half_log_snr

    def invert(self, clock: Tensor) -> Tensor:
        return clock


@dataclass(frozen=True)
class Karras(Clock):
    """Uniform in ``(sigma / alpha)^(1/rho)`` (Karras et al. 2022, eq. 5)."""

    rho: float = 7.0

    def read(self, half_log_snr: Tensor) -> Tensor:
        # sigma = 0 is a finite value here, but the paper appends it as a step of its own
        return torch.where(half_log_snr == math.inf, math.nan, torch.exp(-half_log_snr / self.rho))

    def invert(self, clock: Tensor) -> Tensor:
        return -self.rho * torch.log(clock)


@dataclass(frozen=True)
class Reference(Clock):
    """Uniform in ``tau^(1/power)``, ``tau`` the time at which the standard ``VPSDE()`` has the same log-SNR.

    For any process the nodes depend on the noise levels alone. Between the quadratic and the cubic grid of the linear
    process: the cubic one is better on few, separate modes, the quadratic one on broad data at 10 forwards or fewer.
    """

    power: float = 2.5

    def read(self, half_log_snr: Tensor) -> Tensor:
        return VPSDE().time(half_log_snr) ** (1.0 / self.power)

    def invert(self, clock: Tensor) -> Tensor:
        process, tau = VPSDE(), clock**self.power  # tau may pass 1 on processes that end noisier
        return process._log_alpha(tau) - process._log_sigma(tau)


GRIDS: dict[str, Grid] = {
    "time": Power(1.0),
    "quadratic": Power(2.0),
    "reference": Reference(2.5),
    "logsnr": LogSNR(),
    "karras": Karras(7.0),
    "chain": Chain(),
}
