"""Memory of data sets: arrays beyond a gigabyte lie in temporary files, of which memory holds what is in use.

The files have no name, so that they are gone with their arrays; they lie where temporary files do (``TMPDIR``).
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from sdediff.data.arrays import Array

IN_MEMORY = 1 << 30
"""Bytes of the largest array that is held in memory."""

_AT_A_TIME = 1 << 24  # bytes


def empty(shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Return an array of undefined content, in memory or in a temporary file.

    Raises:
        OSError: if there is no room for the file.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, kind)
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < size:
        raise OSError(f"{size:,} bytes of data do not fit into {folder}; TMPDIR names another folder")
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, kind, "w+", shape=tuple(shape))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the items ``x[index]``, a few at a time where they are many."""
    if len(index) * x[:1].nbytes <= IN_MEMORY:
        return x[index]
    taken = torch.from_numpy(empty((len(index), *x.shape[1:]), x[:0].numpy().dtype))
    size = max(1, _AT_A_TIME // x[:1].nbytes)
    for start in range(0, len(index), size):
        taken[start : start + size] = x[index[start : start + size]]
    return taken


def compact(x: Tensor) -> Tensor:
    """Return items with their entries side by side; a view that memory cannot hold stays a view."""
    return x.contiguous() if x.nbytes <= IN_MEMORY else x


def single_precision(array: Array) -> Array:
    """Return an array of floats ``(n, ...)`` in single precision of native order, itself where it is that already.

    What single precision does not hold becomes infinite.
    """
    if array.nbytes <= IN_MEMORY or array.dtype == np.float32:
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)
    converted = empty(array.shape, np.float32)
    size = max(1, _AT_A_TIME // array[:1].nbytes)
    with np.errstate(over="ignore"):
        for start in range(0, len(array), size):
            converted[start : start + size] = array[start : start + size]
    return converted
