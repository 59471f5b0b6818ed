r"""Adaptive solver of the probability-flow ODE: Adams methods of variable order with per-sample steps.

A step predicts by Adams-Bashforth of order k, evaluates the network once at its end, and corrects by Adams-Moulton of
order k + 1; the difference of the two is the error estimate (Milne's device), and the velocity at the predicted state
is kept: one forward a step (PEC mode). All on ``dy / d theta = v``, with the velocity a polynomial in the clock of
:func:`~sdediff.samplers.clocks.clock_of`. The next step has the length and the order at which the estimate would be a
small part of the tolerance if the divided difference stayed the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.dynamics import Frame, velocity
from sdediff.noise import NoiseSource
from sdediff.numerics import flatten
from sdediff.samplers.base import Progress
from sdediff.samplers.clocks import FloatArray, IntArray, clock_of
from sdediff.samplers.interpolation import divided_difference_weights
from sdediff.samplers.per_sample import (
    BoolArray,
    PerSampleSampler,
    advance_all,
    avoid_short_last_step,
    check_step_lengths,
    clock_of_level,
    levels_at,
    longest_steps,
    rms,
    rms_of_both,
)
from sdediff.types import Level

_REJECT, _TARGET = 3.0, 0.1
"""Predictor errors, in units of the tolerance, above which a step is rejected, and for which it is planned: planned
steps are rarely rejected. The corrected step is one to two orders better, and some thirty of them add up."""


class AdamsState(NamedTuple):
    """State of the unfinished samples.

    Attributes:
        rows: indices in the batch, ``(b,)``.
        y: states of the frame, ``(b, D)``.
        table: divided differences of the velocity over the last nodes, order 0 first, ``(b, K + 1, D)``.
        nodes: clocks of the last nodes, newest first, ``(b, K + 1)``.
        filled: number of nodes so far, ``(b,)``.
        order: order of the next step, ``(b,)``.
        length: length of the next step in the clock, ``(b,)``.
    """

    rows: IntArray
    y: Tensor
    table: Tensor
    nodes: FloatArray
    filled: IntArray
    order: IntArray
    length: FloatArray


@dataclass(frozen=True)
class Adaptive(PerSampleSampler):
    """Adaptive Adams methods on the angle, with per-sample steps.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, in units of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: largest NFE of a solve.
        highest: highest order of the predictor, 1 to 8; that of the corrector is one more.
    """

    stochastic: ClassVar[bool] = False

    highest: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.highest <= 8:
            raise ValueError(f"highest must be 1 to 8, not {self.highest}")

    @property
    def order(self) -> int:
        return self.highest + 1

    def integrate(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to another."""
        target = clock_of_level(stop)

        def advance(state: AdamsState) -> AdamsState:
            self.report(frame, progress)
            return self._advance(frame, state, y.shape[1:], stop, target)

        state = self._initial_state(flatten(y), flatten(velocity(frame(y, start), start)), start, target)
        return advance_all(state, advance, lambda state: state.nodes[:, 0] == target).reshape(y.shape)

    def _initial_state(self, y: Tensor, value: Tensor, start: Level[float], target: float) -> AdamsState:
        """Return the state at the start, with a first step for a velocity whose slope is of its own size."""
        count, here, size = len(y), clock_of_level(start), rms(y)
        tolerance = self.tolerance(size)
        turn = np.sqrt(2.0 * tolerance / np.maximum(size, tolerance)) * np.sign(target - here)
        length = np.abs(clock_of(np.tan(np.clip(start.angle + turn, 1e-9, 0.5 * np.pi - 1e-9))) - here)
        ones = np.ones(count, dtype=np.int64)
        table = torch.cat([value[:, None], y.new_zeros(count, self.highest, y.shape[1])], dim=1)
        nodes = np.zeros((count, self.highest + 1))
        nodes[:, 0] = here
        return AdamsState(np.arange(count), y, table, nodes, ones, ones, np.minimum(length, abs(target - here)))

    def _advance(
        self, frame: Frame, state: AdamsState, shape: torch.Size, stop: Level[float], target: float
    ) -> AdamsState:
        """Try a step with every sample; rejected samples keep their state and plan a shorter one."""
        here, orders, row = state.nodes[:, 0], np.arange(self.highest + 1), np.arange(len(state.rows))
        last = state.length >= np.abs(target - here)
        there = np.where(last, target, here + np.sign(target - here) * state.length)
        ahead = divided_difference_weights(here, there, state.nodes, len(orders))
        guess = state.y + _weighted_sum(ahead * (orders < state.order[:, None]), state.table)
        level = levels_at(frame.sde, there, last, stop)
        value = velocity(frame(guess.reshape(-1, *shape), level, state.rows), level)
        nodes = np.concatenate([there[:, None], state.nodes[:, :-1]], axis=1)
        table = _differences(flatten(value), state, there)
        inside = divided_difference_weights(here, there, nodes, len(orders))
        y = state.y + _weighted_sum(inside * (orders <= state.order[:, None]), table)
        differences, states = rms_of_both(table, state.y)
        size = differences / self.tolerance(states)[:, None]
        fits = np.abs(ahead[row, state.order]) * size[row, state.order] <= _REJECT
        moved = state._replace(y=y, table=table, nodes=nodes, filled=state.filled + 1)
        return self._plan(moved if fits.all() else _accept(fits, moved, state), fits, size, target)

    def _plan(self, state: AdamsState, fits: BoolArray, size: FloatArray, target: float) -> AdamsState:
        """Plan the next step: of the present order and its neighbours, the one that allows the longest step."""
        room = target - state.nodes[:, 0]
        room = np.where(room == 0.0, 1.0, room)  # finished samples are removed before the next step
        for q in range(1, self.highest + 1):  # a difference not yet available counts like the one below
            size[:, q] = np.where(q < state.filled + ~fits, size[:, q], size[:, q - 1])
        length, order, row = np.zeros(len(room)), state.order, np.arange(len(room))
        for change in (0, -1, 1):
            tried = state.order + change
            allowed = (tried >= 1) & (tried <= self.highest) & (tried <= state.filled) & (fits | (change <= 0))
            tried = np.where(allowed, tried, 1)
            errors, nodes = size[row, tried], state.nodes
            reached = longest_steps(nodes[:, 0], room, nodes, tried, errors, _TARGET, state.length)
            better = allowed & (reached > length)
            length, order = np.where(better, reached, length), np.where(better, tried, order)
        low, high = np.where(fits, 0.2, 0.1), np.where(fits, 2.5, 0.7)
        length = np.clip(length, low * state.length, high * state.length)
        check_step_lengths(length)
        return state._replace(order=order, length=avoid_short_last_step(length, np.abs(room)))


def _accept(fits: BoolArray, moved: AdamsState, state: AdamsState) -> AdamsState:
    """Return the new state and history of accepted samples, the old ones of rejected samples."""
    mask = torch.from_numpy(fits).to(state.y.device)
    return state._replace(
        y=torch.where(mask[:, None], moved.y, state.y),
        table=torch.where(mask[:, None, None], moved.table, state.table),
        nodes=np.where(fits[:, None], moved.nodes, state.nodes),
        filled=state.filled + fits,
    )


def _differences(value: Tensor, state: AdamsState, there: FloatArray) -> Tensor:
    """Return the table of divided differences with a new value in front."""
    width = state.nodes.shape[1]
    available = np.arange(width) < state.filled[:, None]
    inverse = torch.from_numpy(np.where(available, 1.0 / (there[:, None] - state.nodes), 0.0)).to(value)
    rows = [value]
    for q in range(width - 1):
        rows.append((rows[-1] - state.table[:, q]) * inverse[:, q, None])
    return torch.stack(rows, dim=1)


def _weighted_sum(factors: FloatArray, table: Tensor) -> Tensor:
    """Return the sum of a table's entries with factors, ``(b, D)``."""
    return torch.bmm(torch.from_numpy(factors)[:, None].to(table), table)[:, 0]
