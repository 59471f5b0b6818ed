"""Curves of values against cost, for several methods at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdediff.extras import extra
from sdediff.plots.canvas import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX*<>"


class Panel(NamedTuple):
    """One pair of logarithmic axes.

    Attributes:
        title: title of the axes.
        series: name to ``(x, y, significant)``: costs, values, and whether each value is significant (hollow markers
            where it is not).
        floor: upper edge of the grey band of uncertain values; ``None`` for no band.
        bottom: the least value shown; ``None`` for all.
    """

    title: str
    series: Mapping[str, tuple[list[float], list[float], list[bool]]]
    floor: float | None = None
    bottom: float | None = None


def trade_off(panels: Sequence[Panel], path: str | Path, *, xlabel: str) -> None:
    """Plot values against cost in panels side by side, each line named at its end.

    Args:
        panels: one or more panels; a name has the same colour in all.
        path: path of the PNG.
        xlabel: name of the cost.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    figure = new_figure(6.4 * len(panels), 5.0)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y, significant) in panel.series.items():
            i = names.index(name)
            style = {"color": COLOURS[i % len(COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5.0}
            line = "-" if i < len(COLOURS) else "--"
            axes.plot(x, y, linestyle=line, linewidth=1.4, markerfacecolor="none", **style)
            filled = [(a, b) for a, b, solid in zip(x, y, significant, strict=True) if solid]
            axes.plot(*zip(*filled, strict=True), linestyle="none", **style) if filled else None
        _log_axes(axes, panel, xlabel)
        _label_lines(axes, panel, names)
    save_figure(figure, path)


def _log_axes(axes: Axes, panel: Panel, xlabel: str) -> None:
    """Set logarithmic scales, plain numbers for the costs, a faint grid, and the band of uncertain values."""
    with extra("plots"):
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


def _label_lines(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    """Write the names in a column right of the axes, each at the height of its line's end or, if taken, near it."""
    to_axes = axes.transData + axes.transAxes.inverted()
    last = {name: to_axes.transform((x[-1], y[-1])) for name, (x, y, _) in panel.series.items() if x}
    points = sorted((max(float(point[1]), 0.0), float(point[0]), name) for name, point in last.items())
    heights = _apart([y for y, _, _ in points], 0.048)
    for (y, x, name), height in zip(points, heights, strict=True):
        colour = COLOURS[names.index(name) % len(COLOURS)]
        axes.plot(
            (x, 1.03),
            (y, height),
            transform=axes.transAxes,
            color=colour,
            linewidth=0.6,
            alpha=0.6,
            clip_on=False,
            zorder=1,
        )
        axes.text(1.035, height, name, transform=axes.transAxes, color=colour, va="center", fontsize=10)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move rising heights so that neighbours are a gap apart and, if there is room, none is above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    ceiling = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved
