"""Layouts of the axes of items, and descriptions of items in words.

Everything after the readers has channels first: rows ``(D,)``, series ``(C, L)``, images ``(C, H, W)``, volumes
``(C, D, H, W)``. A layout names the axes of one item in a file, a letter each: ``C`` channels, ``L`` the
length of a series, ``D``, ``H`` and ``W`` depth, height and width; where none is ``C`` there is one channel.

``"auto"`` infers the layout from the shape where it is unambiguous: an axis of at most 4 entries, first or last, is
the channels; integers without such an axis, and square items of floats, are grey images. Floats ``(128, 12)`` may be a
series in either order or an image, and ``(16, 16, 16)`` a volume or channels: those are refused, with the remedy. A
declared kind leaves less to infer: series ``(128,)`` have one channel, volumes ``(16, 16, 16)`` too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdediff.numerics import choose
from sdediff.types import DataInfo

AUTO = "auto"

LAYOUTS = {
    AUTO: "by the shape, where only one can be meant",
    "CL": "series, channels first",
    "LC": "series, channels last",
    "L": "series of one channel",
    "CHW": "images, channels first",
    "HWC": "images, channels last",
    "HW": "grey images",
    "CDHW": "volumes, channels first",
    "DHWC": "volumes, channels last",
    "DHW": "volumes of one channel",
}
"""Values of ``data.layout``, with their meanings."""

KINDS = {
    AUTO: "by the shape, where only one can be meant",
    "vector": "rows (D,)",
    "series": "series (C, L)",
    "image": "images (C, H, W)",
    "volume": "volumes (C, D, H, W)",
}
"""Values of ``data.kind``, with their meanings: the k-th kind has k axes once it is read."""

MOST_CHANNELS = 4
"""Length of the longest axis that ``"auto"`` takes for channels."""

_NAMES = {1: "rows", 2: "series", 3: "images", 4: "volumes"}
_COLOURS = {1: "grey", 3: "colour"}


def kind_of_layout(layout: str) -> str:
    """Return the kind of items of a layout, a name of ``KINDS``."""
    return kind_of_axes(len({*layout, "C"}))


def kind_of_axes(axes: int) -> str:
    """Return the kind of items of a number of axes, channels included; ``"auto"`` for more than a volume has."""
    return [*KINDS, AUTO][axes if axes < len(KINDS) else -1]


def arrange(data: Tensor, layout: str, where: str, kind: str = AUTO) -> Tensor:
    """Return items ``(n, *item)`` with their channels first, as a view.

    Args:
        data: items in the layout of the file.
        layout: name of a layout in ``LAYOUTS``.
        where: name of the file.
        kind: what an item is, a name of ``KINDS``.

    Raises:
        ValueError: for an unknown layout, one with another number of axes, or a shape that may mean several.
    """
    choose(LAYOUTS, layout, "layout")
    item = tuple(data.shape[1:])
    name = layout
    if layout == AUTO:
        found = _guess(item, data.is_floating_point(), where) if kind == AUTO else _declared(item, kind, where)
        if found is None:
            return data
        name = found
    if len(name) != len(item):
        raise ValueError(f"{where}: the layout {name!r} has {len(name)} axes, the items {item} have {len(item)}")
    return data.movedim(1 + name.index("C"), 1) if "C" in name else data[:, None]


def _guess(item: tuple[int, ...], floats: bool, where: str) -> str | None:
    """Return the layout inferred from a shape; ``None`` for rows, and for more axes than a volume's."""
    if len(item) not in (2, 3, 4):
        return None
    layouts = [name for name in LAYOUTS if name != AUTO and len(name) == len(item)]
    if len(item) == 2 and (item[0] == item[1] or not (floats or min(item) <= MOST_CHANNELS)):
        return "HW"
    return _channels(item, layouts, where, last=len(item) > 2)


def _declared(item: tuple[int, ...], kind: str, where: str) -> str | None:
    """Return the layout of items of a kind; ``None`` for rows."""
    of_kind = [name for name in LAYOUTS if name != AUTO and kind_of_layout(name) == kind]
    layouts = [name for name in of_kind if len(name) == len(item)]
    if not layouts and not (kind == "vector" and len(item) == 1):
        shapes = " or ".join(f"({', '.join(name)})" for name in of_kind) or "(D,)"
        raise ValueError(f"{where}: the items have shape {item}, those of kind {kind!r} {shapes}")
    return layouts[0] if len(layouts) == 1 else _channels(item, layouts, where) if layouts else None


def _channels(item: tuple[int, ...], layouts: Sequence[str], where: str, *, last: bool = True) -> str:
    """Return the layout whose channels are the few entries of the first axis or, if they may be, the last."""
    for end in (0, -1) if last else (0,):
        if item[end] <= MOST_CHANNELS:
            return next(name for name in layouts if name[end] == "C")
    meanings = ", ".join(f"{name} ({LAYOUTS[name]})" for name in layouts)
    raise ValueError(f"{where}: items {item} can mean several things; say which by data.layout, one of: {meanings}")


def describe_items(data: Tensor, info: DataInfo) -> str:
    """Describe items in a few words, for example ``320 images 1x128x12, grey, 256 levels``.

    Args:
        data: items ``(n, *shape)``.
        info: description of the data.
    """
    words = [f"{len(data):,} {_what(data.shape[1:])}"]
    if len(info.shape) > 1:
        channels = data.shape[1]
        colour = _COLOURS.get(channels) if len(info.shape) == 3 else None
        words.append(colour or f"{channels} channel{'s' * (channels != 1)}")
    if not data.is_floating_point():
        words.append(f"{info.levels} levels")
    elif info.levels is None:
        words.append("continuous")
    else:
        words.append(f"continuous (the model's {info.levels} levels lie on [{info.low:g}, {info.high:g}])")
    return ", ".join(words)


def _what(item: Sequence[int]) -> str:
    if len(item) == 1:
        return f"rows of {item[0]} column{'s' * (item[0] != 1)}"
    return f"{_NAMES.get(len(item), 'items')} {'x'.join(map(str, item))}"
