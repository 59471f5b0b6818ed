r"""A multistep solver whose nodes and weights are numbers, learned for one model and one number of steps.

The state ``u`` is measured against the data's own Gaussian, its velocity ``v = du / d phi`` is what that leaves over
(:class:`~sdediff.gaussian.Whitened`). A step adds remembered velocities to u,

    u' = u + sum_j [(phi' - phi) step_j + (phi - phi_before) back_j] v_j,

one row ``(step, back)`` a step. ``step`` are the weights of a predictor; ``back`` is what a corrector changes of the
step before now that its end has been evaluated, which costs no forward (Zhao et al. 2023). Both are those of a
multistep method, exact in every coordinate's own angle, plus numbers that all coordinates share. The model may be
asked about a state at another level than the state's own, ``x / alpha`` unchanged: a state that errs on one side is
better told a little more or less noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from sdediff.dynamics import Frame
from sdediff.gaussian import GaussianLevel, Moments, Whitened
from sdediff.grids import Grid
from sdediff.numerics import expand
from sdediff.samplers.base import Draw, StepSampler
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split

_NEAR = 1e-6
"""Half log-SNRs this near are the same: a time and back costs that much at most."""

_BEND = 0.3
_QUADRATURE = tuple(torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(20))

W = TypeVar("W", bound=Sequence[Scalar] | Tensor, default=tuple[float, ...])


class Row(NamedTuple, Generic[W]):
    """Weights of the remembered velocities in one step, newest first; both of one length, at most that of history."""

    step: W
    back: W

    def toward(self, share: float, other: Row) -> Row:
        """The row ``share`` of the way to another."""
        return Row(
            *(tuple(a + share * (b - a) for a, b in zip(u, v, strict=True)) for u, v in zip(self, other, strict=True))
        )


def ask(denoise: Frame, y: Tensor, here: Level, asked: Level) -> Split:
    """Split the state ``y`` of one level as if it were of another; one forward."""
    return denoise(y if asked is here else y * expand(asked.cos / here.cos, y), asked)


def clock_at(tan: Tensor) -> Tensor:
    """The clock in which velocities are polynomials: linear near the data, logarithmic in the noise."""
    return torch.asinh(tan / _BEND)


def tan_at(clock: Tensor) -> Tensor:
    """Inverse of :func:`clock_at`."""
    return _BEND * torch.sinh(clock)


def averages(start: Tensor, end: Tensor, known: Tensor, std: Tensor) -> Tensor:
    """Averages over phi, in a step, of the polynomials in the clock that are 1 at one known value and 0 at the others.

    Args:
        start: the clock at the start of the step.
        end: at its end.
        known: at the values ``(k,)``.
        std: of the coordinates ``(D,)``.

    Returns:
        ``(k, D)``, summing to 1: Adams-Bashforth or Adams-Moulton weights over the step.
    """
    nodes, weights = _QUADRATURE
    clock = 0.5 * (start + end) + 0.5 * (end - start) * nodes
    share = (weights * torch.cosh(clock))[:, None] / (std**2 + tan_at(clock)[:, None] ** 2)
    powers = torch.arange(len(known), dtype=torch.float64)[:, None]
    moments = ((clock - start) / (end - start)) ** powers @ (share / share.sum(dim=0))
    found: Tensor = torch.linalg.solve(((known - start) / (end - start)) ** powers, moments)
    return found


class Method(NamedTuple):
    """The multistep method under the rows.

    Attributes:
        memory: values that its predictor uses; 0 for no method, rows alone.
        correct: whether a corrector is on top.
    """

    memory: int = 0
    correct: bool = False

    def row(self, i: int, clock: Tensor, there: Tensor, std: Tensor, own: Row[Any]) -> Row[Tensor]:
        """All weights of step i, ``(k, D)`` each: the method's and the row's own.

        Args:
            i: the step, from node i.
            clock: at the nodes up to i at least.
            there: at the end of the step.
            std: of the coordinates ``(D,)``.
            own: numbers on top.
        """
        parts = [torch.as_tensor(part, dtype=torch.float64)[:, None] for part in own]
        size = max(len(parts[0]), min(i + 1, self.memory + 1))
        step, back = (_pad(part, size).expand(size, len(std)) for part in parts)
        if self.memory == 0:
            return Row(step, back)
        step = step + _pad(self._predict(i, clock, there, std), size)
        if self.correct and i > 0:
            known = clock[max(0, i - self.memory) : i + 1].flip(0)
            corrected = averages(clock[i - 1], clock[i], known, std)
            predicted = self._predict(i - 1, clock, clock[i], std)
            change = _pad(corrected, size) - _pad(torch.cat([torch.zeros_like(predicted[:1]), predicted]), size)
            back = back + change
        return Row(step, back)

    def _predict(self, i: int, clock: Tensor, there: Tensor, std: Tensor) -> Tensor:
        return averages(clock[i], there, clock[max(0, i + 1 - self.memory) : i + 1].flip(0), std)


NONE = Method()


def _pad(weights: Tensor, size: int) -> Tensor:
    return torch.cat([weights, weights.new_zeros(max(0, size - len(weights)), *weights.shape[1:])])[:size]


def advance(
    white: Whitened,
    y: Tensor,
    split: Split,
    history: Sequence[Tensor],
    spots: tuple[GaussianLevel, GaussianLevel, GaussianLevel],
    row: Row[Any],
) -> tuple[Tensor, list[Tensor]]:
    """One step.

    Args:
        white: the frame.
        y: the state ``(B, *shape)`` here.
        split: the same, taken apart.
        history: velocities of the steps before, newest first.
        spots: the levels before (the same as here in the first step), here and there.
        row: the weights, newest first, each a number or ``(D,)``.

    Returns:
        The state there, and the history with this velocity in front.
    """
    before, here, there = spots
    values = [white.velocity(split, here), *history]
    u = white.whiten(y, here)
    for step, back, value in zip(*row, values, strict=False):
        u = u + ((there.phi - here.phi) * step + (here.phi - before.phi) * back).to(u) * value
    return white.unwhiten(u, there, y), values


@dataclass(frozen=True)
class Nodes(Grid):
    """Nodes that are part of a solver: the levels themselves, of which only the last may be nearer the data.

    Args:
        half_log_snr: of the nodes, rising; the last may be replaced by any cleaner level.
    """

    half_log_snr: tuple[float, ...]

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """The only number there is."""
        return len(self.half_log_snr) - 1

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        own = len(self.half_log_snr) - 1
        if steps != own:
            raise ValueError(f"this solver is tuned for {own} steps, not {steps}")
        start, end = (float(sde.half_log_snr(t)) for t in (t_from, t_to))
        if abs(start - self.half_log_snr[0]) > _NEAR or end < self.half_log_snr[-1] - _NEAR:
            there = [float(sde.time(value)) for value in (self.half_log_snr[0], self.half_log_snr[-1])]
            raise ValueError(
                f"this solver is tuned from t = {there[0]:g} to t = {there[1]:g} or less, not {t_from:g} to {t_to:g}"
            )
        return sde.time(torch.tensor(self.half_log_snr, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)


class Memory(NamedTuple):
    """What a step hands to the next.

    Attributes:
        white: the frame.
        plan: of every step of the grid its spots, its row, and where the model is asked.
        done: how many of the steps are.
        history: the velocities seen, newest first.
    """

    white: Whitened
    plan: Sequence[tuple[tuple[GaussianLevel, GaussianLevel, GaussianLevel], Row[Tensor], float]]
    done: int
    history: list[Tensor]


@dataclass(frozen=True)
class Tuned(StepSampler):
    """Multistep method with its own nodes and weights: one forward a step.

    Args:
        half_log_snr: of its nodes, ``N + 1``, rising. The first is the start; the last is an end it was tuned for.
        rows: of its steps, ``N``, on top of ``method``; the last one is for the last node.
        clean: the last row for the data themselves (sigma = 0). Ends between these two mix their rows by the angle.
        method: the multistep method under the rows.
        asked: half log-SNRs at which the model is asked, ``N``; by default the nodes.
        moments: of the data, which it was tuned with; ``None`` for the plain velocity.

    Raises:
        ValueError: if the nodes do not rise, or the rows are not as many as the steps or longer than the history.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    half_log_snr: tuple[float, ...]
    rows: tuple[Row, ...]
    clean: Row
    method: Method = NONE
    asked: tuple[float, ...] | None = None
    moments: Moments | None = None

    def __post_init__(self) -> None:
        nodes, count = self.half_log_snr, len(self.rows)
        if len(nodes) != count + 1 or count < 1 or not all(a < b for a, b in pairwise(nodes)):
            raise ValueError(f"{count} rows need {count + 1} rising nodes, not {nodes}")
        for i, row in enumerate((*self.rows, self.clean)):
            if len(row.step) != len(row.back) or not 1 <= len(row.step) <= min(i, count - 1) + 1:
                raise ValueError(f"row {i} has {len(row.step)} and {len(row.back)} weights, not 1 to {i + 1} of each")
        if len(self.clean.step) != len(self.rows[-1].step):
            raise ValueError("both last rows must have as many weights")
        if self.asked is not None and len(self.asked) != count:
            raise ValueError(f"the model is asked {count} times, not {len(self.asked)}")

    @property
    def grid(self) -> Nodes:
        return Nodes(self.half_log_snr)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def _memory(self) -> int:
        return max(self.method.memory, max(len(row.step) for row in self.rows) - 1)

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> Memory:
        """The rows, with the last one for the grid's own end."""
        drawn = [level.half_log_snr for level in levels]
        if len(drawn) != len(self.half_log_snr) or any(
            abs(a - b) > _NEAR for a, b in zip(drawn[:-1], self.half_log_snr[:-1], strict=True)
        ):
            raise ValueError("a tuned solver has its own nodes: give it no grid")
        white, last = Whitened(self.moments), math.atan(math.exp(-self.half_log_snr[-1]))
        own = [*self.rows[:-1], self.clean.toward(min(levels[-1].angle / last, 1.0), self.rows[-1])]
        clock = clock_at(torch.tensor([math.tan(level.angle) for level in levels], dtype=torch.float64))
        rows = [self.method.row(i, clock, clock[i + 1], white.std, row) for i, row in enumerate(own)]
        spots = [white.at(level) for level in levels]
        around = zip([spots[0], *spots[:-2]], spots, spots[1:], strict=False)
        return Memory(white, list(zip(around, rows, self.asked or self.half_log_snr, strict=False)), 0, [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Memory
    ) -> tuple[Tensor, Memory]:
        """One forward."""
        spots, row, asked = carry.plan[carry.done]
        level = here if abs(asked - here.half_log_snr) < _NEAR else denoise.at_half_log_snr(asked)
        y, history = advance(carry.white, y, ask(denoise, y, here, level), carry.history, spots, row)
        return y, carry._replace(done=carry.done + 1, history=history[: self._memory])
