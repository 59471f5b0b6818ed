"""Figures without pyplot's global state, and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdediff.extras import extra
from sdediff.files import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, INK, PALE = "#ffffff", "#1f4e79", "#c8ccd0"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f6000", "#56b4e9", "#000000", "#e69f00")
"""Distinct to colour-blind readers too (Okabe & Ito 2008; their yellow, too pale for a line, is brown here)."""

FORMATS = (".png", ".pdf", ".svg")
"""Suffixes of figures."""

_LARGEST_RATIO = 10.0  # of the spans of coordinates that are drawn to one scale


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, its sides in inches."""
    with extra("plots"):
        from matplotlib.figure import Figure  # takes most of a second, and images do not need it

    return Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)


def single_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes."""
    figure = new_figure(width, height)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def share_a_scale(spans: Sequence[float]) -> bool:
    """Return whether coordinates with these spans can be drawn to one scale."""
    extents = [span for span in spans if span > 0.0]
    return not extents or max(extents) <= _LARGEST_RATIO * min(extents)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as its suffix says, of ``FORMATS``: by default a PNG."""
    suffix = Path(path).suffix
    kind = suffix[1:] if suffix in FORMATS else "png"
    replace(path, lambda file: figure.savefig(file, format=kind, dpi=150, bbox_inches="tight"))
