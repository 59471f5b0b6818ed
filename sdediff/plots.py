"""Pictures from tensors, as PNG files; the only importer of matplotlib, and without its global state.

Images are put together pixel by pixel, so that every pixel of theirs is a square of whole pixels of the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdediff.numerics import flatten
from sdediff.types import DataInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER, _INK, _PALE = "#ffffff", "#1f4e79", "#c8ccd0"
_GAP = 235  # the grey between images: told apart from black and from white
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f6000", "#56b4e9", "#000000", "#e69f00")
"""Told apart by colour-blind readers too (Okabe & Ito 2008; their yellow, too pale for a line, is brown here)."""
_MARKERS = "osD^vPX*<>"
_TILE, _WIDTH = 64, 1600  # pixels: about the size of a tile, and the most a picture is wide if its tiles allow it


def image_grid(
    images: Tensor, path: str | Path, *, columns: int | None = None, low: float = 0.0, high: float = 1.0
) -> None:
    """Images side by side, in rows.

    Args:
        images: ``(B, C, H, W)`` with one or three channels, or ``(B, H, W)``.
        path: of the PNG, replaced in one step.
        columns: images in a row; about as many as rows by default.
        low: the value shown black.
        high: the value shown white.

    Raises:
        ValueError: for another shape or an empty batch.
    """
    pixels = _pixels(images, low, high)
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
    _replace(path, lambda file: Image.fromarray(canvas.squeeze(-1) if channels == 1 else canvas).save(file, "PNG"))


def filmstrip(frames: Tensor, path: str | Path, *, low: float = 0.0, high: float = 1.0) -> None:
    """Sequences of images, one a row.

    Args:
        frames: ``(frames, B, C, H, W)`` or ``(frames, B, H, W)``.
        path: of the PNG.
        low: the value shown black.
        high: the value shown white.
    """
    by_row = frames.transpose(0, 1)
    image_grid(by_row.reshape(-1, *by_row.shape[2:]), path, columns=len(frames), low=low, high=high)


def scatter(points: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Points by their first two coordinates.

    Args:
        points: ``(B, D)``; points on a line are drawn as a histogram.
        path: of the PNG.
        reference: other points, drawn pale beneath and setting the limits.
    """
    if points.shape[1] == 1:
        return histogram(points[:, 0], path, label="x")
    figure, axes = _figure(6.0, 6.0)
    _cloud(axes, points if reference is None else reference, reference is not None)
    size = 300.0 / math.sqrt(len(points))  # so that many points leave gaps, and few are seen
    axes.scatter(*_plane(points), s=size, c=_INK, alpha=0.7, linewidths=0, label=f"{len(points):,} samples")
    if reference is not None:
        axes.scatter([], [], s=20, c=_PALE, label="data")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, handletextpad=0.2)
    return _save(figure, path)


def paths(frames: Tensor, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Sequences of points, each a line with a dot at every frame.

    Args:
        frames: ``(frames, B, D)``.
        path: of the PNG.
        reference: points drawn pale beneath.
    """
    figure, axes = _figure(6.0, 6.0)
    _cloud(axes, frames.flatten(0, 1) if reference is None else reference, reference is not None)
    for line in frames.transpose(0, 1):
        axes.plot(*_plane(line), "-o", markersize=4, linewidth=1.2)
    _save(figure, path)


def histogram(values: Tensor, path: str | Path, *, label: str) -> None:
    """How values are spread, with their mean.

    Args:
        values: ``(B,)``.
        path: of the PNG.
        label: what the values are, with their unit.
    """
    figure, axes = _figure(6.0, 3.6)
    numbers = values.double().cpu().numpy()
    axes.hist(numbers, bins=min(60, max(8, int(math.sqrt(len(numbers))))), color=_INK, alpha=0.85)
    axes.axvline(float(numbers.mean()), color="#b3402a", linewidth=1.5, label=f"mean {numbers.mean():.4g}")
    axes.set(xlabel=label, ylabel="items")
    axes.legend(frameon=False)
    _save(figure, path)


def curves(
    series: Mapping[str, tuple[Any, Any]], path: str | Path, *, xlabel: str = "step", ylabel: str = "loss"
) -> None:
    """Lines over a common axis.

    Args:
        series: name to ``(x, y)``.
        path: of the PNG.
        xlabel: of the axis.
        ylabel: of the values.
    """
    figure, axes = _figure(6.0, 3.6)
    for (name, (x, y)), style in zip(series.items(), ("-", "o-", "s-", "^-"), strict=False):
        axes.plot(x, y, style, markersize=4, linewidth=1.2, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False)
    _save(figure, path)


class Panel(NamedTuple):
    """One pair of logarithmic axes.

    Attributes:
        title: what is shown.
        series: name to ``(x, y, told)``: places, values, and whether each value is told apart from nothing (a hollow
            marker stands where it is not).
        floor: values below are uncertain and lie in a grey band; ``None`` for no band.
        bottom: the least value shown; ``None`` for all.
    """

    title: str
    series: Mapping[str, tuple[list[float], list[float], list[bool]]]
    floor: float | None = None
    bottom: float | None = None


def trade_off(panels: Sequence[Panel], path: str | Path, *, xlabel: str) -> None:
    """Values against cost, side by side, each line named at its end.

    Args:
        panels: one or more; a name has one colour in all.
        path: of the PNG.
        xlabel: what the cost is.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    figure = Figure(figsize=(6.4 * len(panels), 5.0), layout="constrained", facecolor=_PAPER)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y, told) in panel.series.items():
            i = names.index(name)
            style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5.0}
            line = "-" if i < len(_COLOURS) else "--"
            axes.plot(x, y, linestyle=line, linewidth=1.4, markerfacecolor="none", **style)
            seen = [(a, b) for a, b, known in zip(x, y, told, strict=True) if known]
            axes.plot(*zip(*seen, strict=True), linestyle="none", **style) if seen else None
        _log_axes(axes, panel, xlabel)
        _name_ends(axes, panel, names)
    _save(figure, path)


def _log_axes(axes: Axes, panel: Panel, xlabel: str) -> None:
    """Scales, plain numbers for the costs, a faint grid, and the band of what is uncertain."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    if not panel.series:  # a logarithmic axis needs something to show
        axes.set(xlim=(1.0, 100.0), ylim=(0.1, 1.0))
    axes.set(xscale="log", yscale="log", xlabel=xlabel)
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = (float(limit) for limit in axes.get_xlim())
    ticks = [digit * 10**power for power in range(7) for digit in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(lambda cost, _: f"{cost:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#e6e8ea", linewidth=0.8)
    axes.set_axisbelow(True)
    bottom, top = axes.get_ylim()
    bottom = bottom if panel.bottom is None else max(bottom, panel.bottom)
    if panel.floor is not None and panel.floor > bottom:
        axes.axhspan(bottom, panel.floor, color="#f0f0f0", zorder=0, linewidth=0)
        axes.text(
            0.01,
            panel.floor,
            "grey: the reference's own error",
            transform=axes.get_yaxis_transform(),
            va="bottom",
            fontsize=8,
            color="#707070",
        )
    axes.set(xlim=(low, high), ylim=(bottom, top))


def _name_ends(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """Names in a column right of the axes, each on the height of its line's end or, if that is taken, near it."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = {name: to_axes.transform((x[-1], y[-1])) for name, (x, y, _) in panel.series.items() if x}
    ends = sorted((max(float(place[1]), 0.0), float(place[0]), name) for name, place in places.items())
    heights = _apart([end for end, _, _ in ends], 0.048)
    for (end, last, name), height in zip(ends, heights, strict=True):
        colour = _COLOURS[names.index(name) % len(_COLOURS)]
        axes.plot(
            (last, 1.03),
            (end, height),
            transform=axes.transAxes,
            color=colour,
            linewidth=0.6,
            alpha=0.6,
            clip_on=False,
            zorder=1,
        )
        axes.text(1.035, height, name, transform=axes.transAxes, color=colour, va="center", fontsize=10)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights, moved so that neighbours are a gap apart and, if there is room, none is above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def picture(x: Tensor, info: DataInfo, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Samples as what they are: images as a grid, anything else as points.

    Args:
        x: ``(B, *info.shape)``, in the model's values.
        info: of the data.
        path: of the PNG.
        reference: data to draw beneath points.
    """
    if is_image(info.shape):
        low, high = _range(x, info)
        image_grid(x, path, low=low, high=high)
    else:
        scatter(flatten(x), path, reference=None if reference is None else flatten(reference))


def sequences(frames: Tensor, info: DataInfo, path: str | Path, *, reference: Tensor | None = None) -> None:
    """Sequences of samples ``(frames, B, *info.shape)``, by the same rule as :func:`picture`."""
    if is_image(info.shape):
        low, high = _range(frames, info)
        filmstrip(frames, path, low=low, high=high)
    else:
        paths(frames.flatten(2), path, reference=None if reference is None else flatten(reference))


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether items of a shape can be shown as images: ``(1 or 3, H, W)`` or ``(H, W)``."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _range(x: Tensor, info: DataInfo) -> tuple[float, float]:
    """Black and white: the ends of the levels, or of the values where there are no levels."""
    if info.levels is not None:
        return info.low, info.high
    return float(x.min()), float(x.max())


def _pixels(images: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """Bytes ``(B, H, W, C)``."""
    x = images[:, None] if images.ndim == 3 else images
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise ValueError(f"images must be (B, 1 or 3, H, W) or (B, H, W), at least one, not {tuple(images.shape)}")
    x = (x.detach().double().cpu() - low) / max(high - low, 1e-12)
    pixels: NDArray[np.uint8] = (x.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own, outside pyplot and its global list."""
    from matplotlib.figure import Figure  # takes most of a second, and images do without

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=_PAPER)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plane(points: Tensor) -> tuple[Any, Any]:
    """The first two coordinates; the second is 0 on a line."""
    flat = points.detach().double().cpu().numpy()
    return flat[:, 0], flat[:, 1] if flat.shape[1] > 1 else np.zeros(len(flat))


def _cloud(axes: Axes, points: Tensor, show: bool) -> None:
    """Set the limits by the bulk of some points, so that a stray one does not shrink the rest; show them if asked."""
    x, y = _plane(points)
    limits = [np.quantile(values, [0.005, 0.995]) for values in (x, y)]
    margin = 0.3 * max(float(high - low) for low, high in limits) + 1e-9
    axes.set(xlim=(limits[0][0] - margin, limits[0][1] + margin), ylim=(limits[1][0] - margin, limits[1][1] + margin))
    axes.set_aspect("equal")
    axes.set(xlabel="$x_1$", ylabel="$x_2$")
    if show:
        axes.scatter(x, y, s=120.0 / math.sqrt(len(x)), c=_PALE, linewidths=0)


def _save(figure: Figure, path: str | Path) -> None:
    _replace(path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))


def _replace(path: str | Path, draw: Callable[[Path], None]) -> None:
    """Draw beside the place and move there, so that no half a picture is ever seen."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draw(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
