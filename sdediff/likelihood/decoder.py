r"""What the last step of a chain says of the data: the reconstruction term L_0.

Integers have the discretised Gaussian of Ho et al. (2020, eq. 13): level k gets the mass that ``N(mean, std^2)`` puts
on its bin, the lowest and the highest level all that lies beyond. Continuous data have the Gaussian's density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.data.levels import bin_width, level_count
from sdediff.numerics import log1mexp, standard_normal_log_prob, sum_features
from sdediff.types import DataInfo


def log_gaussian(x0: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of ``N(mean, std^2 I)`` at continuous data, nats: ``(B, *shape)`` to float64 ``(B,)``."""
    return standard_normal_log_prob((x0.double() - mean.double()) / std) - x0[0].numel() * math.log(std)


def log_discretised_gaussian(x: Tensor, mean: Tensor, std: float, info: DataInfo) -> Tensor:
    """Log-probability of integers under the discretised Gaussian, nats: ``(B, *shape)`` to float64 ``(B,)``.

    Args:
        x: levels, integer ``(B, *shape)``.
        mean: in the model's units, ``(B, *shape)``.
        std: in the model's units.
        info: levels and range.
    """
    return sum_features(log_bin_mass(x, mean, std, info))


def log_bin_mass(x: Tensor, mean: Tensor, std: float, info: DataInfo) -> Tensor:
    """Log of the mass of each entry's bin, float64 ``(B, *shape)``; exact to rounding however far in the tail."""
    top, width = level_count(info) - 1, bin_width(info)
    offset = (info.low + width * x.double() - mean.double()) / std
    half = 0.5 * width / std
    below = torch.where(x <= 0, -math.inf, offset - half)
    above = torch.where(x >= top, math.inf, offset + half)
    # The normal law is symmetric: turn every bin to the lower tail, where its two logarithms keep their digits.
    mirrored = below + above > 0.0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    log_above: Tensor = torch.special.log_ndtr(above)
    return log_above + log1mexp(torch.special.log_ndtr(below) - log_above)
