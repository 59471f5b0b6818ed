"""Warnings of odd data before training, with the remedy.

A network works on values of about unit size, and a density exists for continuous values: columns in other units,
constant columns, columns of few distinct values and levels stored as floats train without an error and give meaningless
numbers. They are not refused. The library warns, with :class:`DataWarning`; the command line prints the same lines.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sdediff.data.levels import LEVEL_LIMIT
from sdediff.data.units import has_units
from sdediff.numerics import wide
from sdediff.types import DataInfo

LARGEST, SMALLEST = 10.0, 0.1
"""Bounds of unit size: of the magnitudes of means and deviations from above, of deviations from below."""

FEW = 256
"""Number of distinct values up to which a column of at least four times as many items is not continuous."""

HEAVY = 15.0
"""Kurtosis of a column with heavy tails: normal columns have 3, exponential ones 9."""

_EXAMINED, _FEWEST, _LISTED = 1 << 20, 8, 3  # most entries examined; fewest items; most columns in a message


class DataWarning(UserWarning):
    """Warning of data that can be used but are odd; the message names the remedy."""


def warn(text: str) -> None:
    """Warn of data at the line of the caller outside of the library."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "sdediff":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, DataWarning, stacklevel=depth + 1)


def warn_of_levels(x: Tensor, info: DataInfo | None) -> None:
    """Warn where floats for a model of integer data are the levels themselves, not the model's values for them."""
    if info is not None and are_levels(x, info):
        warn(levels_message(info))


def are_levels(x: Tensor, info: DataInfo) -> bool:
    """Return whether floats are whole numbers ``0 .. levels - 1`` that are not all values of the model's levels."""
    if info.levels is None or not x.is_floating_point() or x.numel() == 0:
        return False
    if not bool(((x == x.round()) & (x >= 0) & (x < info.levels)).all()):
        return False
    position = (wide(x) - info.low) * (info.levels - 1) / (info.high - info.low)
    off = (position - position.round()).abs() > 1e-3
    return bool((x > info.high).any() or (off.any() and (x != x.flatten()[0]).any()))


def levels_message(info: DataInfo) -> str:
    """Return the message for floats that are levels."""
    top = (info.levels or 1) - 1
    return (
        f"these floats are the levels 0 .. {top} of {info.name or 'the data'}, not the model's values, which lie on "
        f"[{info.low:g}, {info.high:g}]: give integers, or sdediff.data.to_values(x.long(), model.data)"
    )


def listed(names: Iterable[str]) -> str:
    """Return the first few of several names, separated by commas."""
    first = list(names)
    return ", ".join(first[:_LISTED]) + ", ..." * (len(first) > _LISTED)


def remarks(x: Tensor, info: DataInfo | None = None, names: Sequence[str] = ()) -> list[str]:
    """Return a line for each oddity of continuous data ``(n, *shape)``, each with its remedy.

    A column is an entry of rows ``(D,)``, else a channel; ``names`` are those of columns. Units are ignored where
    ``info`` has a shift or scale.
    """
    x = x[: max(_FEWEST, _EXAMINED * len(x) // max(1, x.numel()))]
    if len(x) < _FEWEST:
        return []
    if (levels := _count_levels(x.flatten())) is not None:
        return [
            f"the floats lie on {levels:,} evenly spaced values from {float(x.min()):g} to {float(x.max()):g}, as "
            f"levels do: stored as integers 0 .. {levels - 1} they are dequantised and counted in bits/dim"
        ]
    columns = x.movedim(1, -1).flatten(0, -2).double()
    counts = 1 + (columns.sort(dim=0).values.diff(dim=0) != 0).sum(dim=0)
    mean, std = columns.mean(dim=0), columns.std(dim=0)
    constant, few = counts == 1, (counts > 1) & (counts <= min(FEW, len(columns) // 4))
    spread, whole = columns.amax(dim=0) - columns.amin(dim=0), (columns == columns.round()).all(dim=0)
    numbering = whole & (counts == len(columns)) & (spread < 2 * len(columns)) & (x.ndim == 2)
    units = ((mean.abs() > LARGEST) | (std > LARGEST) | (std < SMALLEST)) & ~constant & ~few & ~numbering
    if info is not None and has_units(info):
        units = torch.zeros_like(units)
    z = (columns - mean) / std
    heavy = (z.pow(4).mean(dim=0) > HEAVY) & ~constant & ~few & (x.ndim == 2)
    what = "column" if x.ndim == 2 else "channel"
    inside = "leave data.standardise on, or " if x.ndim == 2 else ""

    def line(found: Tensor, does: str, detail: Callable[[int], str], remedy: str) -> list[str]:
        places = [int(i) for i in found.nonzero()]
        named = listed(f"{names[i] if names else i} ({detail(i)})" for i in places)
        return [f"{len(places)} of {len(found)} {what}s {does}: {named}; {remedy}"] * bool(places)

    return [
        *line(
            constant,
            "hold one value only",
            lambda i: f"{mean[i]:g}",
            "a density has no bound there: leave them out",
        ),
        *line(
            few,
            "take few values",
            lambda i: f"{counts[i]} values",
            "a density has no bound there: make them a condition, store levels as integers, or spread the values by "
            "noise as wide as their distance",
        ),
        *line(
            numbering,
            "number the rows",
            lambda i: f"{columns[:, i].min():g} to {columns[:, i].max():g}",
            "they say where a row stood, not what it is: leave them out",
        ),
        *line(
            heavy,
            "have heavy tails",
            lambda i: f"kurtosis {z[:, i].pow(4).mean():.3g}, largest {z[:, i].abs().max():.3g} deviations off",
            "train on the logarithm of those above 0, on asinh of others",
        ),
        *line(
            units,
            "are far from unit size",
            lambda i: f"mean {mean[i]:.3g}, deviation {std[i]:.3g}",
            f"{inside}train on (x - mean) / deviation of each, and keep both: samples go back by them, and the "
            "log-density in your units is that of the model less the sum of log(deviation)",
        ),
    ]


def _count_levels(x: Tensor) -> int | None:
    """Return the number of levels of floats ``(n,)`` on an even grid of repeated values; ``None`` for others."""
    values = np.unique(x.numpy()).astype(np.float64)
    if len(values) < 2 or len(x) < 4 * len(values):
        return None
    position = (values - values[0]) / np.diff(values).min()
    even = bool((np.abs(position - position.round()) < 1e-2).all()) and float(position[-1]) < LEVEL_LIMIT
    return 1 + round(float(position[-1])) if even else None
