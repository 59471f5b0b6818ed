r"""Integer data as a density: uniform dequantisation, its volume accounted for.

Level k owns the bin of width ``delta = (high - low) / (levels - 1)`` about ``low + k delta``. With v uniform in it,

    log P(k)  >=  E[log p(v)] + D log delta

by Jensen's inequality (Theis et al. 2016): the mean over draws is a lower bound on the log-probability of the integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.data.levels import bin_width, to_values
from sdediff.noise import NoiseSource
from sdediff.sampling import check_state
from sdediff.types import DataInfo

_STAGE = 2  # of the noise source: apart from the solvers' and the probes'


def integer_data(
    x: Tensor, known: DataInfo | None, levels: int | None = None, low: float | None = None, high: float | None = None
) -> DataInfo:
    """What integers mean to a model: its own levels and range, or those given.

    Args:
        x: integer tensor ``(B, *shape)``, entries ``0 .. levels - 1``.
        known: the model's data where known.
        levels: number of levels, instead of the model's.
        low: the model's value for level 0, instead of the model's own.
        high: the model's value for the highest level, likewise.

    Raises:
        ValueError: for float tensors, if the number of levels is unknown or below 2, or for an empty range.
    """
    if x.is_floating_point() or x.is_complex():
        raise ValueError(
            f"bits/dim exist for integer data only (levels 0, 1, ...); came {x.dtype}. "
            "For continuous data ask log_likelihood for nats"
        )
    info = DataInfo(tuple(x.shape[1:])) if known is None else known
    info = info._replace(
        levels=info.levels if levels is None else levels,
        low=info.low if low is None else low,
        high=info.high if high is None else high,
    )
    if info.levels is None:
        raise ValueError("integer data need the number of levels: the model does not know it, give levels=...")
    if info.levels < 2:
        raise ValueError(f"levels must be at least 2, not {info.levels}")
    if not -math.inf < info.low < info.high < math.inf:
        raise ValueError(f"the range needs low < high, not {info.low} and {info.high}")
    return info


def check_items(x: Tensor, data: DataInfo | None) -> None:
    """Refuse what is not a batch of the model's items."""
    if not isinstance(x, Tensor) or x.is_floating_point():
        check_state(x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"the data must be a non-empty batch (B, *shape), not {tuple(x.shape)}")
    if data is not None and tuple(x.shape[1:]) != tuple(data.shape):
        raise ValueError(f"the model's items have shape {tuple(data.shape)}, not {tuple(x.shape[1:])}")


def network_dtype(model: torch.nn.Module) -> torch.dtype:
    """The dtype of a network's weights, torch's default where it has none: that of dequantised values."""
    parameter = next(model.parameters(), None)
    return torch.get_default_dtype() if parameter is None else parameter.dtype


def dequantise(x: Tensor, info: DataInfo, noise: NoiseSource, draw: int) -> Tensor:
    """Values uniform in the bins of the integers ``x``, shape of ``x``; draw number ``draw`` of each sample."""
    uniform = torch.special.ndtr(noise.normal(draw, stage=_STAGE))
    return to_values(x, info, u=uniform, dtype=noise.dtype)


def log_bin_volume(info: DataInfo, shape: Sequence[int]) -> float:
    """``D log delta`` in nats, the log-volume of one item's bin."""
    return math.prod(shape) * math.log(bin_width(info))
