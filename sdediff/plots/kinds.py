"""Pictures of items that are no images: series as lines, volumes as slices, rows of a table as a corner plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff.data.layout import MOST_CHANNELS
from sdediff.plots.canvas import COLOURS, INK, PALE, new_figure, save_figure

MOST_PANELS, MOST_SLICES, MOST_COLUMNS = 16, 6, 6
"""Series and slices that are shown, and columns of a table."""
_MOST_POINTS = 2000


def is_series(shape: tuple[int, ...]) -> bool:
    """Return whether items of a shape are series of few channels, ``(C, L)``; others of two axes are grey images."""
    return len(shape) == 2 and shape[0] <= MOST_CHANNELS


def is_volume(shape: tuple[int, ...]) -> bool:
    """Return whether items of a shape are volumes of channels, ``(C, D, H, W)``."""
    return len(shape) == 4


def lines(series: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw series as lines, each in a panel of its own, on common axes.

    Args:
        series: ``(B, C, L)``; the first few are drawn, a colour a channel.
        path: path of the PNG.
        reference: other series, drawn pale beneath, one a panel.
    """
    shown = series[:MOST_PANELS].detach().double().cpu()
    beneath = None if reference is None else reference[: len(shown)].detach().double().cpu()
    columns = math.ceil(math.sqrt(len(shown)))
    rows = -(-len(shown) // columns)
    figure, grid = _panels(rows, columns, 2.6, 1.6, sharex=True, sharey=True)
    for i, axes in enumerate(grid.flat):
        if i >= len(shown):
            axes.set_axis_off()
            continue
        for channel in range(shown.shape[1]):
            if beneath is not None and i < len(beneath):
                axes.plot(beneath[i, channel], color=PALE, linewidth=0.8)
            axes.plot(shown[i, channel], color=COLOURS[channel % len(COLOURS)], linewidth=0.9)
    save_figure(figure, path)


def slices(volumes: Tensor) -> Tensor:
    """Return evenly spaced slices of volumes along their depth, as images.

    Args:
        volumes: ``(B, C, D, H, W)``; of more or fewer channels than an image has, the first is taken.

    Returns:
        Images ``(B, k, C, H, W)``, C being 1 or 3, of at most :data:`MOST_SLICES` depths.
    """
    channels = volumes if volumes.shape[1] in (1, 3) else volumes[:, :1]
    depth = volumes.shape[2]
    count = min(depth, MOST_SLICES)
    places = ((torch.arange(count) + 0.5) * depth / count).long()
    return channels[:, :, places].transpose(1, 2)


def corner(points: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw rows by pairs of their columns below the diagonal, and by their histograms on it.

    Args:
        points: rows ``(B, D)``; the first few columns are drawn.
        path: path of the PNG.
        reference: other rows, drawn pale beneath, which set the limits.
    """
    size = min(points.shape[1], MOST_COLUMNS)
    sets = [(points, INK)] if reference is None else [(reference, PALE), (points, INK)]
    drawn = [(rows[:_MOST_POINTS, :size].detach().double().cpu(), colour) for rows, colour in sets]
    limits = torch.quantile(drawn[0][0], torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0).T
    margins = 0.1 * (limits[:, 1] - limits[:, 0]) + 1e-9
    ends = torch.stack([limits[:, 0] - margins, limits[:, 1] + margins], dim=1).tolist()
    figure, grid = _panels(size, size, 1.5, 1.5, squeeze=False)
    for i in range(size):
        for j in range(size):
            axes = grid[i, j]
            if j > i:
                axes.set_axis_off()
                continue
            axes.set_xlim(ends[j])
            for rows, colour in drawn:
                if i == j:
                    share = [1.0 / len(rows)] * len(rows)  # no density: a range may hold no row at all
                    axes.hist(rows[:, i].numpy(), bins=30, range=tuple(ends[i]), weights=share, color=colour, alpha=0.7)
                else:
                    axes.scatter(
                        rows[:, j], rows[:, i], s=60.0 / math.sqrt(len(rows)), c=colour, alpha=0.7, linewidths=0
                    )
                    axes.set_ylim(ends[i])
            axes.tick_params(labelbottom=i == size - 1, labelleft=j == 0 and i > 0)
            axes.set(xlabel=f"$x_{{{j + 1}}}$" if i == size - 1 else "", ylabel=f"$x_{{{i + 1}}}$" if j == 0 else "")
    save_figure(figure, path)


def _panels(rows: int, columns: int, width: float, height: float, **settings: Any) -> tuple[Any, Any]:
    """Make a figure of several pairs of axes, an array ``(rows, columns)`` of them."""
    figure = new_figure(width * columns, height * rows)
    grid = figure.subplots(rows, columns, **{**settings, "squeeze": False})
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    return figure, grid
