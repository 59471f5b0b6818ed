"""Plots of measured figures between the limits in which they are allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdediff.plots.canvas import INK, PALE, save_figure, single_axes

_FAILED = "#b3402a"
_FARTHEST = 1.5


class Verdict(NamedTuple):
    """A figure beside its limits.

    Attributes:
        place: place of the figure, whose limits are at -1 and 1; NaN where there is none.
        passed: whether it is allowed.
        label: name of what was tested, written beside a figure that is not allowed.
    """

    place: float
    passed: bool
    label: str


def verdicts(groups: Mapping[str, Sequence[Verdict]], path: str | Path) -> None:
    """Draw figures between their limits, a line a group; what is not allowed is red and has its name.

    Args:
        groups: figures by the name of their group.
        path: path of the PNG.
    """
    figure, axes = single_axes(9.0, 1.2 + 0.55 * len(groups))
    axes.axvspan(-1.0, 1.0, color=PALE, alpha=0.45, linewidth=0)
    for line, group in enumerate(groups.values()):
        heights = line + 0.5 * (np.arange(len(group)) % 7 / 6.0 - 0.5)
        for verdict, height in zip(group, heights.tolist(), strict=True):
            place = float(np.clip(np.nan_to_num(verdict.place, nan=_FARTHEST), -_FARTHEST, _FARTHEST))
            axes.plot(place, height, "o", markersize=4.0, color=INK if verdict.passed else _FAILED)
            if not verdict.passed:
                side = -1.0 if place > 0.0 else 1.0
                axes.annotate(
                    verdict.label,
                    (place, height),
                    (6.0 * side, 0.0),
                    textcoords="offset points",
                    ha="right" if side < 0.0 else "left",
                    va="center",
                    fontsize=7,
                    color=_FAILED,
                )
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_xticks([-1.0, 0.0, 1.0], ["lower limit", "middle, or none", "upper limit"])
    axes.set(xlim=(-1.1 * _FARTHEST, 1.1 * _FARTHEST), ylim=(len(groups) - 0.5, -0.5))
    axes.set_title("every figure between its limits", loc="left", fontsize=11)
    save_figure(figure, path)
