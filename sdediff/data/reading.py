"""How data are read: the choices that a file leaves open, each with a value that refuses to guess.

A reader never changes numbers unasked. Values that are missing, columns that are no numbers and damaged images are
refused in one line that names the choice; images of several sizes need the size that they are brought to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from sdediff.data.layout import AUTO, KINDS, LAYOUTS, kind_of_layout
from sdediff.numerics import choose

REFUSE, DROP, SKIP = "refuse", "drop", "skip"

MISSING = {
    REFUSE: "missing values are an error",
    DROP: "items with missing values are left out",
    "mean": "training items are filled with the mean, held-out ones left out",
    "median": "training items are filled with the median, held-out ones left out",
}
"""Values of ``data.missing``, with their meanings."""

TEXT = {REFUSE: "columns that are no numbers are an error", DROP: "columns that are no numbers are left out"}
"""Values of ``data.text``, with their meanings."""

DAMAGED = {REFUSE: "a damaged image is an error", SKIP: "damaged images are left out"}
"""Values of ``data.damaged``, with their meanings."""


class ReadingOptions(TypedDict, total=False):
    """Keyword arguments of the readers, the fields of :class:`Reading`."""

    kind: str
    layout: str
    size: int | None
    missing: str
    text: str
    damaged: str
    label: str | None
    array: str | None


@dataclass(frozen=True)
class Reading:
    """The choices of a reader.

    Attributes:
        kind: what an item is, a name of :data:`~sdediff.data.layout.KINDS`; ``"auto"`` infers it from the shape.
        layout: the axes of an item in a file, a name of :data:`~sdediff.data.layout.LAYOUTS`.
        size: side in pixels to which images are resized and cropped; ``None`` for images of one size.
        missing: what becomes of missing values, a name of ``MISSING``.
        text: what becomes of columns that are no numbers, a name of ``TEXT``.
        damaged: what becomes of damaged images, a name of ``DAMAGED``.
        label: name of the column that holds the class of each row of a table.
        array: name of the array of a file to read, where it holds several.

    Raises:
        ValueError: for an unknown choice, a size below 1, or a layout of another kind.

    >>> sdediff.data.load_dataset("moons", missing="ignore")
    Traceback (most recent call last):
        ...
    ValueError: unknown treatment of missing values 'ignore'; choose one of: refuse, drop, mean, median
    """

    kind: str = AUTO
    layout: str = AUTO
    size: int | None = None
    missing: str = REFUSE
    text: str = REFUSE
    damaged: str = REFUSE
    label: str | None = None
    array: str | None = None

    def __post_init__(self) -> None:
        choose(LAYOUTS, self.layout, "layout")
        choose(KINDS, self.kind, "kind of data")
        choose(MISSING, self.missing, "treatment of missing values")
        choose(TEXT, self.text, "treatment of text")
        choose(DAMAGED, self.damaged, "treatment of damaged images")
        if self.size is not None and self.size < 1:
            raise ValueError(f"the size of images must be at least 1 pixel, not {self.size}")
        if AUTO not in (self.kind, self.layout) and kind_of_layout(self.layout) != self.kind:
            raise ValueError(f"the layout {self.layout!r} is of {LAYOUTS[self.layout]}, not of kind {self.kind!r}")

    @property
    def missing_of_scored(self) -> str:
        """Return what becomes of missing values in scored items: none is filled, for that would score the filling."""
        return REFUSE if self.missing == REFUSE else DROP
