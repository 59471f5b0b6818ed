"""Coordinates in which a multistep solve relative to the data's own Gaussian is done, and their arithmetic.

What a step needs of the grid is in the dtype and on the device of the state before the step: coefficients of many steps
are moved at once, and a step reads nothing back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Whitened
from sdediff.numerics import flatten
from sdediff.samplers.base import Noise
from sdediff.samplers.clocks import FloatArray
from sdediff.samplers.multistep import MultistepUpdate, Term
from sdediff.types import Level, Split

_ENTRIES = 1 << 22
"""Number of coefficients that are moved at once."""


class RelativeUpdate(NamedTuple):
    """``keep u + sum of weights * slopes + std z``: arrays ``(C,)`` and ``(slopes, C)``, C coordinates or 1 for all."""

    keep: FloatArray
    weights: FloatArray
    std: FloatArray


class Coordinates(ABC):
    """Coordinates of a solve, at the nodes of its grid."""

    @abstractmethod
    def start(self, y: Tensor) -> Tensor:
        """Return the coordinates of the state ``y`` of the variance-preserving frame at the first node."""

    @abstractmethod
    def slope(self, split: Split, u: Tensor, step: int) -> Term:
        """Return ``du / d phi``, the slope, at the start of a step."""

    @abstractmethod
    def update(self, step: int, u: Tensor, slopes: Sequence[Term], noise: Noise) -> Tensor:
        """Return the coordinates at the end of a step."""

    @abstractmethod
    def to_frame(self, u: Tensor, step: int) -> Tensor:
        """Return the state of the frame at the end of a step."""


@dataclass(frozen=True, eq=False)
class PlainCoordinates(Coordinates):
    """The frame itself, for a model that does not know the moments of its data."""

    levels: Sequence[Level[float]]
    updates: Sequence[RelativeUpdate]

    def start(self, y: Tensor) -> Tensor:
        return y

    def slope(self, split: Split, u: Tensor, step: int) -> Term:
        level = self.levels[step]
        return Term(*split.direction(-level.sin, level.cos))

    def update(self, step: int, u: Tensor, slopes: Sequence[Term], noise: Noise) -> Tensor:
        keep, weights, std = self.updates[step]
        return MultistepUpdate(float(keep[0]), weights[:, 0].tolist(), float(std[0]))(u, slopes, noise)

    def to_frame(self, u: Tensor, step: int) -> Tensor:
        return u


class StepCoefficients(NamedTuple):
    """The coefficients of a step, ``(D,)`` each, in the dtype and on the device of the state.

    Attributes:
        rate: factor of the rotated velocity in the slope.
        linear: factor of u in the slope.
        shift: what the mean of the data adds to the slope.
        keep: factor of u in the update; ``None`` for 1.
        std: factor of the noise; ``None`` for 0.
        scale: standard deviation of the coordinates at the end of the step.
        mean: their mean there.
        weights: factors of the slopes in the update, newest first.
    """

    rate: Tensor
    linear: Tensor
    shift: Tensor
    keep: Tensor | None
    std: Tensor | None
    scale: Tensor
    mean: Tensor
    weights: Sequence[Tensor]


class WhitenedCoordinates(Coordinates):
    """Principal axes of the data's Gaussian, each in its own units; states are ``(B, D)``.

    Args:
        white: whitened coordinates.
        like: state ``(B, *shape)`` of the frame.
        levels: levels of the nodes.
        updates: updates of the steps.
    """

    def __init__(
        self, white: Whitened, like: Tensor, levels: Sequence[Level[float]], updates: Sequence[RelativeUpdate]
    ) -> None:
        self.white, self.shaped, self.updates = white, like, updates
        self.levels, self._mean = levels, white.rotate(white.mean.to(like))
        self._cos: FloatArray = np.array([[level.cos] for level in levels])
        self._sin: FloatArray = np.array([[level.sin] for level in levels])
        std = white.std.numpy()
        self._scale: FloatArray = np.hypot(self._sin, std * self._cos)  # (N + 1, D)
        self._linear: FloatArray = (std - 1.0 / std) * (self._sin * self._cos)
        self._moved: dict[int, StepCoefficients] = {}

    def start(self, y: Tensor) -> Tensor:
        return self.white.whiten(y, self.white.at(self.levels[0]))

    def slope(self, split: Split, u: Tensor, step: int) -> Term:
        level, own = self.levels[step], self._coefficients(step)
        velocity = self.white.rotate(flatten(split.mix(-level.sin, level.cos)))
        return Term(torch.addcmul(own.shift, velocity, own.rate).addcmul_(u, own.linear))

    def update(self, step: int, u: Tensor, slopes: Sequence[Term], noise: Noise) -> Tensor:
        own = self._coefficients(step)
        first, *rest = zip((slope.tensor for slope in slopes), own.weights, strict=True)
        total = torch.addcmul(u if own.keep is None else u * own.keep, *first)
        for slope, weights in rest:
            total.addcmul_(slope, weights)
        return total if own.std is None else total.addcmul_(self.white.rotate(flatten(noise(0))), own.std)

    def to_frame(self, u: Tensor, step: int) -> Tensor:
        own = self._coefficients(step)
        return self.white.rotate_back(torch.addcmul(own.mean, u, own.scale)).reshape(self.shaped.shape)

    def _coefficients(self, step: int) -> StepCoefficients:
        """Return the coefficients of a step; those of the steps after it are moved with them."""
        if step not in self._moved:
            most = max(len(update.weights) for update in self.updates)
            size = max(1, _ENTRIES // (len(self.white.std) * (7 + most)))
            steps = range(step, min(step + size, len(self.updates)))
            self._moved = dict(zip(steps, self._move(steps, most), strict=True))
        return self._moved[step]

    def _move(self, steps: range, most: int) -> Iterator[StepCoefficients]:
        """Yield the coefficients of some steps, with up to ``most`` slopes, moved as one array."""
        here, updates = slice(steps.start, steps.stop), self.updates[steps.start : steps.stop]
        rows = np.zeros((5 + most, len(steps), len(self.white.std)))
        rows[0], rows[1] = self._scale[here] / self.white.std.numpy(), self._linear[here]
        rows[2] = self._scale[steps.start + 1 : steps.stop + 1]
        for i, update in enumerate(updates):
            rows[3, i], rows[4, i] = update.keep, update.std
            rows[5 : 5 + len(update.weights), i] = update.weights
        moved = torch.from_numpy(rows).to(self.shaped)
        sin, cos = torch.from_numpy(np.stack([self._sin, self._cos])).to(moved)
        shift, mean = (sin[here] * self._mean) * moved[0], cos[steps.start + 1 : steps.stop + 1] * self._mean
        for i, update in enumerate(updates):
            rate, linear, scale, keep, std, *weights = moved[: 5 + len(update.weights), i].unbind(0)
            keeps, quiet = bool((update.keep == 1.0).all()), not update.std.any()
            own = None if keeps else keep, None if quiet else std
            yield StepCoefficients(rate, linear, shift[i], *own, scale, mean[i], weights)
