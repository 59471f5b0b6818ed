r"""Per-sample steps of adaptive samplers: tolerances, selection of samples, lengths of steps.

Every sample has its own nodes and steps: a call of the network holds all unfinished samples, each at its own level;
finished samples are removed from the batch. So a solve costs as many calls as its slowest sample needs, which is no
more than with common steps, and the result for a sample does not depend on the others in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.samplers.clocks import FloatArray, IntArray, clock_of, tan_of
from sdediff.samplers.interpolation import divided_difference_weights
from sdediff.samplers.tolerance import AdaptiveSampler, check_tolerances
from sdediff.sde import SDE
from sdediff.types import Level

BoolArray = NDArray[np.bool_]
StateT = TypeVar("StateT", bound=Any)
"""Named tuple with a row for each unfinished sample; ``rows`` are their indices in the batch, ``y`` their states."""
_SHORTEST = 1e-10
"""Shortest step in the clock."""


@dataclass(frozen=True)
class PerSampleSampler(AdaptiveSampler):
    """An adaptive sampler with steps of its own for each sample.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, in units of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: largest NFE of a solve.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    cap: int = field(default=10_000, kw_only=True)

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.cap)

    def tolerance(self, size: FloatArray) -> FloatArray:
        """Return the error allowed to a sample of RMS ``size``."""
        return self.atol + self.rtol * size


def select(state: StateT, mask: BoolArray) -> StateT:
    """Select samples from a named tuple of tensors and arrays with one row a sample."""
    index = torch.from_numpy(np.flatnonzero(mask))  # of a mask the device would have to say how many it selects
    rows = (a[index.to(a.device)] if isinstance(a, Tensor) else a[mask] for a in state)
    selected: StateT = type(state)(*rows)
    return selected


def advance_all(state: StateT, advance: Callable[[StateT], StateT], at_end: Callable[[StateT], BoolArray]) -> Tensor:
    """Advance all samples until each is at the end, and return their states ``y`` in the order of the batch."""
    rows, states = list[IntArray](), list[Tensor]()
    while len(state.rows) > 0:
        state = advance(state)
        mask = at_end(state)
        if mask.any():
            finished, state = select(state, mask), select(state, ~mask)
            rows.append(finished.rows)
            states.append(finished.y)
    return torch.cat(states)[torch.from_numpy(np.argsort(np.concatenate(rows))).to(states[0].device)]


def clock_of_level(level: Level[float]) -> float:
    """Return the clock at a level."""
    return float(clock_of(np.exp(-level.half_log_snr)))


def levels_at(sde: SDE, clocks: FloatArray, last: BoolArray, stop: Level[float]) -> Level[Tensor]:
    """Return the levels at clocks, one a sample; exactly ``stop`` where ``last``."""
    found, there = sde.level_at(torch.from_numpy(-np.log(tan_of(clocks)))), torch.from_numpy(last)
    return Level(*(torch.where(there, exact, field) for exact, field in zip(stop, found, strict=True)))


def rms(values: Tensor) -> FloatArray:
    """Return the RMS over the last dimension of ``(b, ...)``, on the host."""
    return rms_of_both(values, values)[0]


def rms_of_both(one: Tensor, other: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return the RMS over the last dimension of two ``(b, ...)``, on the host: the one synchronisation of a step."""
    parts = [values.detach().square().mean(dim=-1).sqrt() for values in (one, other)]
    flat = torch.cat([part.reshape(len(part), -1) for part in parts], dim=1).cpu().double().numpy()
    found = np.nan_to_num(flat, nan=1e100, posinf=1e100)
    first, second = np.split(found, [parts[0][0].numel()], axis=1)
    return first.reshape(parts[0].shape), second.reshape(parts[1].shape)


def check_step_lengths(length: FloatArray) -> None:
    """Refuse steps so short that the velocity is not a function, or not finite.

    Raises:
        FloatingPointError: if a step is too short.
    """
    if bool((length < _SHORTEST).any()):
        raise FloatingPointError("the step shrank to nothing; check the model's output, or try looser tolerances")


def avoid_short_last_step(length: FloatArray, rest: FloatArray) -> FloatArray:
    """Extend or shorten steps so that the last one is not tiny: to all of the rest, or half of it."""
    return np.where(1.02 * length >= rest, rest, np.where(2.0 * length > rest, 0.5 * rest, length))


def longest_steps(
    here: FloatArray,
    room: FloatArray,
    nodes: FloatArray,
    order: IntArray,
    size: FloatArray,
    target: float,
    guess: FloatArray,
) -> FloatArray:
    """Return the lengths of Adams-Bashforth steps at which ``|c_order| size = target``, at most ``room``.

    The integral grows like a power of the length where the angle is linear in the clock, and faster elsewhere; a few
    fixed-point steps in the logarithm are enough, as the next forward checks the error in any case.

    Args:
        here: clocks ``(B,)`` of the last nodes.
        room: signed distance ``(B,)`` to the end of the interval.
        nodes: clocks ``(B, K)`` of the past nodes, newest first.
        order: orders ``(B,)`` of the steps.
        size: norm of the divided difference of that order, in units of the tolerance, ``(B,)``.
        target: error to be reached, in units of the tolerance.
        guess: initial lengths ``(B,)``.
    """
    length, rows = guess, np.arange(len(here))
    for _ in range(6):
        error = (
            np.abs(
                divided_difference_weights(here, here + np.sign(room) * length, nodes, int(order.max()) + 1)[
                    rows, order
                ]
            )
            * size
        )
        factor = (target / np.maximum(error, 1e-300)) ** (1.0 / (order + 1))
        length = np.clip(length * np.clip(factor, 0.2, 5.0), 1e-12, np.abs(room))
    return length
