"""Integer levels and the values that a model sees.

Level k of K sits at ``low + k delta`` with ``delta = (high - low) / (K - 1)``: the convention of the discretised
decoder of Ho et al. (2020, eq. 13). A level owns the bin of width ``delta`` about it, so dequantised data reach half a
bin beyond ``low`` and ``high``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.types import DataInfo


def level_count(info: DataInfo) -> int:
    """The number of levels.

    Raises:
        ValueError: if the data are continuous.
    """
    if info.levels is None:
        raise ValueError(f"the data {info.name!r} are continuous: they have no integer levels")
    return info.levels


def bin_width(info: DataInfo) -> float:
    """``delta``, the distance between two levels in the model's units.

    Raises:
        ValueError: if the data are continuous.
    """
    return (info.high - info.low) / (level_count(info) - 1)


def to_values(x_int: Tensor, info: DataInfo, u: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Levels to the model's values.

    Args:
        x_int: integer tensor with entries in ``0 .. levels - 1``.
        info: of the data.
        u: uniform numbers in [0, 1) of the same shape, which place each entry within its bin (dequantisation);
            without them entries sit at the centres.
        dtype: of the result; that of ``u``, else the default one.

    Raises:
        ValueError: for entries that are no levels.
    """
    levels = level_count(info)
    if x_int.is_floating_point() or x_int.is_complex():
        raise ValueError(f"levels must be integers 0 .. {levels - 1}, not {x_int.dtype}")
    if x_int.numel() and not 0 <= int(x_int.min()) <= int(x_int.max()) < levels:
        raise ValueError(f"levels must lie in 0 .. {levels - 1}; came {int(x_int.min())} to {int(x_int.max())}")
    if dtype is None:
        dtype = torch.get_default_dtype() if u is None else u.dtype
    position = x_int.to(dtype) if u is None else x_int.to(dtype) + (u.to(dtype) - 0.5)
    return info.low + bin_width(info) * position


def to_levels(x: Tensor, info: DataInfo) -> Tensor:
    """The nearest level of each value, clamped to the range: an integer tensor of the shape of ``x``."""
    return ((x - info.low) / bin_width(info)).round().clamp(0, level_count(info) - 1).to(torch.int64)
