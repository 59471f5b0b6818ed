r"""Multistep solver with nodes and weights learned for one model and one number of steps.

The state ``u`` is whitened by the data's own Gaussian, and ``v = du / d phi`` is its velocity
(:class:`~sdediff.gaussian.Whitened`). A step adds past velocities to u,

    u' = u + sum_j [(phi' - phi) step_j + (phi - phi_before) back_j] v_j,

with weights ``(step, back)`` of each step. ``step`` are those of a predictor; ``back`` those by which a corrector
changes the step before once its end has been evaluated, which costs no forward (Zhao et al. 2023). Both are those of a
multistep method, exact in every coordinate's own angle, plus numbers common to all coordinates. The model may be
evaluated at another level than that of the state, with ``x / alpha`` unchanged: that compensates a biased state.
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
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.clocks import BEND
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split

_SAME_LAMBDA = 1e-6
"""Half log-SNRs that differ by less are equal: the error of a time and back is at most that."""

_QUADRATURE = tuple(torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(20))
"""Gauss-Legendre nodes and weights, as many as the weights of stored solvers were learned with."""

W = TypeVar("W", bound=Sequence[Scalar] | Tensor, default=tuple[float, ...])


class StepWeights(NamedTuple, Generic[W]):
    """Weights of the past velocities in one step, newest first; both of one length, at most that of the history."""

    step: W
    back: W

    def interpolate(self, other: StepWeights, share: float) -> StepWeights:
        """Interpolate linearly between these weights (share 0) and others (share 1)."""
        return StepWeights(
            *(tuple(a + share * (b - a) for a, b in zip(u, v, strict=True)) for u, v in zip(self, other, strict=True))
        )


def evaluate_at(denoise: Frame, y: Tensor, here: Level, other: Level) -> Split:
    """Split the state ``y`` of the level ``here`` as one of another level; one forward."""
    return denoise(y if other is here else y * expand(other.cos / here.cos, y), other)


def asinh_clock(tan: Tensor) -> Tensor:
    """Return the clock "asinh": linear near the data, logarithmic in the noise."""
    return torch.asinh(tan / BEND)


def tan_of_asinh_clock(clock: Tensor) -> Tensor:
    """Return ``sigma / alpha`` at a value of :func:`asinh_clock`."""
    return BEND * torch.sinh(clock)


def lagrange_averages(start: Tensor, end: Tensor, nodes: Tensor, std: Tensor) -> Tensor:
    """Average the Lagrange polynomials in the clock over phi in a step.

    Args:
        start: clock at the start of the step.
        end: clock at the end of the step.
        nodes: clock at the values ``(k,)``.
        std: standard deviations of the coordinates ``(D,)``.

    Returns:
        ``(k, D)``, summing to 1: Adams-Bashforth or Adams-Moulton weights over the step.
    """
    points, weights = _QUADRATURE
    clock = 0.5 * (start + end) + 0.5 * (end - start) * points
    share = (weights * torch.cosh(clock))[:, None] / (std**2 + tan_of_asinh_clock(clock)[:, None] ** 2)
    powers = torch.arange(len(nodes), dtype=torch.float64)[:, None]
    moments = ((clock - start) / (end - start)) ** powers @ (share / share.sum(dim=0))
    found: Tensor = torch.linalg.solve(((nodes - start) / (end - start)) ** powers, moments)
    return found


class AdamsMethod(NamedTuple):
    """Adams method to which learned weights are added.

    Attributes:
        memory: number of values in its predictor; 0 for no method, the learned weights alone.
        correct: whether there is a corrector.
    """

    memory: int = 0
    correct: bool = False

    def weights(
        self, i: int, clock: Tensor, there: Tensor, std: Tensor, learned: StepWeights[Any]
    ) -> StepWeights[Tensor]:
        """Return all weights of step i, ``(k, D)`` each: those of the method plus the learned ones.

        Args:
            i: index of the step, from node i.
            clock: clock at the nodes, up to i at least.
            there: clock at the end of the step.
            std: standard deviations of the coordinates ``(D,)``.
            learned: learned weights.
        """
        columns = [torch.as_tensor(weights, dtype=torch.float64)[:, None] for weights in learned]
        size = max(len(columns[0]), min(i + 1, self.memory + 1))
        step, back = (_pad(column, size).expand(size, len(std)) for column in columns)
        if self.memory == 0:
            return StepWeights(step, back)
        step = step + _pad(self._predict(i, clock, there, std), size)
        if self.correct and i > 0:
            nodes = clock[max(0, i - self.memory) : i + 1].flip(0)
            corrected = lagrange_averages(clock[i - 1], clock[i], nodes, std)
            predicted = self._predict(i - 1, clock, clock[i], std)
            change = _pad(corrected, size) - _pad(torch.cat([torch.zeros_like(predicted[:1]), predicted]), size)
            back = back + change
        return StepWeights(step, back)

    def _predict(self, i: int, clock: Tensor, there: Tensor, std: Tensor) -> Tensor:
        return lagrange_averages(clock[i], there, clock[max(0, i + 1 - self.memory) : i + 1].flip(0), std)


NO_METHOD = AdamsMethod()


def _pad(weights: Tensor, size: int) -> Tensor:
    return torch.cat([weights, weights.new_zeros(max(0, size - len(weights)), *weights.shape[1:])])[:size]


def tuned_step(
    white: Whitened,
    y: Tensor,
    split: Split,
    history: Sequence[Tensor],
    levels: tuple[GaussianLevel, GaussianLevel, GaussianLevel],
    weights: StepWeights[Any],
) -> tuple[Tensor, list[Tensor]]:
    """Take one step.

    Args:
        white: whitened coordinates.
        y: state ``(B, *shape)`` at the start of the step.
        split: halves of that state.
        history: past velocities, newest first.
        levels: levels at the start of the step before (of this one in the first step), at its start and at its end.
        weights: weights, newest first, each a number or ``(D,)``.

    Returns:
        The state at the end, and the history with this velocity in front.
    """
    before, here, there = levels
    values = [white.velocity(split, here), *history]
    u = white.whiten(y, here)
    for step, back, value in zip(*weights, values, strict=False):
        u = u + ((there.phi - here.phi) * step + (here.phi - before.phi) * back).to(u) * value
    return white.unwhiten(u, there, y), values


@dataclass(frozen=True)
class Nodes(Grid):
    """Nodes at the levels of a tuned solver, of which only the last may be replaced.

    Args:
        half_log_snr: half log-SNRs of the nodes, increasing; the last may be replaced by any cleaner level.
    """

    half_log_snr: tuple[float, ...]

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """Return the number of steps of the solver."""
        return len(self.half_log_snr) - 1

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        tuned = len(self.half_log_snr) - 1
        if steps != tuned:
            raise ValueError(f"this solver is tuned for {tuned} steps, not {steps}")
        start, end = (float(sde.half_log_snr(t)) for t in (t_from, t_to))
        if abs(start - self.half_log_snr[0]) > _SAME_LAMBDA or end < self.half_log_snr[-1] - _SAME_LAMBDA:
            there = [float(sde.time(value)) for value in (self.half_log_snr[0], self.half_log_snr[-1])]
            raise ValueError(
                f"this solver is tuned from t = {there[0]:g} to t = {there[1]:g} or less, not {t_from:g} to {t_to:g}"
            )
        return sde.time(torch.tensor(self.half_log_snr, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)


class TunedHistory(NamedTuple):
    """Past velocities and the weights of a solve.

    Attributes:
        white: whitened coordinates.
        steps: levels, weights and half log-SNR of the evaluation, of every step of the grid.
        done: number of steps done.
        history: past velocities, newest first.
    """

    white: Whitened
    steps: Sequence[tuple[tuple[GaussianLevel, GaussianLevel, GaussianLevel], StepWeights[Tensor], float]]
    done: int
    history: list[Tensor]


@dataclass(frozen=True)
class Tuned(StepSampler):
    """Multistep method with its own nodes and weights: one forward a step.

    Args:
        half_log_snr: half log-SNRs of the nodes, ``N + 1``, increasing; the first is the start, the last one end.
        rows: learned weights of the steps, ``N``, added to those of ``method``; the last are for the last node.
        clean: learned weights of a last step to the data (sigma = 0); for ends between, both are mixed by the angle.
        method: multistep method to which they are added.
        evaluated: half log-SNRs at which the model is evaluated, ``N``; by default the nodes.
        moments: moments of the data with which the solver was tuned; ``None`` for the plain velocity.

    Raises:
        ValueError: if the nodes do not increase, or the weights are not as many as the steps or more than the history.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    half_log_snr: tuple[float, ...]
    rows: tuple[StepWeights, ...]
    clean: StepWeights
    method: AdamsMethod = NO_METHOD
    evaluated: tuple[float, ...] | None = None
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
        if self.evaluated is not None and len(self.evaluated) != count:
            raise ValueError(f"the model is evaluated {count} times, not {len(self.evaluated)}")

    @property
    def grid(self) -> Nodes:
        return Nodes(self.half_log_snr)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @property
    def _memory(self) -> int:
        return max(self.method.memory, max(len(row.step) for row in self.rows) - 1)

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> TunedHistory:
        """Compute the weights of every step, the last ones for the end of the grid."""
        nodes = [level.half_log_snr for level in levels]
        if len(nodes) != len(self.half_log_snr) or any(
            abs(a - b) > _SAME_LAMBDA for a, b in zip(nodes[:-1], self.half_log_snr[:-1], strict=True)
        ):
            raise ValueError("a tuned solver has its own nodes: give it no grid")
        white, last = Whitened(self.moments), math.atan(math.exp(-self.half_log_snr[-1]))
        learned = [*self.rows[:-1], self.clean.interpolate(self.rows[-1], min(levels[-1].angle / last, 1.0))]
        clock = asinh_clock(torch.tensor([math.tan(level.angle) for level in levels], dtype=torch.float64))
        weights = [self.method.weights(i, clock, clock[i + 1], white.std, row) for i, row in enumerate(learned)]
        at = [white.at(level) for level in levels]
        around = zip([at[0], *at[:-2]], at, at[1:], strict=False)
        return TunedHistory(white, list(zip(around, weights, self.evaluated or self.half_log_snr, strict=False)), 0, [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: TunedHistory
    ) -> tuple[Tensor, TunedHistory]:
        """Take a step; one forward."""
        levels, weights, evaluated = carry.steps[carry.done]
        level = here if abs(evaluated - here.half_log_snr) < _SAME_LAMBDA else denoise.at_half_log_snr(evaluated)
        y, history = tuned_step(carry.white, y, evaluate_at(denoise, y, here, level), carry.history, levels, weights)
        return y, carry._replace(done=carry.done + 1, history=history[: self._memory])
