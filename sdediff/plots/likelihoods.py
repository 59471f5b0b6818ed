"""What a likelihood says of a data set: how the values are spread, and which items lie at the ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.plots.canvas import INK, PAPER, of_one_unit, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_MEAN = "#b3402a"
_ROWS, _COLUMNS = 3, 6  # of images on either side
_POINTS = 20_000  # at most


class Likelihoods(NamedTuple):
    """What is drawn.

    Attributes:
        values: ``(B,)``.
        label: what they are, with their unit.
        mean: of the values.
        standard_error: of the mean; NaN where unknown.
        small_is_likely: as bits/dim are.
    """

    values: Tensor
    label: str
    mean: float
    standard_error: float
    small_is_likely: bool

    def ranked(self) -> Tensor:
        """Indices from the most to the least likely."""
        return torch.argsort(self.values, descending=not self.small_is_likely, stable=True)


def with_images(found: Likelihoods, images: Tensor, path: str | Path, *, low: float, high: float) -> None:
    """A histogram above the most and the least likely images.

    Args:
        found: the likelihoods.
        images: their items, ``(B, C, H, W)`` with one or three channels, or ``(B, H, W)``.
        path: of the PNG.
        low: the value shown black.
        high: the value shown white.
    """
    from matplotlib.figure import Figure

    ranked = found.ranked()
    count = min(_ROWS * _COLUMNS, max(1, len(ranked) // 2))
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(10.0, 3.0 + 1.05 * rows), layout="constrained", facecolor=PAPER)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.8, 0.3 + 1.05 * rows))
    histogram(parts[0].subplots(), found)
    sides: Any = parts[1].subfigures(1, 2, wspace=0.05)
    for side, title, places in (
        (sides[0], "most likely", ranked[:count]),
        (sides[1], "least likely", ranked.flip(0)[:count]),
    ):
        _tiles(
            side, title, ((images[places] - low) / max(high - low, 1e-12)).clamp(0.0, 1.0), found.values[places], rows
        )
    save(figure, path)


def with_points(found: Likelihoods, points: Tensor, path: str | Path) -> None:
    """A histogram beside the points, coloured by their likelihood.

    Args:
        found: the likelihoods.
        points: their items, ``(B, D)``, of which two coordinates are shown; on a line, the value above each.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.4), layout="constrained", facecolor=PAPER)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    histogram(left, found)
    shown = found.ranked()[:: max(1, len(points) // _POINTS)]
    shown = shown if points.shape[1] == 1 else shown.flip(0)  # the likely ones on top
    x = points[shown].double().numpy()
    values = found.values[shown].double().numpy()
    size = min(40.0, 500.0 / math.sqrt(len(shown)))
    right.spines[["top", "right"]].set_visible(False)
    if x.shape[1] == 1:
        right.scatter(x[:, 0], values, s=size, c=INK, linewidths=0, alpha=0.7)
        right.set(xlabel="$x$", ylabel=found.label)
    else:
        ends = np.quantile(values, [0.01, 0.99])  # a stray item does not take the colours of the rest
        colours = "viridis_r" if found.small_is_likely else "viridis"
        dots = right.scatter(x[:, 0], x[:, 1], s=size, c=values, cmap=colours, vmin=ends[0], vmax=ends[1], linewidths=0)
        bar = figure.colorbar(dots, ax=right, label=found.label, extend="both", shrink=0.9, pad=0.02)
        bar.outline.set_visible(False)
        if of_one_unit(np.ptp(x[:, :2], axis=0).tolist()):
            right.set_aspect("equal", adjustable="datalim")
        right.set(xlabel="$x_1$", ylabel="$x_2$")
    save(figure, path)


def alone(found: Likelihoods, path: str | Path) -> None:
    """The histogram alone, for items that cannot be shown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), layout="constrained", facecolor=PAPER)
    histogram(figure.subplots(), found)
    save(figure, path)


def histogram(axes: Axes, found: Likelihoods) -> None:
    """How the values are spread, with their mean."""
    from matplotlib.ticker import MaxNLocator

    numbers = found.values.double().numpy()
    bins = min(60, max(8, round(2.0 * math.sqrt(len(numbers)))))
    axes.hist(numbers, bins=bins, color=INK, alpha=0.85, rwidth=0.92)
    known = not math.isnan(found.standard_error)
    words = f"mean {found.mean:.4g}" + (f" ± {found.standard_error:.2g}" if known else "")
    if known:
        ends = (found.mean - 1.96 * found.standard_error, found.mean + 1.96 * found.standard_error)
        axes.axvspan(*ends, color=_MEAN, alpha=0.2, linewidth=0, zorder=0)
    axes.axvline(found.mean, color=_MEAN, linewidth=1.5)
    axes.set_title(words, loc="left", fontsize=11, color=_MEAN)  # not in the axes, where it may lie on the bars
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=found.label, ylabel=f"items, of {len(numbers):,}")


def _tiles(side: SubFigure, title: str, images: Tensor, values: Tensor, rows: int) -> None:
    """Images in rows, each with its value below."""
    side.suptitle(title, fontsize=11)
    grid: Any = side.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, value in zip(grid.flat, images, values.tolist(), strict=False):
        pixels = image if image.ndim == 2 else image.permute(1, 2, 0).squeeze(-1)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_title(f"{value:.3g}", fontsize=8, y=-0.24, color="#505050")
