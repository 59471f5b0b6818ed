r"""The adaptive solver of the probability-flow ODE: Adams methods of variable order, each sample at its own pace.

A step predicts by Adams-Bashforth of order k, asks the network once at its end, and corrects by Adams-Moulton of order
k + 1; the difference of the two is the error estimate (Milne's device), and the value found before the correction is
kept: one forward a step (PEC mode). All on ``dy / d theta = v``, with the velocity a polynomial in the clock of
:func:`~sdediff.samplers.clocks.clock_of`. The next step is as long, and of the order, at which the estimate would be a
small part of what is permitted if the divided difference stayed what it is.
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
from sdediff.samplers.clocks import Array, Counts, clock_of
from sdediff.samplers.interpolation import newton_integrals
from sdediff.samplers.per_sample import (
    Flags,
    Paced,
    check_lengths,
    clock_at,
    levels_at,
    reach,
    rms,
    those,
    without_sliver,
)
from sdediff.types import Level

_LIMIT, _AIM = 3.0, 0.1
"""Predictor errors, in units of the tolerance, at which a step is refused, and which a step is planned to have: planned
steps are rarely refused. The corrected step is one to two orders better, and some thirty of them add up."""


class Flight(NamedTuple):
    """The samples under way.

    Attributes:
        rows: which of the batch they are, ``(b,)``.
        y: states of the frame, ``(b, D)``.
        table: divided differences of the velocity over the last nodes, order 0 first, ``(b, K + 1, D)``.
        nodes: clocks of the last nodes, newest first, ``(b, K + 1)``.
        known: number of nodes so far, ``(b,)``.
        order: of the next step, ``(b,)``.
        length: of the next step in the clock, ``(b,)``.
    """

    rows: Counts
    y: Tensor
    table: Tensor
    nodes: Array
    known: Counts
    order: Counts
    length: Array


@dataclass(frozen=True)
class Adaptive(Paced):
    """Adaptive Adams methods on the angle, each sample at its own pace.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: the most forwards of a solve.
        highest: highest order of the predictor, 1 to 8; the corrector's is one more.
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

    def cross(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to another."""
        target, parts = clock_at(stop), list[tuple[Counts, Tensor]]()
        flight = self._launch(flatten(y), flatten(velocity(frame(y, start), start)), start, target)
        while len(flight.rows) > 0:
            self.report(frame, progress)
            flight = self._advance(frame, flight, y.shape[1:], stop, target)
            arrived = flight.nodes[:, 0] == target
            if arrived.any():
                parts.append((flight.rows[arrived], flight.y[torch.from_numpy(arrived).to(y.device)]))
                flight = those(flight, ~arrived)
        back = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return torch.cat([part for _, part in parts])[torch.from_numpy(back).to(y.device)].reshape(y.shape)

    def _launch(self, y: Tensor, value: Tensor, start: Level[float], target: float) -> Flight:
        """All samples at the start. The first step is Euler's: short enough if the velocity turns as fast as it is."""
        count, here, size = len(y), clock_at(start), rms(y)
        tolerance = self.permitted(size)
        turn = np.sqrt(2.0 * tolerance / np.maximum(size, tolerance)) * np.sign(target - here)
        length = np.abs(clock_of(np.tan(np.clip(start.angle + turn, 1e-9, 0.5 * np.pi - 1e-9))) - here)
        ones = np.ones(count, dtype=np.int64)
        table = torch.cat([value[:, None], y.new_zeros(count, self.highest, y.shape[1])], dim=1)
        nodes = np.zeros((count, self.highest + 1))
        nodes[:, 0] = here
        return Flight(np.arange(count), y, table, nodes, ones, ones, np.minimum(length, abs(target - here)))

    def _advance(self, frame: Frame, flight: Flight, shape: torch.Size, stop: Level[float], target: float) -> Flight:
        """Try a step with every sample; those refused stay where they were and plan a shorter one."""
        here, orders, row = flight.nodes[:, 0], np.arange(self.highest + 1), np.arange(len(flight.rows))
        last = flight.length >= np.abs(target - here)
        there = np.where(last, target, here + np.sign(target - here) * flight.length)
        ahead = newton_integrals(here, there, flight.nodes, len(orders))
        guess = flight.y + _combine(ahead * (orders < flight.order[:, None]), flight.table)
        level = levels_at(frame.sde, there, last, stop)
        value = velocity(frame(guess.reshape(-1, *shape), level, flight.rows), level)
        nodes = np.concatenate([there[:, None], flight.nodes[:, :-1]], axis=1)
        table = _differences(flatten(value), flight, there)
        inside = newton_integrals(here, there, nodes, len(orders))
        y = flight.y + _combine(inside * (orders <= flight.order[:, None]), table)
        size = rms(table) / self.permitted(rms(flight.y))[:, None]
        fits = np.abs(ahead[row, flight.order]) * size[row, flight.order] <= _LIMIT
        landed = flight._replace(y=y, table=table, nodes=nodes, known=flight.known + 1)
        return self._plan(landed if fits.all() else _settle(fits, landed, flight), fits, size, target)

    def _plan(self, flight: Flight, fits: Flags, size: Array, target: float) -> Flight:
        """Order and length of the next step: of the present order and its neighbours, the one that reaches furthest."""
        room = target - flight.nodes[:, 0]
        room = np.where(room == 0.0, 1.0, room)  # who has arrived plans idly
        for q in range(1, self.highest + 1):  # a difference not seen yet counts like the one below
            size[:, q] = np.where(q < flight.known + ~fits, size[:, q], size[:, q - 1])
        length, order, row = np.zeros(len(room)), flight.order, np.arange(len(room))
        for change in (0, -1, 1):
            tried = flight.order + change
            allowed = (tried >= 1) & (tried <= self.highest) & (tried <= flight.known) & (fits | (change <= 0))
            tried = np.where(allowed, tried, 1)
            reached = reach(flight.nodes[:, 0], room, flight.nodes, tried, size[row, tried], _AIM, flight.length)
            better = allowed & (reached > length)
            length, order = np.where(better, reached, length), np.where(better, tried, order)
        low, high = np.where(fits, 0.2, 0.1), np.where(fits, 2.5, 0.7)
        length = np.clip(length, low * flight.length, high * flight.length)
        check_lengths(length)
        return flight._replace(order=order, length=without_sliver(length, np.abs(room)))


def _settle(fits: Flags, landed: Flight, flight: Flight) -> Flight:
    """Who may go on has the new state and history, who may not keeps the old."""
    mask = torch.from_numpy(fits).to(flight.y.device)
    return flight._replace(
        y=torch.where(mask[:, None], landed.y, flight.y),
        table=torch.where(mask[:, None, None], landed.table, flight.table),
        nodes=np.where(fits[:, None], landed.nodes, flight.nodes),
        known=flight.known + fits,
    )


def _differences(value: Tensor, flight: Flight, there: Array) -> Tensor:
    """The table of divided differences with a new value in front."""
    width = flight.nodes.shape[1]
    known = np.arange(width) < flight.known[:, None]
    inverse = torch.from_numpy(np.where(known, 1.0 / (there[:, None] - flight.nodes), 0.0)).to(value)
    rows = [value]
    for q in range(width - 1):
        rows.append((rows[-1] - flight.table[:, q]) * inverse[:, q, None])
    return torch.stack(rows, dim=1)


def _combine(factors: Array, table: Tensor) -> Tensor:
    """The sum of a table's entries with factors, ``(b, D)``."""
    return torch.bmm(torch.from_numpy(factors)[:, None].to(table), table)[:, 0]
