"""Integer levels and their values in the model's coordinates.

Level k of K sits at ``low + k delta`` with ``delta = (high - low) / (K - 1)``: the convention of the discretised
decoder of Ho et al. (2020, eq. 13). Each level has a bin of width ``delta`` about it, so dequantised data reach half a
bin beyond ``low`` and ``high``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.numerics import in_parts
from sdediff.types import DataInfo

LEVEL_LIMIT = 1 << 16
"""Largest number of levels that the readers accept."""

_BARE = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


def level_count(info: DataInfo) -> int:
    """Return the number of levels.

    Raises:
        ValueError: if the data are continuous.
    """
    if info.levels is None:
        raise ValueError(f"the data {info.name!r} are continuous: they have no integer levels")
    return info.levels


def bin_width(info: DataInfo) -> float:
    """Return ``delta``, the distance between two levels in the model's units.

    Raises:
        ValueError: if the data are continuous.
    """
    return (info.high - info.low) / (level_count(info) - 1)


def plain(x_int: Tensor) -> Tensor:
    """Return integers in a type that every operation supports: booleans and wider unsigned types as ``int64``.

    PyTorch stores, indexes and converts ``uint16``, ``uint32`` and ``uint64``, but neither compares nor subtracts them.
    """
    return x_int.to(torch.int64) if x_int.dtype in _BARE else x_int


def extremes(x_int: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest of integers ``(n, ...)`` of any type, a part of the items at a time."""
    ends = [plain(part).aminmax() for part in in_parts(x_int)]
    return min(int(end.min) for end in ends), max(int(end.max) for end in ends)


def to_values(x_int: Tensor, info: DataInfo, u: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Convert levels to the model's values.

    Args:
        x_int: integer tensor with entries in ``0 .. levels - 1``.
        info: description of the data, with the number of levels.
        u: uniform numbers in [0, 1) of the same shape, which place each entry within its bin (dequantisation);
            without them entries sit at the centres.
        dtype: dtype of the result; that of ``u``, else the default one.

    Raises:
        ValueError: for entries that are no levels.
    """
    levels = level_count(info)
    if x_int.is_floating_point() or x_int.is_complex():
        raise ValueError(f"levels must be integers 0 .. {levels - 1}, not {x_int.dtype}")
    low, high = extremes(x_int) if x_int.numel() else (0, 0)
    if low < 0 or high >= levels:
        raise ValueError(f"levels must lie in 0 .. {levels - 1}; came {low} to {high}")
    if dtype is None:
        dtype = torch.get_default_dtype() if u is None else u.dtype
    return place(x_int, info, None if u is None else u.to(dtype), dtype)


def place(x_int: Tensor, info: DataInfo, u: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Convert levels to the model's values as :func:`to_values` does, without checking them."""
    position = x_int.to(dtype) if u is None else x_int.to(dtype) + (u - 0.5)
    return info.low + bin_width(info) * position


def to_levels(x: Tensor, info: DataInfo) -> Tensor:
    """Return the nearest level of each value, clamped to the range: an integer tensor of the shape of ``x``."""
    return ((x - info.low) / bin_width(info)).round().clamp(0, level_count(info) - 1).to(torch.int64)
