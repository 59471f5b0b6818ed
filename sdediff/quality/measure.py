"""What a measure is: named figures of samples and data, both as features ``(n, D)``, with intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdediff.quality.resampling import Resampling, Statistic, Stream, generator, random_rows


class Figure(NamedTuple):
    """A figure of samples beside data.

    Attributes:
        value: the figure as defined, of all items given.
        estimate: the figure without the part of its bias that falls as 1/n; ``value`` where there is none.
        low: lower end of the confidence interval; NaN without one.
        high: upper end of the confidence interval.
        perfect: the figure that samples of the data's own law would have.
        samples: number of samples that it is of.
        data: number of items of the data.
    """

    value: float
    estimate: float
    low: float
    high: float
    perfect: float
    samples: int
    data: int

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return self._asdict()


class Measure(ABC):
    """A measure: a frozen dataclass of its settings."""

    meanings: ClassVar[Mapping[str, str]]
    """Names of the figures, and what each means in a line."""

    @abstractmethod
    def figures(self, x: Tensor, y: Tensor, resampling: Resampling) -> dict[str, Figure]:
        """Return the figures by name.

        Args:
            x: features of the samples, float64 ``(n, D)`` on the CPU.
            y: features of the data, float64 ``(m, D)`` on the CPU.
            resampling: settings of the intervals.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class HalfSampled(Measure):
    """A measure whose intervals come from half samples.

    Attributes:
        most: largest number of samples, and of data, that are taken, a random part of more.
    """

    most: int = 50_000

    ends: ClassVar[tuple[float, float]]
    """Smallest and largest value that the figures can have."""
    extrapolated: ClassVar[bool]
    """Whether the statistic's bias falls as 1/n, and is taken out of the estimate."""
    power: ClassVar[float] = 1.0
    """The figure is the statistic to this power; the statistic is what has a spread and a bias."""

    @abstractmethod
    def statistic(self, x: Tensor, y: Tensor, seed: int) -> Statistic:
        """Return the statistic, one number for each of the figures, as a function of rows of the features."""

    @abstractmethod
    def perfect(self, y: Tensor, seed: int) -> tuple[float, ...]:
        """Return the figures that samples of the data's own law would have."""

    def figures(self, x: Tensor, y: Tensor, resampling: Resampling) -> dict[str, Figure]:
        """Return the figures by name, see :class:`Measure`."""
        x, y = (
            items[random_rows(len(items), self.most, generator(resampling.seed, Stream.CHOICE))] for items in (x, y)
        )
        statistic = self.statistic(x, y, resampling.seed)
        whole = statistic(torch.arange(len(x)), torch.arange(len(y)))
        halves = resampling.halves(statistic, len(x), len(y)).reshape(-1, len(whole))
        perfect = self.perfect(y, resampling.seed)
        found = {}
        for name, value, parts, best in zip(self.meanings, whole, halves.T, perfect, strict=True):
            interval = resampling.interval(value, parts, extrapolate=self.extrapolated)
            value, estimate, low, high = (self._finish(number) for number in (value, *interval))
            found[name] = Figure(value, estimate, low, high, best, len(x), len(y))
        return found

    def _finish(self, statistic: float) -> float:
        """Return the figure of a statistic; NaN stays NaN."""
        low, high = self.ends
        limited = low if statistic < low else high if statistic > high else statistic
        return float(limited**self.power)
