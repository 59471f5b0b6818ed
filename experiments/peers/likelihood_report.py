"""The picture: error against wall time and against passes of the network, a column a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .likelihood_measure import Cost, Point, front

mpl.use("Agg")
from matplotlib import pyplot as plt

COSTS: dict[str, Cost] = {"seconds": lambda point: point.seconds, "passes": lambda point: point.passes}
LABELS = {"seconds": "seconds on one core", "passes": "forwards + backwards of the network"}
COLOURS = {
    "score_sde": "tab:orange",
    "k-diffusion": "tab:green",
    "torchdiffeq dopri5": "tab:purple",
    "torchdiffeq exact": "tab:red",
}

Measured = Mapping[str, tuple[Sequence[Point], Sequence[Point]]]
"""Problem to peers and ours."""


def draw(measured: Measured, path: Path) -> None:
    figure, axes = plt.subplots(2, len(measured), figsize=(5.2 * len(measured), 8.0), squeeze=False, sharey="col")
    for column, (name, (peers, mine)) in zip(axes.T, measured.items(), strict=True):
        for axis, (kind, cost) in zip(column, COSTS.items(), strict=True):
            _panel(axis, peers, mine, cost)
            axis.set(xscale="log", yscale="log", xlabel=LABELS[kind])
            axis.grid(which="major", lw=0.3)
        column[0].set_title(name)
    for axis in axes[:, 0]:
        axis.set_ylabel("RMS error of an item, bits/dim")
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, peers: Sequence[Point], mine: Sequence[Point], cost: Cost) -> None:
    seen = set[str]()
    for line in dict.fromkeys(point.line for point in peers):
        points = [point for point in peers if point.line == line]
        package = next(name for name in COLOURS if line.startswith(name))
        style = {"color": COLOURS[package], "lw": 1.0, "marker": "s", "ms": 3.5}
        axis.plot(*_xy(points, cost), **style, label=None if package in seen else _legend(package))
        seen.add(package)
    for line in dict.fromkeys(point.line for point in mine):
        points = [point for point in mine if point.line == line]
        axis.plot(*_xy(points, cost), color="tab:blue", lw=0.5, alpha=0.5, marker=".", ms=3)
    default = [point for point in mine if not point.label]
    axis.plot(*_xy(front(mine, cost), cost), color="tab:blue", lw=2.5, label="sdediff, best steps and probes")
    axis.plot(*_xy(default, cost), color="black", marker="*", ms=10, ls="", label="sdediff, default call")


def _xy(points: Sequence[Point], cost: Cost) -> tuple[list[float], list[float]]:
    return [cost(point) for point in points], [point.error.rms for point in points]


def _legend(package: str) -> str:
    return package + (", 64 products" if package.endswith("exact") else ", one probe; 1, 4, 16 runs")
