"""``Quality``: the figures of samples beside data, as numbers, as JSON values and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sdediff.quality.measure import Figure
from sdediff.types import brief


@dataclass(frozen=True)
class Quality:
    """Measures of how like the data samples are.

    Attributes:
        figures: the figures by name, each with its interval and the value of perfect samples.
        meanings: what each figure means, by name.
        features: name of the features in which samples and data are compared.
        dim: number of features.
        samples: number of samples.
        data: number of items of the data.
        resamples: number of pairs of halves behind an interval.
        confidence: confidence of the intervals.
        remarks: what to know of these figures, each in a line.

    >>> x, y = (sdediff.analytic.Gaussian([0.0, 0.0], 1.0).sample(200, seed=seed) for seed in (0, 1))
    >>> quality = sdediff.evaluate(x, y, resamples=10, measures=["frechet"])
    >>> quality.figures["frechet"].low
    0.0
    """

    figures: dict[str, Figure]
    meanings: dict[str, str]
    features: str
    dim: int
    samples: int
    data: int
    resamples: int
    confidence: float
    remarks: tuple[str, ...]

    __repr__ = brief

    def to_dict(self) -> dict[str, Any]:
        """Return names and numbers, as for JSON."""
        return {**vars(self), "figures": {name: figure.to_dict() for name, figure in self.figures.items()}}

    def __str__(self) -> str:
        """Return a table, and a line for each figure on what it means."""
        rows = [["", "value", "estimate", f"{100.0 * self.confidence:g} % interval", "perfect", "samples", "data"]]
        for name, figure in self.figures.items():
            ends = "-" if math.isnan(figure.low) else f"{figure.low:.4g} to {figure.high:.4g}"
            numbers = (f"{number:.4g}" for number in (figure.value, figure.estimate))
            rows.append([name, *numbers, ends, f"{figure.perfect:.4g}", f"{figure.samples:,}", f"{figure.data:,}"])
        width = max(map(len, self.meanings))
        lines = [f"{name:{width}s}  {words}" for name, words in self.meanings.items()]
        head = f"{self.samples:,} samples beside {self.data:,} items, {self.dim} features: {self.features}"
        return "\n".join([head, "", *_aligned(rows), "", *lines])


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows as lines, names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:{'>' if index else '<'}{width}s}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
