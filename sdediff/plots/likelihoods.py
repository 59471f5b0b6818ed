"""Plots of likelihoods: their histogram, and the most and the least likely items."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.extras import extra
from sdediff.plots.canvas import INK, new_figure, save_figure, share_a_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_MEAN = "#b3402a"
_ROWS, _COLUMNS = 3, 6  # of images on either side
_MOST_POINTS = 20_000


class Likelihoods(NamedTuple):
    """Likelihoods of items and their mean.

    Attributes:
        values: values of the items, ``(B,)``.
        label: name of the values, with their unit.
        mean: mean of the values.
        standard_error: standard error of the mean; NaN if unknown.
        small_is_likely: whether small values are likely, as in bits/dim.
    """

    values: Tensor
    label: str
    mean: float
    standard_error: float
    small_is_likely: bool

    def ranked(self) -> Tensor:
        """Return the indices from the most to the least likely."""
        return torch.argsort(self.values, descending=not self.small_is_likely, stable=True)


def with_images(likelihoods: Likelihoods, images: Tensor, path: str | Path, *, low: float, high: float) -> None:
    """Draw a histogram above the most and the least likely images.

    Args:
        likelihoods: likelihoods of the images.
        images: ``(B, C, H, W)`` with one or three channels, or ``(B, H, W)``.
        path: path of the PNG.
        low: the value shown black.
        high: the value shown white.
    """
    ranked = likelihoods.ranked()
    count = min(_ROWS * _COLUMNS, max(1, len(ranked) // 2))
    rows = -(-count // _COLUMNS)
    figure = new_figure(10.0, 3.0 + 1.05 * rows)
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.8, 0.3 + 1.05 * rows))
    _draw_histogram(parts[0].subplots(), likelihoods)
    sides: Any = parts[1].subfigures(1, 2, wspace=0.05)
    for side, title, places in (
        (sides[0], "most likely", ranked[:count]),
        (sides[1], "least likely", ranked.flip(0)[:count]),
    ):
        shades = ((images[places] - low) / max(high - low, 1e-12)).clamp(0.0, 1.0)
        _draw_tiles(side, title, shades, likelihoods.values[places], rows)
    save_figure(figure, path)


def with_points(likelihoods: Likelihoods, points: Tensor, path: str | Path) -> None:
    """Draw a histogram beside the points, coloured by their likelihood.

    Args:
        likelihoods: likelihoods of the points.
        points: ``(B, D)``, of which two coordinates are shown; on a line, the likelihood above each point.
        path: path of the PNG.
    """
    figure = new_figure(11.0, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    _draw_histogram(left, likelihoods)
    shown = likelihoods.ranked()[:: max(1, len(points) // _MOST_POINTS)]
    shown = shown if points.shape[1] == 1 else shown.flip(0)  # the likely ones on top
    x = points[shown].double().numpy()
    values = likelihoods.values[shown].double().numpy()
    size = min(40.0, 500.0 / math.sqrt(len(shown)))
    right.spines[["top", "right"]].set_visible(False)
    if x.shape[1] == 1:
        right.scatter(x[:, 0], values, s=size, c=INK, linewidths=0, alpha=0.7)
        right.set(xlabel="$x$", ylabel=likelihoods.label)
    else:
        low, high = np.quantile(values, [0.01, 0.99])  # a stray item does not take the colours of the rest
        colours = "viridis_r" if likelihoods.small_is_likely else "viridis"
        dots = right.scatter(x[:, 0], x[:, 1], s=size, c=values, cmap=colours, vmin=low, vmax=high, linewidths=0)
        bar = figure.colorbar(dots, ax=right, label=likelihoods.label, extend="both", shrink=0.9, pad=0.02)
        bar.outline.set_visible(False)
        if share_a_scale(np.ptp(x[:, :2], axis=0).tolist()):
            right.set_aspect("equal", adjustable="datalim")
        right.set(xlabel="$x_1$", ylabel="$x_2$")
    save_figure(figure, path)


def histogram_only(likelihoods: Likelihoods, path: str | Path) -> None:
    """Draw the histogram alone, for items that cannot be shown."""
    figure = new_figure(8.0, 3.6)
    _draw_histogram(figure.subplots(), likelihoods)
    save_figure(figure, path)


def _draw_histogram(axes: Axes, likelihoods: Likelihoods) -> None:
    """Draw the histogram of the values, with their mean and its 95 % interval."""
    with extra("plots"):
        from matplotlib.ticker import MaxNLocator

    numbers, mean, error = likelihoods.values.double().numpy(), likelihoods.mean, likelihoods.standard_error
    bins = min(60, max(8, round(2.0 * math.sqrt(len(numbers)))))
    axes.hist(numbers, bins=bins, color=INK, alpha=0.85, rwidth=0.92)
    title = f"mean {mean:.4g}"
    if not math.isnan(error):
        title += f" ± {error:.2g}"
        axes.axvspan(mean - 1.96 * error, mean + 1.96 * error, color=_MEAN, alpha=0.2, linewidth=0, zorder=0)
    axes.axvline(mean, color=_MEAN, linewidth=1.5)
    axes.set_title(title, loc="left", fontsize=11, color=_MEAN)  # not in the axes, where it may lie on the bars
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=likelihoods.label, ylabel=f"items, of {len(numbers):,}")


def _draw_tiles(side: SubFigure, title: str, images: Tensor, values: Tensor, rows: int) -> None:
    """Draw images in rows, each with its value below."""
    side.suptitle(title, fontsize=11)
    grid: Any = side.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, value in zip(grid.flat, images, values.tolist(), strict=False):
        pixels = image if image.ndim == 2 else image.permute(1, 2, 0).squeeze(-1)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_title(f"{value:.3g}", fontsize=8, y=-0.24, color="#505050")
