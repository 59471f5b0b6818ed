r"""What a noisy state says of the integers behind it, and what the last step of a chain says of the data.

Integers have one of two decoders. The discretised Gaussian of Ho et al. (2020, eq. 13) gives level k the mass that
``N(mean, std^2)`` puts on its bin, the lowest and the highest level all that lies beyond: :func:`log_bin_mass`. The
posterior of Kingma et al. (2021, section 3.3) gives it ``N(z; v_k, std^2)`` over the sum of these over all levels, with
``v_k`` the level's value: :func:`log_level_posterior`. Continuous data have the Gaussian's density.

Standard deviations are in the model's units: a float, or a tensor that broadcasts against ``(B, *shape)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.data.levels import bin_width, level_count, plain
from sdediff.numerics import LOG_2PI, log1mexp, softplus, sum_features
from sdediff.types import DataInfo

_BUDGET = 1 << 20  # entries of the table of levels by data that is made at a time


def log_gaussian(x0: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Log-density of ``N(mean, std^2)`` at continuous data, nats: ``(B, *shape)`` to float64 ``(B,)``."""
    std = _as_tensor(std, x0)
    return -sum_features(0.5 * (((x0.double() - mean.double()) / std).square() + LOG_2PI) + std.log())


def log_discretised_gaussian(x: Tensor, mean: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Log-probability of integers under the discretised Gaussian, nats: ``(B, *shape)`` to float64 ``(B,)``.

    Args:
        x: levels, integer ``(B, *shape)``.
        mean: in the model's units, ``(B, *shape)``.
        std: in the model's units.
        info: levels and range.
    """
    return sum_features(log_bin_mass(x, mean, std, info))


def log_bin_mass(x: Tensor, mean: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Log of the mass of each entry's bin, float64 ``(B, *shape)``; exact to rounding however far in the tail."""
    top, width, std, x = level_count(info) - 1, bin_width(info), _as_tensor(std, x), plain(x)
    offset = (info.low + width * x.double() - mean.double()) / std
    half = 0.5 * width / std
    below = torch.where(x <= 0, -math.inf, offset - half)
    above = torch.where(x >= top, math.inf, offset + half)
    # The normal law is symmetric: turn every bin to the lower tail, where its two logarithms keep their digits.
    mirrored = below + above > 0.0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    log_above: Tensor = torch.special.log_ndtr(above)
    return log_above + log1mexp(torch.special.log_ndtr(below) - log_above)


def log_level_posterior(x: Tensor, z: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Log of ``N(z; v_x, std^2)`` over its sum over the levels, float64 ``(B, *shape)``; exact however small.

    Args:
        x: levels, integer ``(B, *shape)``.
        z: values about the levels, ``(B, *shape)``: a noisy state over its alpha.
        std: of the noise about the levels in the model's units: sigma over alpha.
        info: levels and range.
    """
    count, width, std, x = level_count(info), bin_width(info), _as_tensor(std, x), plain(x)
    residual = (z.double() - info.low) / width - x.double()  # in bins
    rate = 0.5 * (width / std).square()
    chunk = max(1, _BUDGET // max(1, x.numel()))
    rivals = torch.full_like(residual, -math.inf)  # log of what all other levels have over what level x has
    for start in range(0, count, chunk):
        levels = torch.arange(start, min(start + chunk, count), device=x.device).reshape(-1, *(1,) * x.ndim)
        steps = (levels - x).double()
        # (z - v_j)^2 - (z - v_x)^2 in bins, without the difference of the squares
        odds = torch.where(steps == 0.0, -math.inf, -rate * steps * (steps - 2.0 * residual))
        rivals = torch.logaddexp(rivals, torch.logsumexp(odds, dim=0))
    return -softplus(rivals)


def _as_tensor(std: float | Tensor, x: Tensor) -> Tensor:
    """Float64, on the device of ``x``."""
    return torch.as_tensor(std, dtype=torch.float64, device=x.device)
