"""Tables for density estimation, prepared as Papamakarios et al. (2017, appendix D) prepare theirs.

A density of columns that repeat or of numbers on a grid has no bound, so that what is left of a table is continuous:
columns whose commonest number is that of more than a fifth of the rows are left out, and of two columns correlated by
more than 0.98 the later one; numbers are dequantised by uniform noise as wide as the median gap between neighbouring
numbers of their column. Columns are standardised by the training rows: nats are in these units.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

COMMONEST, CORRELATED, VALIDATION = 0.2, 0.98, 0.1

Array = NDArray[np.float64]


class Parts(NamedTuple):
    """Rows ``(n, D)`` in units of the training rows: for training, for choosing, and for reporting."""

    train: Array
    validation: Array
    test: Array


def prepared(path: Path, seed: int = 0) -> Parts:
    """Return the parts of a table, an ``.npz`` of ``data`` ``(n, D)`` and ``test_mask`` ``(n,)``."""
    with np.load(path) as file:
        data, test = np.asarray(file["data"], dtype=np.float64), file["test_mask"]
    rng = np.random.default_rng(seed)
    x = np.stack([column + rng.uniform(-0.5, 0.5, len(column)) * gap(column) for column in kept(data).T], axis=1)
    order = rng.permutation(np.flatnonzero(~test))
    first = round(VALIDATION * len(order))
    mean, scale = x[order[first:]].mean(axis=0), x[order[first:]].std(axis=0)
    return Parts(*((x[rows] - mean) / scale for rows in (order[first:], order[:first], np.flatnonzero(test))))


def kept(data: Array) -> Array:
    """Return the columns that repeat neither a number nor another column."""
    counts = [np.unique(column, return_counts=True)[1].max() for column in data.T]
    columns = data[:, np.array(counts) <= COMMONEST * len(data)]
    correlation = np.abs(np.corrcoef(columns, rowvar=False))
    chosen: list[int] = []
    for column in range(columns.shape[1]):
        if not chosen or correlation[column, chosen].max() <= CORRELATED:
            chosen.append(column)
    return columns[:, chosen]


def gap(column: Array) -> float:
    """Return the median gap between neighbouring numbers."""
    return float(np.median(np.diff(np.unique(column))))
