"""Tables of named columns, made into rows of numbers: every column that is no number is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sdediff.data.arrays import Array
from sdediff.data.entries import kind_of
from sdediff.data.reading import DROP, Reading
from sdediff.data.remarks import listed, warn

Table = Mapping[str, Array]
"""Columns ``(n,)`` by name; missing numbers are NaN."""

_SHOWN = 20  # characters of an entry in a message


class Rows(NamedTuple):
    """Rows ``(n, D)`` with the names of their columns, and the class of each row, if there are labels."""

    rows: Array
    names: tuple[str, ...]
    labels: Array | None
    classes: tuple[str, ...]


def as_rows(table: Table, reading: Reading, where: str) -> Rows:
    """Return a table as rows of float64; text, dates and other columns that are no numbers are dropped or refused.

    Raises:
        ValueError: for a column that is no number, unless it is to be dropped; for no column of numbers; for a label
            that is no column.
    """
    if reading.label is not None and reading.label not in table:
        raise ValueError(f"{where}: no column {reading.label!r} for labels; it has {', '.join(map(str, table))}")
    columns = {str(name): column for name, column in table.items() if name != reading.label}
    other = {name: _described(column) for name, column in columns.items() if column.dtype.kind not in "biuf"}
    if other:
        named = (
            f"{len(other)} of {len(columns)} columns are no numbers: {listed(f'{k} ({v})' for k, v in other.items())}"
        )
        if reading.text != DROP:
            raise ValueError(
                f"{where}: {named}; --set data.text=drop leaves them out, data.label=NAME makes one the classes"
            )
        warn(f"{where}: {named}; they are left out")
    names = tuple(name for name in columns if name not in other)
    if not names:
        raise ValueError(f"{where}: no column holds numbers")
    rows = np.stack([columns[name].astype(np.float64) for name in names], axis=1)
    labels, classes = (None, ()) if reading.label is None else _classes(table[reading.label], reading.label, where)
    return Rows(rows, names, labels, classes)


def _described(column: Array) -> str:
    """Return the kind of a column that is no number and, of text, the first entry that is none."""
    kind = kind_of(column.dtype)
    odd = next((text for text in map(str, column) if not is_number(text)), None) if column.dtype.kind == "U" else None
    return kind if odd is None else f"{kind}, as {odd[:_SHOWN]!r}"


def is_number(text: str) -> bool:
    """Return whether an entry of a table is a number, or empty."""
    try:
        float(text.strip().strip('"') or "nan")
    except ValueError:
        return False
    return True


def _classes(column: Array, name: str, where: str) -> tuple[Array, tuple[str, ...]]:
    """Return labels as whole numbers from 0 on, and the names of the classes where they are text."""
    if column.dtype.kind == "f" and np.isfinite(column).all() and (column == column.round()).all():
        column = column.astype(np.int64)
    if column.dtype.kind in "biu":
        return column, ()
    if column.dtype.kind not in "US":
        raise ValueError(f"{where}: labels must be whole numbers or text, not {kind_of(column.dtype)} ({name})")
    found, labels = np.unique(column, return_inverse=True)
    return labels, tuple(map(str, found))
