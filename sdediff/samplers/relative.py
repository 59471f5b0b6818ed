r"""Multistep against the data's own Gaussian, with interpolation by a kernel: the default solver of the ODE.

The equation is solved in the coordinates u of :class:`~sdediff.gaussian.Whitened`, each in units of the standard
deviation its Gaussian would have and on its own angle phi. Each is a variance-preserving process of its own, whose
reverse family is

    u' = c u + (1 + eta^2) int (cos phi_s / cos phi')^(eta^2) (du / d phi) d phi + sqrt(1 - c^2) z,
    c = (cos phi / cos phi')^(eta^2),

the probability-flow ODE for ``eta = 0``, the reverse SDE for ``eta = 1`` (see :mod:`sdediff.samplers.exponential`). For
Gaussian data the slope is zero and one step of any length exact, where every other form holds something that changes;
for other data what is left to integrate is what makes them so. The last step to the data adds no noise: it follows the
probability flow, so that with noise, too, the law of Gaussian data is kept down to them. Without moments the slope is
the plain velocity, and the last step of a method with noise returns the denoised state, narrower than the data. The
weights of the last slopes come from :mod:`sdediff.samplers.interpolation`. Networks whose errors are magnified in the
velocity (those that predict epsilon, the score or the sample) are solved for with the plain velocity, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.gaussian import Moments, Whitened
from sdediff.numerics import combine, flatten
from sdediff.parametrization import Prediction
from sdediff.samplers.base import Draw, StepSampler
from sdediff.samplers.clocks import Array
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.interpolation import cos_phi, kernel_weights
from sdediff.samplers.multistep import adams
from sdediff.types import Level, Split

_LAST, _NEAR, _SMALL = 0.15, 0.005, 0.03
"""The share of the steps that are the last ones, the angle below which a solve ends on the data, and the part of the
largest error that any of the last steps may have."""


class Update(NamedTuple):
    """``keep u + sum of weights * slopes + std z``: arrays ``(C,)`` and ``(slopes, C)``, C coordinates or 1 for all."""

    keep: Array
    weights: Array
    std: Array


class Coordinates(ABC):
    """Where the equation is solved; ``variances`` ``(1,)`` or ``(D,)`` are the data's where they are known."""

    variances: Array | None

    @abstractmethod
    def enter(self, y: Tensor, level: Level[float]) -> Tensor:
        """From the variance-preserving frame."""

    @abstractmethod
    def leave(self, u: Tensor, level: Level[float]) -> Tensor:
        """Back to it."""

    @abstractmethod
    def slope(self, split: Split, u: Tensor, level: Level[float]) -> Tensor:
        """``du / d phi``."""

    @abstractmethod
    def advance(self, update: Update, u: Tensor, slopes: Sequence[Tensor], noise: Draw) -> Tensor:
        """The state after a step."""


class Plain(Coordinates):
    """The frame itself, for a model that does not know its data's moments."""

    variances = None

    def enter(self, y: Tensor, level: Level[float]) -> Tensor:
        return y

    def leave(self, u: Tensor, level: Level[float]) -> Tensor:
        return u

    def slope(self, split: Split, u: Tensor, level: Level[float]) -> Tensor:
        return split.mix(-level.sin, level.cos)

    def advance(self, update: Update, u: Tensor, slopes: Sequence[Tensor], noise: Draw) -> Tensor:
        terms = [(float(update.keep[0]), u), *zip(update.weights[:, 0].tolist(), slopes, strict=True)]
        return combine([*terms, (float(update.std[0]), noise(0))] if update.std.any() else terms)


class Own(Coordinates):
    """The principal axes of the data's Gaussian, each in its own units; states there are ``(B, D)``."""

    def __init__(self, moments: Moments, like: Tensor) -> None:
        self.white, self.shaped = Whitened(moments), like
        self.variances = self.white.std.square().numpy()

    def enter(self, y: Tensor, level: Level[float]) -> Tensor:
        return self.white.whiten(y, self.white.at(level))

    def leave(self, u: Tensor, level: Level[float]) -> Tensor:
        return self.white.unwhiten(u, self.white.at(level), self.shaped)

    def slope(self, split: Split, u: Tensor, level: Level[float]) -> Tensor:
        return self.white.slope(split, u, self.white.at(level))

    def advance(self, update: Update, u: Tensor, slopes: Sequence[Tensor], noise: Draw) -> Tensor:
        keep, weights, std = (torch.from_numpy(array).to(u) for array in update)
        total = u * keep
        for row, slope in zip(weights, slopes, strict=True):
            total = total.addcmul_(slope, row)
        return total.addcmul_(self.white.rotate(flatten(noise(0))), std) if update.std.any() else total


class Memory(NamedTuple):
    """What a step hands to the next.

    Attributes:
        plan: the updates of the whole grid.
        done: how many of them are.
        coordinates: where the equation is solved.
        u: the state there.
        slopes: the last ones, newest first.
    """

    plan: Sequence[Update]
    done: int
    coordinates: Coordinates
    u: Tensor
    slopes: list[Tensor]


@dataclass(frozen=True)
class Relative(StepSampler):
    """Multistep on the velocity relative to the data's own Gaussian: one forward a step.

    Args:
        memory: number of values that make a step, 2 to 6; the order, however they are used.
        correct_from: number of steps from which one of the values corrects the step before, instead of prolonging the
            memory (Zhao et al. 2023); more accurate where steps are short, too bold where they are long. ``None`` for
            never.
        eta: 0 for the ODE, 1 for the reverse SDE, between for the family between.

    Raises:
        ValueError: for another memory, or for noise and a corrector, which would undo it.
    """

    memory: int = 5
    correct_from: int | None = 25
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.memory <= 6:
            raise ValueError(f"memory must be 2 to 6, not {self.memory}")
        check_eta(self.eta)
        if self.eta > 0.0 and self.correct_from is not None:
            raise ValueError("a corrector would undo the noise of the step it redoes: give it eta = 0")

    @property
    def order(self) -> int:
        return 2 if self.stochastic else self.memory

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def rise(self, steps: int) -> int:
        """Return the order of the predictor; see :meth:`~sdediff.samplers.base.Sampler.rise`."""
        return self.order - int(self.corrects(steps))

    def corrects(self, steps: int) -> bool:
        """Whether a solve of so many steps has a corrector."""
        return self.correct_from is not None and steps >= self.correct_from

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> Memory:
        """The updates of every step of the grid, and the state in its coordinates."""
        # what a prediction magnifies, the units of the coordinates of small variance would magnify again
        moments = frame.moments if frame.prediction.steady else None
        coordinates = Plain() if moments is None else Own(moments, y)
        variances = None if coordinates.variances is None else tuple(coordinates.variances.tolist())
        plan = _plan(self, tuple(levels), variances, frame.prediction)
        return Memory(plan, 0, coordinates, coordinates.enter(y, levels[0]), [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Memory
    ) -> tuple[Tensor, Memory]:
        """One forward."""
        update, coordinates = carry.plan[carry.done], carry.coordinates
        slopes = [coordinates.slope(denoise(y, here), carry.u, here), *carry.slopes][: len(update.weights)]
        u = coordinates.advance(update, carry.u, slopes, noise)
        return coordinates.leave(u, there), carry._replace(done=carry.done + 1, u=u, slopes=slopes)


@lru_cache(maxsize=64)
def _plan(
    method: Relative, levels: tuple[Level[float], ...], variances: tuple[float, ...] | None, prediction: Prediction
) -> list[Update]:
    """The updates of every step of a grid, computed once for all solves on it."""
    roots, power = np.sqrt(np.array(variances or (1.0,))), method.eta**2
    correct = method.corrects(len(levels) - 1)

    def keep(here: Level[float], there: Level[float]) -> Array:
        ratio: Array = cos_phi(here.angle, roots)[0] / cos_phi(there.angle, roots)[0]
        if lands(there):
            return ratio if variances is None else np.ones_like(ratio)
        return ratio**power

    def weigh(known: Sequence[Level[float]], here: Level[float], there: Level[float]) -> Array:
        if lands(there):
            return np.array([[-here.sin]]) if variances is None else -np.arctan2(here.sin, roots * here.cos)[None]
        angles = np.array([level.angle for level in known])
        return (1.0 + power) * kernel_weights(angles, here.angle, there.angle, roots, power, prediction.gain)

    def lands(there: Level[float]) -> bool:
        """Whether a noisy method has arrived at the data: its last step adds no noise.

        Where the data's Gaussian is known the step follows the probability flow, ``u' = u - phi slope``, which keeps
        the law; elsewhere it denoises, ``u' = cos phi u - sin phi slope``, which narrows it.
        """
        return power > 0.0 and there.sin == 0.0

    def std(here: Level[float], there: Level[float]) -> Array:
        kept = keep(here, there)
        return np.zeros_like(kept) if power == 0.0 or lands(there) else np.sqrt((1.0 - kept) * (1.0 + kept))

    memory = values_of_steps([level.angle for level in levels], method.memory - int(correct), correct)
    rows = adams(levels, memory, correct, weigh, keep)
    steps = zip(rows, pairwise(levels), strict=True)
    return [Update(keep(here, there), row, std(here, there)) for row, (here, there) in steps]


def values_of_steps(angles: Sequence[float], memory: int, correct: bool) -> list[int]:
    """Return the number of values that each step uses: ``memory``, but fewer in the last steps of a solve to the data.

    On concentrated data the velocity turns sharply where it is decided which of them a state goes to, and values from
    before are worse than none. The last step, which is the shortest, takes one alone; those of the last ``_LAST`` take
    two where there is a corrector, which is bolder than a predictor; each as many more as it needs for its error, by
    the distances of its nodes, to be below ``_SMALL`` times that of the longest step.
    """
    steps, theta = len(angles) - 1, np.array(angles)

    def error(i: int, count: int) -> float:
        return float(np.abs(theta[i + 1] - theta[i]) * np.abs(theta[i + 1] - theta[i + 1 - count : i + 1]).prod())

    values = [memory] * steps
    if theta[-1] < min(_NEAR, theta[0]):
        allowed = _SMALL * max((error(i, memory) for i in range(memory - 1, steps)), default=0.0)
        for i in range(steps - max(1, round(_LAST * steps) if correct else 1), steps):
            least = 1 if i == steps - 1 else 2
            values[i] = next(
                (count for count in range(least, memory) if error(i, min(count, i + 1)) <= allowed), memory
            )
    return [max(values[i:]) for i in range(steps)]  # what a step has dropped is gone
