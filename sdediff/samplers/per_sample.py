r"""What adaptive samplers share: tolerances, and the way from end to end with every sample at its own pace.

Every sample has its own nodes and step: a call of the network holds all samples that are under way, each at its own
level, and who has arrived leaves. So a solve costs as many calls as its slowest sample needs, which is no more than in
lock-step, and a sample's result does not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.samplers.base import Crossing, check_tolerances
from sdediff.samplers.clocks import Array, Counts, clock_of, tan_of
from sdediff.samplers.interpolation import newton_integrals
from sdediff.sde import SDE
from sdediff.types import Level

Flags = NDArray[np.bool_]
F = TypeVar("F", bound=tuple[Any, ...])
_SHORTEST = 1e-10


@dataclass(frozen=True)
class Paced(Crossing):
    """A method that chooses the steps of each sample.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: the most forwards of a solve.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    cap: int = field(default=10_000, kw_only=True)

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.cap)

    def permitted(self, size: Array) -> Array:
        """The error that a sample of a given RMS may have."""
        return self.atol + self.rtol * size


def those(flight: F, which: Flags) -> F:
    """Some of the samples under way, of a named tuple of tensors and arrays with one row a sample."""
    return type(flight)(
        *(part[torch.from_numpy(which).to(part.device)] if isinstance(part, Tensor) else part[which] for part in flight)
    )


def clock_at(level: Level[float]) -> float:
    """The clock at a level."""
    return float(clock_of(np.exp(-level.half_log_snr)))


def levels_at(sde: SDE, clocks: Array, last: Flags, stop: Level[float]) -> Level[Tensor]:
    """The levels at clocks, one a sample; that of the end exactly."""
    found, there = sde.level_at(torch.from_numpy(-np.log(tan_of(clocks)))), torch.from_numpy(last)
    return Level(*(torch.where(there, exact, field) for exact, field in zip(stop, found, strict=True)))


def rms(values: Tensor) -> Array:
    """RMS over the last dimension, on the host: the one synchronisation of a step."""
    found: Array = values.detach().square().mean(dim=-1).sqrt().cpu().double().numpy()
    return np.nan_to_num(found, nan=1e100, posinf=1e100)


def check_lengths(length: Array) -> None:
    """Refuse steps so short that the velocity cannot be a function, or not a finite one.

    Raises:
        FloatingPointError: saying so.
    """
    if bool((length < _SHORTEST).any()):
        raise FloatingPointError("the step shrank to nothing; check the model's output, or try looser tolerances")


def without_sliver(length: Array, rest: Array) -> Array:
    """Steps that leave no sliver for the last one: all of the rest, or half of it."""
    return np.where(1.02 * length >= rest, rest, np.where(2.0 * length > rest, 0.5 * rest, length))


def reach(here: Array, room: Array, nodes: Array, order: Counts, size: Array, aim: float, guess: Array) -> Array:
    """How far an Adams-Bashforth step may go: the length at which ``|c_order| size = aim``, at most ``room``.

    The integral grows like a power of the length where the angle is linear in the clock, and faster elsewhere; a few
    fixed-point steps in the logarithm find what the next forward will check in any case.

    Args:
        here: clocks ``(B,)`` of the last nodes.
        room: signed distance ``(B,)`` to the end of the interval.
        nodes: clocks ``(B, K)`` of the past nodes, newest first.
        order: the order of each, ``(B,)``.
        size: norm of the divided difference of that order, in units of the tolerance, ``(B,)``.
        aim: the error wanted.
        guess: a length to start from, ``(B,)``.
    """
    length, rows = guess, np.arange(len(here))
    for _ in range(6):
        error = (
            np.abs(newton_integrals(here, here + np.sign(room) * length, nodes, int(order.max()) + 1)[rows, order])
            * size
        )
        factor = (aim / np.maximum(error, 1e-300)) ** (1.0 / (order + 1))
        length = np.clip(length * np.clip(factor, 0.2, 5.0), 1e-12, np.abs(room))
    return length
