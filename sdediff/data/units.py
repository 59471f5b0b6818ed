r"""The units of continuous rows, and the model's coordinates.

A network and a process need values of about unit size; the columns of a table have units of their own. With the shift m
and the scale s of :class:`~sdediff.types.DataInfo`, a number a column,

    z = (x - m) / s,    log p(x) = log p(z) - sum of log s.

The network, the process, its moments and every state of a solve are in the model's coordinates z. Functions
that take or return data convert them once: ``sample``, ``decode``, ``encode``, ``interpolate``, ``log_likelihood`` and
``elbo`` are in terms of x. Without shift and scale the two are the same.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from sdediff.data.levels import bin_width
from sdediff.gaussian import Moments
from sdediff.numerics import wide
from sdediff.types import DataInfo


def to_model(x: Tensor, info: DataInfo | None) -> Tensor:
    """Return data in the model's coordinates.

    Args:
        x: data ``(..., *shape)`` in their units, floats; the result has their dtype.
        info: description of the data; ``None`` for unknown data.

    Raises:
        ValueError: if the shift or the scale do not fit the items.
    """
    if info is None or not has_units(info) or not x.is_floating_point():
        return x
    y = wide(x)
    shift, scale = _units(info, y)
    return ((y - shift) / scale).to(x.dtype)


def to_data(z: Tensor, info: DataInfo | None) -> Tensor:
    """Return values of the model's coordinates in the data's units: the inverse of :func:`to_model`.

    Raises:
        ValueError: if the shift or the scale do not fit the items.
    """
    if info is None or not has_units(info):
        return z
    y = wide(z)
    shift, scale = _units(info, y)
    return (shift + scale * y).to(z.dtype)


def log_scale(info: DataInfo | None) -> float:
    """Return the sum of log s in nats: a log-density in the model's coordinates less this is one in the data's units.

    Raises:
        ValueError: if the scale does not fit the items.
    """
    return 0.0 if info is None else math.fsum(map(math.log, check_units(info)[1]))


def has_units(info: DataInfo) -> bool:
    """Return whether the model's coordinates differ from the data's units."""
    return info.shift is not None or info.scale is not None


def standardised(train: Tensor, info: DataInfo) -> DataInfo:
    """Return the description with the shift and scale that give each column of rows mean 0 and deviation 1.

    Args:
        train: training rows ``(n, D)``; a constant column keeps its scale.
        info: description of the data; returned as it is for all but continuous rows.
    """
    if info.levels is not None or len(info.shape) != 1:
        return info
    found = Moments.fit(train, covariance="diagonal", shrink=False)
    scale = torch.where((train == train[0]).all(dim=0), 1.0, found.variances.sqrt())
    return info._replace(shift=tuple(found.mean.tolist()), scale=tuple(scale.tolist()))


def fit_moments(train: Tensor, info: DataInfo) -> Moments:
    """Return mean and covariance of data in the model's coordinates; of integers, with dequantisation noise.

    Args:
        train: items ``(n, *shape)``: levels, or floats in the data's units.
        info: description of the data.
    """
    if train.is_floating_point():
        return Moments.fit(train, transform=partial(to_model, info=info)) if has_units(info) else Moments.fit(train)
    found, width = Moments.fit(train), bin_width(info)
    return Moments(info.low + width * found.mean, width**2 * (found.variances + 1.0 / 12.0), found.basis)


def check_units(info: DataInfo) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shift and scale, a number an entry of continuous rows; empty tuples where there are none.

    Raises:
        ValueError: if they are no such numbers.
    """
    if not has_units(info):
        return (), ()
    if len(info.shape) != 1 or info.levels is not None:
        raise ValueError(f"only continuous rows (D,) have a shift and a scale, not items {info.shape} of levels")
    size = info.shape[0]
    shift = (0.0,) * size if info.shift is None else info.shift
    scale = (1.0,) * size if info.scale is None else info.scale
    if (len(shift), len(scale)) != (size, size):
        raise ValueError(f"rows of {size} entries need as many shifts and scales, not {len(shift)} and {len(scale)}")
    if not all(math.isfinite(m) and 0.0 < s < math.inf for m, s in zip(shift, scale, strict=True)):
        raise ValueError("a shift must be finite, a scale finite and above 0")
    return shift, scale


def _units(info: DataInfo, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale as tensors ``(D,)`` of the dtype and device of items."""
    shift, scale = check_units(info)
    if like.shape[-1:] != info.shape:
        raise ValueError(f"the model's items have shape {info.shape}, not {tuple(like.shape[1:])}")
    return like.new_tensor(shift), like.new_tensor(scale)
