"""Conversion of arrays to tensors: checked items, in the smallest type that PyTorch handles, and class labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdediff.data.arrays import Array
from sdediff.data.levels import LEVEL_LIMIT, extremes
from sdediff.data.storage import single_precision
from sdediff.numerics import in_parts
from sdediff.types import DataInfo

_EXAMINED = 1 << 26  # most entries whose resolution is examined


def as_items(array: Array, where: str, *, gaps: bool = False) -> Tensor:
    """Return an array as items ``(n, ...)``: float32, or integers of their own type; views where that is possible.

    Bytes stay bytes, unexamined; a wider unsigned type becomes the signed one of its width where its values
    allow that, which costs nothing.

    Args:
        array: items ``(n, ...)``.
        where: name of the data.
        gaps: whether floats may be NaN, for values that are missing.

    Raises:
        ValueError: for another number type, no items, values that are not finite or are no levels.
    """
    if array.dtype.kind not in "biuf":
        cure = ": df.select_dtypes('number') has a DataFrame's numbers" * array.dtype.hasobject
        raise ValueError(f"{where}: data must be integers or floats, not {kind_of(array.dtype)}{cure}")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{where}: data must be an array (n, ...) with at least one item, not shape {array.shape}")
    if array.dtype.kind == "f":
        _check_resolution(array, where)
        return _finite(torch.from_numpy(single_precision(array)), where, gaps=gaps)
    if array.dtype.kind == "b":
        return torch.from_numpy(array.view(np.uint8) != 0).view(torch.int8)  # files may hold other bytes than 0 and 1
    data = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    if data.dtype == torch.uint8:
        return data
    low, high = extremes(data)
    if low < 0 or high >= LEVEL_LIMIT:
        raise ValueError(f"{where}: integer data are levels 0 .. {LEVEL_LIMIT - 1}; came {low} to {high}")
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}.get(data.dtype)
    return data if signed is None or high > torch.iinfo(signed).max else data.view(signed)


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return a word for a type of numbers, and for one that holds none."""
    return {"U": "text", "S": "text", "T": "text", "M": "dates", "m": "times", "O": "objects"}.get(
        dtype.kind, str(dtype)
    )


def _check_resolution(array: Array, where: str) -> None:
    """Refuse rows in double precision of which single precision would leave too little.

    Raises:
        ValueError: for a column that changes by no more than a thousand steps of single precision, or exceeds it.
    """
    if array.ndim != 2 or array.dtype.itemsize <= 4:
        return
    array = array[: max(1, _EXAMINED // array.shape[1])]
    array = array[np.isfinite(array).all(axis=1)]
    if not len(array):
        return
    largest = np.abs(array).max(axis=0)
    if (largest > np.finfo(np.float32).max).any():
        column = int(largest.argmax())
        raise ValueError(f"{where}: column {column} reaches {largest[column]:.3g}, beyond single precision: rescale it")
    deviation, spacing = array.std(axis=0), np.spacing(largest.astype(np.float32)).astype(np.float64)
    constant = np.isclose(array, array[:1], rtol=1e-12, atol=0.0).all(axis=0)
    lost = (deviation < 1e3 * spacing) & ~constant
    if lost.any():
        column = int(lost.argmax())
        raise ValueError(
            f"{where}: single precision resolves column {column} in steps of {spacing[column]:.3g} only, beside a "
            f"deviation of {deviation[column]:.3g}: subtract {array[:, column].mean():.6g} from it"
        )


def _finite(data: Tensor, where: str, *, gaps: bool) -> Tensor:
    def good(part: Tensor) -> Tensor:
        return part.isfinite() | part.isnan() if gaps else part.isfinite()

    if count := data.numel() - sum(int(good(part).sum()) for part in in_parts(data)):
        first = int((~good(data)).flatten(1).any(dim=1).nonzero()[0])
        are = f"{'' if gaps else 'NaN, '}infinite or beyond single precision"
        raise ValueError(
            f"{where}: {count} of {data.numel()} entries are {are}; leave those items out (the first is item {first})"
        )
    return data


def levels_of(*parts: Tensor) -> int | None:
    """Return how many levels items have: 256 of bytes, else up to the largest, at least 2; ``None`` of floats."""
    if parts[0].is_floating_point():
        return None
    return 256 if parts[0].dtype == torch.uint8 else max(2, 1 + max(extremes(part)[1] for part in parts))


def as_labels(array: Array, count: int, where: str) -> Tensor:
    """Return an array as the class labels of ``count`` items, int64 ``(n,)``.

    Raises:
        ValueError: if they are not one whole number of at least 0 an item.
    """
    if array.shape not in ((count,), (count, 1)):
        raise ValueError(f"{where}: labels must be one an item, ({count},), not {array.shape}")
    if array.dtype.kind not in "biu" or int(array.min()) < 0:
        raise ValueError(f"{where}: labels must be whole numbers from 0 on, not {array.dtype}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def info_of(name: str, *parts: Tensor) -> DataInfo:
    """Return the description of items, given all parts of them."""
    return DataInfo(shape=tuple(parts[0].shape[1:]), levels=levels_of(*parts), name=name)
