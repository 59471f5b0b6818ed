"""Pictures of tensors as PNG files; the only importer of matplotlib, and without its global state.

Image grids are composed pixel by pixel: every pixel of an image is a square of whole pixels of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.data.levels import to_values
from sdediff.extras import extra
from sdediff.files import replace
from sdediff.numerics import flatten
from sdediff.plots.canvas import INK, PALE, save_figure, share_a_scale, single_axes
from sdediff.plots.costs import Panel as Panel
from sdediff.plots.costs import trade_off as trade_off
from sdediff.plots.kinds import corner, is_series, is_volume, lines, slices
from sdediff.types import DataInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 235  # the grey between images, distinct from black and from white
_TILE, _WIDTH = 64, 1600  # pixels: the approximate size of a tile, and the largest width if the tiles allow it


def image_grid(
    images: Tensor, path: str | Path, *, columns: int | None = None, low: float = 0.0, high: float = 1.0
) -> None:
    """Draw images side by side, in rows.

    Args:
        images: ``(B, C, H, W)`` with one or three channels, or ``(B, H, W)``.
        path: path of the PNG, which is replaced in one step.
        columns: images in a row; about as many as rows by default.
        low: the value shown black.
        high: the value shown white.

    Raises:
        ValueError: for another shape or an empty batch.
    """
    with extra("plots"):
        from PIL import Image

    pixels = _to_bytes(images, low, high)
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = -(-count // columns)
    zoom = max(1, min(_TILE // max(height, width), _WIDTH // (columns * width)))
    gap = max(2, zoom // 2)
    step_y, step_x = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * step_y + gap, columns * step_x + gap, channels), _GAP, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + (i // columns) * step_y, gap + (i % columns) * step_x
        canvas[top : top + height * zoom, left : left + width * zoom] = image.repeat(zoom, 0).repeat(zoom, 1)
    replace(path, lambda file: Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).save(file, "PNG"))


def filmstrip(frames: Tensor, path: str | Path, *, low: float = 0.0, high: float = 1.0) -> None:
    """Draw sequences of images, one a row.

    Args:
        frames: ``(frames, B, C, H, W)`` or ``(frames, B, H, W)``.
        path: path of the PNG.
        low: the value shown black.
        high: the value shown white.
    """
    by_row = frames.transpose(0, 1)
    image_grid(by_row.reshape(-1, *by_row.shape[2:]), path, columns=len(frames), low=low, high=high)


def scatter(points: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw points by their first two coordinates.

    Args:
        points: ``(B, D)``; points on a line are drawn as a histogram.
        path: path of the PNG.
        reference: other points, drawn pale beneath, which set the limits.
    """
    if points.shape[1] == 1:
        return histogram(points[:, 0], path, label="x")
    figure, axes = single_axes(6.0, 6.0)
    _frame(axes, points if reference is None else reference, reference is not None)
    size = 300.0 / math.sqrt(len(points))  # many points leave gaps, few are visible
    axes.scatter(*_plane(points), s=size, c=INK, alpha=0.7, linewidths=0, label=f"{len(points):,} samples")
    if reference is not None:
        axes.scatter([], [], s=20, c=PALE, label="data")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, handletextpad=0.2)
    return save_figure(figure, path)


def paths(frames: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw sequences of points, each a line with a dot at every frame.

    Args:
        frames: ``(frames, B, D)``.
        path: path of the PNG.
        reference: points drawn pale beneath.
    """
    figure, axes = single_axes(6.0, 6.0)
    _frame(axes, frames.flatten(0, 1) if reference is None else reference, reference is not None)
    for line in frames.transpose(0, 1):
        axes.plot(*_plane(line), "-o", markersize=4, linewidth=1.2)
    save_figure(figure, path)


def histogram(values: Tensor, path: str | Path, *, label: str) -> None:
    """Draw the histogram of values, with their mean.

    Args:
        values: ``(B,)``.
        path: path of the PNG.
        label: name of the values, with their unit.
    """
    figure, axes = single_axes(6.0, 3.6)
    numbers = values.double().cpu().numpy()
    axes.hist(numbers, bins=min(60, max(8, int(math.sqrt(len(numbers))))), color=INK, alpha=0.85)
    axes.axvline(float(numbers.mean()), color="#b3402a", linewidth=1.5, label=f"mean {numbers.mean():.4g}")
    axes.set(xlabel=label, ylabel="items")
    axes.legend(frameon=False)
    save_figure(figure, path)


def curves(
    series: Mapping[str, tuple[Any, Any]], path: str | Path, *, xlabel: str = "step", ylabel: str = "loss"
) -> None:
    """Draw lines over a common axis.

    Args:
        series: name to ``(x, y)``.
        path: path of the PNG.
        xlabel: name of the axis.
        ylabel: name of the values.
    """
    figure, axes = single_axes(6.0, 3.6)
    for (name, (x, y)), style in zip(series.items(), ("-", "o-", "s-", "^-"), strict=False):
        axes.plot(x, y, style, markersize=4, linewidth=1.2, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.locator_params(axis="x", integer=xlabel == "step")
    axes.legend(frameon=False)
    save_figure(figure, path)


def picture(x: Tensor, info: DataInfo, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw samples as what they are: a grid of images, series as lines, volumes as slices, else points.

    Points of more than two coordinates are drawn pair by pair.

    Args:
        x: ``(B, *info.shape)``, as :func:`~sdediff.generation.sample` gives them.
        info: description of the data.
        path: path of the PNG.
        reference: data to draw beneath points and series; integers are levels.
    """
    low, high = shades(x, info)
    if reference is not None and x.is_floating_point() and not reference.is_floating_point():
        reference = to_values(reference, info)
    if is_image(info.shape):
        image_grid(x, path, low=low, high=high)
    elif is_series(info.shape):
        lines(x, path, reference=reference)
    elif is_volume(info.shape):
        filmstrip(slices(x).transpose(0, 1), path, low=low, high=high)
    else:
        draw = corner if math.prod(info.shape) > 2 else scatter
        draw(flatten(x), path, reference=None if reference is None else flatten(reference))


def sequences(frames: Tensor, info: DataInfo, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Draw sequences of samples ``(frames, B, *info.shape)``: images in rows, anything else as paths of points."""
    if is_image(info.shape):
        low, high = shades(frames, info)
        filmstrip(frames, path, low=low, high=high)
    else:
        paths(frames.flatten(2), path, reference=None if reference is None else flatten(reference))


def is_image(shape: tuple[int, ...]) -> bool:
    """Return whether items of a shape can be shown as images: ``(1 or 3, H, W)``, or ``(H, W)`` that are no series."""
    return (len(shape) == 2 and not is_series(shape)) or (len(shape) == 3 and shape[0] in (1, 3))


def shades(x: Tensor, info: DataInfo) -> tuple[float, float]:
    """Return the values shown black and white: the extremes of the levels, or of the values of continuous data."""
    if info.levels is None:
        return float(x.min()), float(x.max())
    return (info.low, info.high) if x.is_floating_point() else (0.0, info.levels - 1.0)


def _to_bytes(images: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """Return the pixels as bytes ``(B, H, W, C)``."""
    x = images[:, None] if images.ndim == 3 else images
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise ValueError(f"images must be (B, 1 or 3, H, W) or (B, H, W), at least one, not {tuple(images.shape)}")
    x = (x.detach().double().cpu() - low) / max(high - low, 1e-12)
    pixels: NDArray[np.uint8] = (x.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def _plane(points: Tensor) -> tuple[Any, Any]:
    """Return the first two coordinates; the second is 0 on a line."""
    flat = points.detach().double().cpu().numpy()
    return flat[:, 0], flat[:, 1] if flat.shape[1] > 1 else np.zeros(len(flat))


def _frame(axes: Axes, points: Tensor, show: bool) -> None:
    """Set the limits by the bulk of some points, whatever a few outliers are; optionally show the points."""
    x, y = _plane(points)
    limits = [np.quantile(values, [0.005, 0.995]) for values in (x, y)]
    spans = [float(high - low) for low, high in limits]
    one_scale = share_a_scale(spans)
    margins = [0.3 * (max(spans) if one_scale else span) + 1e-9 for span in spans]
    wider = [(low - margin, high + margin) for (low, high), margin in zip(limits, margins, strict=True)]
    axes.set(xlim=wider[0], ylim=wider[1])
    axes.set_aspect("equal" if one_scale else "auto")
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    if show:
        axes.scatter(x, y, s=120.0 / math.sqrt(len(x)), c=PALE, linewidths=0)
