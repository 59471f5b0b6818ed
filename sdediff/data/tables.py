"""CSV and Parquet files, read by pyarrow (``pip install 'sdediff[tables]'``)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sdediff.data.arrays import Array, readable
from sdediff.data.columns import Table, is_number
from sdediff.extras import extra

SUFFIXES = (".csv", ".tsv", ".parquet")

_DELIMITERS = ",;\t"


def read_table(path: Path) -> Table:
    """Read a file of columns; a first line of CSV that is all numbers is a row, and the columns get numbers as names.

    Raises:
        ValueError: if the file is damaged, two columns have one name, or pyarrow is not installed.
    """
    with extra("tables", f"{path}: reading tables needs"):
        import pyarrow  # slow to import, and used nowhere else
    with readable(path):
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
        again = [name for name, count in Counter(table.column_names).items() if count > 1]
        if again:
            raise ValueError(f"several columns are called {again[0]!r}")
        return {name: _column(table.column(name), pyarrow) for name in table.column_names}


def _read_parquet(path: Path) -> Any:
    with extra("tables"):
        from pyarrow import parquet

    return parquet.read_table(path)


def _read_csv(path: Path) -> Any:
    with extra("tables"):
        from pyarrow import csv

    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8: save it in that encoding") from None
    delimiter = max(_DELIMITERS, key=first.count)
    return csv.read_csv(
        path,
        csv.ReadOptions(autogenerate_column_names=all(map(is_number, first.strip().split(delimiter)))),
        csv.ParseOptions(delimiter=delimiter),
        csv.ConvertOptions(strings_can_be_null=False),
    )


def _column(column: Any, pyarrow: Any) -> Array:
    """Return a column as numbers with NaN for what is missing, text, or an array of another kind."""
    kind, types = column.type, pyarrow.types
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return np.array(["" if text is None else text for text in column.to_pylist()], dtype=str)
    if types.is_boolean(kind):
        column = column.cast(pyarrow.int8())
    elif types.is_decimal(kind):
        column = column.cast(pyarrow.float64())
    array: Array = column.to_numpy()
    return array
