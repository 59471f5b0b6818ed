"""Coordinates in which a multistep solve relative to the data's own Gaussian is done, and their arithmetic.

What a step needs of the grid is in the dtype and on the device of the state before the step: coefficients of many steps
are moved at once, and a step reads nothing back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Whitened
from sdediff.numerics import combine, flatten
from sdediff.samplers.base import Noise
from sdediff.samplers.clocks import FloatArray
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
    def slope(self, split: Split, u: Tensor, step: int) -> Tensor:
        """Return ``du / d phi``, the slope, at the start of a step."""

    @abstractmethod
    def update(self, step: int, u: Tensor, slopes: Sequence[Tensor], noise: Noise) -> Tensor:
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

    def slope(self, split: Split, u: Tensor, step: int) -> Tensor:
        level = self.levels[step]
        return split.mix(-level.sin, level.cos)

    def update(self, step: int, u: Tensor, slopes: Sequence[Tensor], noise: Noise) -> Tensor:
        keep, weights, std = self.updates[step]
        terms = [(float(keep[0]), u), *zip(weights[:, 0].tolist(), slopes, strict=True)]
        return combine([*terms, (float(std[0]), noise(0))] if std.any() else terms)

    def to_frame(self, u: Tensor, step: int) -> Tensor:
        return u


class StepCoefficients(NamedTuple):
    """The coefficients of a step, ``(D,)`` each, in the dtype and on the device of the state.

    Attributes:
        rate: factor of the rotated velocity in the slope.
        linear: factor of u in the slope.
        shift: what the mean of the data adds to the slope.
        keep: factor of u in the update.
        std: factor of the noise.
        scale: standard deviation of the coordinates at the end of the step.
        mean: their mean there.
        weights: factors of the slopes in the update, newest first.
    """

    rate: Tensor
    linear: Tensor
    shift: Tensor
    keep: Tensor
    std: Tensor
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
        cos, sin = (
            np.array([[part] for part in parts]) for parts in zip(*((at.cos, at.sin) for at in levels), strict=True)
        )
        std = white.std.numpy()
        self._scale: FloatArray = np.hypot(sin, std * cos)  # (N + 1, D)
        self._linear: FloatArray = (std - 1.0 / std) * (sin * cos)
        self._moved: dict[int, StepCoefficients] = {}

    def start(self, y: Tensor) -> Tensor:
        return self.white.whiten(y, self.white.at(self.levels[0]))

    def slope(self, split: Split, u: Tensor, step: int) -> Tensor:
        level, own = self.levels[step], self._coefficients(step)
        velocity = self.white.rotate(flatten(split.mix(-level.sin, level.cos)))
        return torch.addcmul(own.shift, velocity, own.rate).addcmul_(u, own.linear)

    def update(self, step: int, u: Tensor, slopes: Sequence[Tensor], noise: Noise) -> Tensor:
        update, own = self.updates[step], self._coefficients(step)
        first, *rest = zip(slopes, own.weights, strict=True)
        total = torch.addcmul(u if (update.keep == 1.0).all() else u * own.keep, *first)
        for slope, weights in rest:
            total = total.addcmul_(slope, weights)
        return total.addcmul_(self.white.rotate(flatten(noise(0))), own.std) if update.std.any() else total

    def to_frame(self, u: Tensor, step: int) -> Tensor:
        own = self._coefficients(step)
        return self.white.rotate_back(torch.addcmul(own.mean, u, own.scale)).reshape(self.shaped.shape)

    def _coefficients(self, step: int) -> StepCoefficients:
        """Return the coefficients of a step; those of the steps after it are moved with them."""
        if step not in self._moved:
            size = max(1, _ENTRIES // (len(self.white.std) * max(7 + len(update.weights) for update in self.updates)))
            steps = range(step, min(step + size, len(self.updates)))
            rows = [self._rows(i) for i in steps]
            moved = torch.from_numpy(np.concatenate(rows)).to(self.shaped)
            parts = torch.split(moved, [len(part) for part in rows])
            self._moved = {i: self._with_mean(i, part) for i, part in zip(steps, parts, strict=True)}
        return self._moved[step]

    def _rows(self, step: int) -> FloatArray:
        """Return rate, linear, scale, keep, std and weights of a step, ``(5 + slopes, D)``."""
        rate, (keep, weights, noise) = self._scale[step] / self.white.std.numpy(), self.updates[step]
        return np.concatenate([[rate, self._linear[step], self._scale[step + 1], keep, noise], weights])

    def _with_mean(self, step: int, rows: Tensor) -> StepCoefficients:
        """Return the rows of a step with the two that the mean of the data adds."""
        rate, linear, scale, keep, std, *weights = rows.unbind(0)
        shift, mean = self.levels[step].sin * self._mean * rate, self.levels[step + 1].cos * self._mean
        return StepCoefficients(rate, linear, shift, keep, std, scale, mean, weights)
