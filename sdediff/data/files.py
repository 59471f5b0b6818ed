"""Data from files and folders, checked before training and split into training and held-out parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.data.arrays import Array
from sdediff.data.columns import Rows, as_rows
from sdediff.data.dataset import Dataset, Items, divide, join
from sdediff.data.entries import as_items, as_labels, info_of
from sdediff.data.layout import AUTO, KINDS, arrange, kind_of_axes
from sdediff.data.missing import without_gaps
from sdediff.data.reading import Reading
from sdediff.data.remarks import warn
from sdediff.data.sources import LABELS, OTHER_LABELS, TEST, Source, open_source
from sdediff.data.storage import compact

WRITTEN = ("samples", "levels", "latents")
"""Names of arrays that the commands write, whose axes are in order."""

READING = Reading()


def load_file(path: Path, seed: int = 0, reading: Reading = READING) -> Dataset:
    """Read what lies at a path, and split it into training and held-out parts.

    ``x_train`` and ``x_test`` of an ``.npz``, or both parts of MNIST, CIFAR-10 and their kin, are the two parts; where
    there is no ``x_test``, the items of the mask ``test_mask`` are held out, else a random fifth. Arrays are
    ``(n, *item)``. Integers are levels ``0 .. K - 1`` (bytes always 256), placed on [-1, 1]; floats, and the numbers of
    tables, are taken as they are.

    Args:
        path: the file or folder.
        seed: seed of the hold-out.
        reading: the choices of the reader.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    name = path.stem or str(path)
    source = open_source(path, reading)
    if reading.array is not None or not {"x_train", "x_test"} <= {*source.arrays, *source.tables}:
        items = _read_items(source, ("x_train", "data"), reading)
        parts = _mask(source, len(items.x))
        divided = divide(items, name, seed) if parts is None else tuple(map(items.part, parts))
        train, held_out = without_gaps(divided, reading.missing, str(path))
        return join(train, held_out, info_of(name, train.x, held_out.x))
    train, held_out = (_read_items(source, (part,), reading) for part in ("x_train", "x_test"))
    if held_out.x.shape[1:] != train.x.shape[1:] or held_out.x.dtype != train.x.dtype:
        raise ValueError(
            f"{path}: x_train and x_test differ in kind: {tuple(train.x.shape)} {train.x.dtype}, "
            f"{tuple(held_out.x.shape)} {held_out.x.dtype}"
        )
    train, held_out = without_gaps((train, held_out), reading.missing, str(path))
    return join(train, held_out, info_of(name, train.x, held_out.x))


def load_items(
    path: Path,
    names: Sequence[str] = ("x_test", "data"),
    reading: Reading = READING,
    shape: Sequence[int] | None = None,
    *,
    ordered: bool = False,
) -> Items:
    """Read all items of a file or folder, unsplit and in their order; those with missing values are left out.

    Args:
        path: the file or folder.
        names: names of the arrays of an ``.npz`` to read, in order of preference; else its only one.
        reading: the choices of the reader.
        shape: shape of an item whose axes are in order, if known: an array of that shape stays as it is.
        ordered: whether the axes of all arrays are in order.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    source = open_source(path, reading)
    source = source._replace(ordered=source.ordered or ordered)
    items = _read_items(source, names, reading, None if shape is None else tuple(shape))
    return without_gaps((items,), reading.missing_of_scored, str(path))[0]


def _read_items(source: Source, names: Sequence[str], reading: Reading, shape: tuple[int, ...] | None = None) -> Items:
    """Read the array or table of the first of the names that is there, or the only one, with its labels."""
    where = str(source.path)
    notes: tuple[str, ...] = ()
    name, found = _find(source, names, reading)
    if isinstance(found, Rows):
        x, columns = as_items(found.rows, where, gaps=True), found.names
        classes, labels = found.classes, _labels(found.labels, len(x), f"{where}, {reading.label}")
    else:
        if reading.label is not None:
            raise ValueError(f"{where}: data.label={reading.label} is a column of a table, and this is an array")
        x, columns, classes, labels = as_items(found, where, gaps=True), (), source.classes, None
        auto = reading.layout == AUTO
        if not (source.ordered or name in WRITTEN or (auto and x.shape[1:] == shape)):
            stored = tuple(x.shape[1:])
            x = compact(arrange(x, reading.layout, where, reading.kind))
            notes = (_note(where, stored, x),) * (auto and reading.kind == AUTO)
    own = LABELS.get(name, OTHER_LABELS)
    if labels is None and own in source.arrays:
        labels = _labels(source.arrays[own], len(x), f"{where}, {own}")
    if reading.kind not in (AUTO, kind_of_axes(x.ndim - 1)):
        raise ValueError(f"{where}: the items have shape {tuple(x.shape[1:])}, which are no {KINDS[reading.kind]}")
    return Items(x, labels, classes, np.arange(len(x)) if source.files is None else source.files, columns, notes)


def _find(source: Source, names: Sequence[str], reading: Reading) -> tuple[str, Array | Rows]:
    """Return the array of the first of the names, or the only one; several arrays ``(n,)`` are columns of a table."""
    where, others = str(source.path), (*LABELS.values(), OTHER_LABELS, TEST)
    found = {name: read for name, read in source.arrays.items() if name not in others}
    wanted = names if reading.array is None else (reading.array,)
    here = {*found, *source.tables}
    only = here if len(here) == 1 and reading.array is None else ()
    name = next((name for name in (*wanted, *only) if name in here), None)
    if name is None:
        columns = {} if source.tables or reading.array is not None else {name: read() for name, read in found.items()}
        shapes = {column.shape for column in columns.values()}
        if len(shapes) == 1 and len(shapes.pop()) == 1:
            return "data", as_rows(columns, reading, where)
        held = ", ".join(source.arrays) or "none"
        raise ValueError(
            f"{where} must hold one array, {' or '.join(wanted)}, or columns (n,) of one length; it holds {held}; "
            "data.array=NAME chooses one"
        )
    if name in source.tables:
        return name, as_rows(source.tables[name](), reading, where)
    array: NDArray[Any] = source.arrays[name]()
    if array.dtype.names is not None:
        return name, as_rows({field: array[field] for field in array.dtype.names}, reading, where)
    return name, array


def _labels(array: Array | Callable[[], Array] | None, count: int, where: str) -> Tensor | None:
    """Read labels, if there are any; leave out arrays that are no labels, with a warning."""
    if array is None:
        return None
    try:
        return as_labels(array() if callable(array) else array, count, where)
    except ValueError as error:
        warn(f"{error}; they are left out")
        return None


def _mask(source: Source, count: int) -> tuple[Tensor, Tensor] | None:
    """Return which items are for training and which are held out, where the source says so."""
    if TEST not in source.arrays:
        return None
    mask: NDArray[Any] = source.arrays[TEST]()
    if mask.dtype != np.bool_ or mask.shape != (count,) or mask.all() or not mask.any():
        raise ValueError(f"{source.path}, {TEST}: it must be true for some of the {count:,} items, booleans ({count},)")
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def _note(where: str, stored: tuple[int, ...], x: Tensor) -> str:
    """Return the line that says what items were taken for."""
    kind = kind_of_axes(x.ndim - 1)
    taken = "as they are" if kind == AUTO else f"as {KINDS[kind]} of shape {tuple(x.shape[1:])}"
    return f"{where}: items {stored} are taken {taken}; data.kind (--kind) and data.layout say otherwise"
