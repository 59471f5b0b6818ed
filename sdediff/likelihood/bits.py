r"""Bits a dimension of integer data, over several dequantisations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.likelihood.dequantize import check_items, integer_data
from sdediff.likelihood.ode import log_likelihood


class BitsPerDim(NamedTuple):
    """Bits a dimension; smaller is better.

    Attributes:
        bits_per_dim: of each item, the mean over dequantisations, ``(B,)``: in the mean an upper bound on the cost.
        standard_error: of each item's mean, from the spread of the draws, which holds dequantisation and probes,
            ``(B,)``; NaN for a single draw.
        spread: standard deviation of one draw, ``(B,)``; NaN for a single draw.
        mean: over the items.
        mean_standard_error: of ``mean`` as an estimate for the data's population, from the spread of the items; NaN
            for a single item.
        nfe: forwards of the network.
    """

    bits_per_dim: Tensor
    standard_error: Tensor
    spread: Tensor
    mean: float
    mean_standard_error: float
    nfe: int


def bits_per_dim(
    model: Denoiser,
    x: Tensor,
    *,
    levels: int | None = None,
    low: float | None = None,
    high: float | None = None,
    samples: int = 1,
    **options: Any,
) -> BitsPerDim:
    """Bits a dimension of integers, dequantised uniformly, the volume of the bins accounted for.

    Args:
        model: a denoiser with its process.
        x: integers ``(B, *shape)``, entries ``0 .. levels - 1``.
        levels: number of levels; the model's own by default.
        low: the model's value for level 0; its own by default.
        high: the model's value for the highest level; its own by default.
        samples: dequantisations of each item, with probes of their own.
        **options: of :func:`~sdediff.likelihood.ode.log_likelihood`.

    Raises:
        ValueError: for float data, integers outside the levels, unknown levels, or as ``log_likelihood``.
        FloatingPointError: if a result is not finite.
    """
    check_items(x, model.data)
    info = integer_data(x, model.data, levels, low, high)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    results = [log_likelihood(model, x, data=info, draw=draw, **options) for draw in range(samples)]
    draws = torch.stack([result.bits_per_dim for result in results])
    items = draws.mean(dim=0)
    spread = draws.std(dim=0) if samples > 1 else torch.full_like(items, math.nan)
    of_mean = float(items.std()) / math.sqrt(len(items)) if len(items) > 1 else math.nan
    return BitsPerDim(
        items, spread / math.sqrt(samples), spread, float(items.mean()), of_mean, sum(r.nfe for r in results)
    )
