"""Figures outside pyplot and its global list, their colours, and files that are never half written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, INK, PALE = "#ffffff", "#1f4e79", "#c8ccd0"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f6000", "#56b4e9", "#000000", "#e69f00")
"""Told apart by colour-blind readers too (Okabe & Ito 2008; their yellow, too pale for a line, is brown here)."""


def single_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one pair of axes."""
    from matplotlib.figure import Figure  # takes most of a second, and images do without

    made = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(drawn: Figure, path: str | Path) -> None:
    """Write a figure as a PNG."""
    replace(path, lambda file: drawn.savefig(file, format="png", dpi=150, bbox_inches="tight"))


def replace(path: str | Path, draw: Callable[[Path], None]) -> None:
    """Draw beside the place and move there, so that no half a picture is ever seen."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draw(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
