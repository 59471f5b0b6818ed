r"""Decoders, the probability of data given a noisy state, and the reconstruction term of a bound.

Integers have one of two decoders. The discretised Gaussian of Ho et al. (2020, eq. 13) gives level k the mass that
``N(mean, std^2)`` puts on its bin, the lowest and the highest level all that lies beyond: :func:`log_bin_mass`. The
posterior of Kingma et al. (2021, section 3.3) gives it ``N(z; v_k, std^2)`` over the sum of these over all levels, with
``v_k`` the level's value: :func:`log_level_posterior`. Continuous data have the Gaussian's density.

Standard deviations are in the model's units: a float, or a tensor that broadcasts against ``(B, *shape)``.

The reconstruction term of a bound is ``-log p(x | x_1)``. For it, ``"discretised"`` is a Gaussian about the denoiser's
x0, integrated over each level's bin (Ho et al. 2020, eq. 13). ``"levels"`` weighs the levels by how likely they make
the noisy state itself, entry by entry (Kingma et al. 2021, section 3.3): no forward, and the better one where the noise
is narrower than the bins and the denoiser's error is not; where the noise is wider, the denoiser is better. Continuous
data have a Gaussian density about the denoiser's x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.data.levels import bin_width, level_count, plain
from sdediff.denoiser import Denoiser
from sdediff.gaussian import GaussianErrors
from sdediff.numerics import LOG_2PI, choose, log1mexp, softplus, sum_features, wide, widest
from sdediff.types import DataInfo, Level, Split

_TABLE_ENTRIES = 1 << 20  # entries of the table of levels by data that are computed together


def log_gaussian(x0: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
    """Return the log-density of ``N(mean, std^2)`` at continuous data, nats: ``(B, *shape)`` to float64 ``(B,)``."""
    std = _as_tensor(std, x0)
    return -sum_features(0.5 * (((wide(x0) - wide(mean)) / std).square() + LOG_2PI) + std.log())


def log_discretised_gaussian(x: Tensor, mean: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Return the log-probability of integers under the discretised Gaussian, nats, float64 ``(B,)``.

    Args:
        x: levels, integer ``(B, *shape)``.
        mean: mean in the model's units, ``(B, *shape)``.
        std: standard deviation in the model's units.
        info: levels and range of the data.
    """
    return sum_features(log_bin_mass(x, mean, std, info))


def log_bin_mass(x: Tensor, mean: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Return the log-mass of each entry's bin, float64 ``(B, *shape)``, exact to rounding far in the tails."""
    top, width, std, x = level_count(info) - 1, bin_width(info), _as_tensor(std, x), plain(x)
    offset = (info.low + width * wide(x) - wide(mean)) / std
    half = 0.5 * width / std
    below = torch.where(x <= 0, -math.inf, offset - half)
    above = torch.where(x >= top, math.inf, offset + half)
    # The normal law is symmetric: bins are mirrored to the lower tail, where both logarithms keep their digits.
    mirrored = below + above > 0.0
    below, above = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    log_above: Tensor = torch.special.log_ndtr(above)
    return log_above + log1mexp(torch.special.log_ndtr(below) - log_above)


def log_level_posterior(x: Tensor, z: Tensor, std: float | Tensor, info: DataInfo) -> Tensor:
    """Return the log of ``N(z; v_x, std^2)`` over its sum over the levels, float64 ``(B, *shape)``, exact if tiny.

    Args:
        x: levels, integer ``(B, *shape)``.
        z: values about the levels, ``(B, *shape)``: a noisy state over its alpha.
        std: standard deviation of the noise in the model's units, sigma over alpha.
        info: levels and range of the data.
    """
    count, width, std, x = level_count(info), bin_width(info), _as_tensor(std, x), plain(x)
    residual = (wide(z) - info.low) / width - wide(x)  # in bins
    rate = 0.5 * (width / std).square()
    chunk = max(1, _TABLE_ENTRIES // max(1, x.numel()))
    others = torch.full_like(residual, -math.inf)  # log of the sum over all other levels, over that of level x
    for start in range(0, count, chunk):
        levels = torch.arange(start, min(start + chunk, count), device=x.device).reshape(-1, *(1,) * x.ndim)
        steps = wide(levels - x)
        # (z - v_j)^2 - (z - v_x)^2 in bins, without the difference of the squares
        odds = torch.where(steps == 0.0, -math.inf, -rate * steps * (steps - 2.0 * residual))
        others = torch.logaddexp(others, torch.logsumexp(odds, dim=0))
    return -softplus(others)


def _as_tensor(std: float | Tensor, x: Tensor) -> Tensor:
    """Return a standard deviation on the device of ``x``, in float64 where that has it."""
    return torch.as_tensor(std, dtype=widest(x.device), device=x.device)


LogProb = Callable[[Tensor, Tensor | float], Tensor]
"""Function from a decoder's mean ``(B, *shape)`` and standard deviation to log-probabilities, nats ``(B,)``."""


class Decoder(NamedTuple):
    """A distribution of the data given the state at the first level.

    Attributes:
        log_prob: log-probability of the data, given mean and standard deviation.
        denoised: whether its mean is the denoiser's x0, which takes a forward, or the noisy state over alpha.
        gaussian: whether it is a Gaussian density, whose cost is the denoiser's squared error.
    """

    log_prob: LogProb
    denoised: bool = True
    gaussian: bool = False


def density_decoder(x: Tensor) -> Decoder:
    """Return the decoder of continuous data."""
    return Decoder(lambda mean, std: log_gaussian(x, mean, std), gaussian=True)


def _discretised_decoder(x: Tensor, info: DataInfo) -> Decoder:
    return Decoder(lambda mean, std: log_discretised_gaussian(x, mean, std, info))


def _posterior_decoder(x: Tensor, info: DataInfo) -> Decoder:
    return Decoder(lambda mean, std: sum_features(log_level_posterior(x, mean, std, info)), denoised=False)


DECODERS: dict[str, Callable[[Tensor, DataInfo], Decoder]] = {
    "discretised": _discretised_decoder,
    "levels": _posterior_decoder,
}
"""Decoders of integer data, by name."""


def make_decoder(name: str | None, x: Tensor, info: DataInfo | None) -> Decoder:
    """Return the decoder of a batch, by default the discretised Gaussian of integers and the density of floats.

    Raises:
        ValueError: for an unknown name, or any name with continuous data.
    """
    if info is not None:
        return choose(DECODERS, "discretised" if name is None else name, "decoder")(x, info)
    if name is not None:
        raise ValueError(f"decoders are for integer data; continuous data have a density: leave out decoder={name!r}")
    return density_decoder(x)


def reconstruction_cost(
    model: Denoiser,
    x0: Tensor,
    eps: Tensor,
    level: Level[float],
    decoder: Decoder,
    std: Callable[[Split], float | Tensor],
    control: GaussianErrors,
) -> Tensor:
    """Return ``-log p(x | x_1)`` for one draw of the noise, nats, float64 ``(B,)``.

    Args:
        model: denoiser with its process.
        x0: data in the model's units, ``(B, *shape)``.
        eps: noise of the data's shape.
        level: level of the first instant.
        decoder: decoder of these data.
        std: standard deviation of a decoder about the denoiser's x0, a function of the split.
        control: control variate, errors with a given mean.
    """
    if not decoder.denoised:
        noise_std = math.exp(-level.half_log_snr)
        return -decoder.log_prob(wide(x0) + noise_std * wide(eps), noise_std)
    split = model(level.perturb(x0, eps), level)
    width = std(split)
    cost = -decoder.log_prob(split.x0, width)
    if not decoder.gaussian:
        return cost
    # The cost is a constant and half the squared error of the noise, times (sigma / alpha / std)^2.
    share = 0.5 if isinstance(width, Tensor) else 0.5 * (math.exp(-level.half_log_snr) / width) ** 2
    mean = control.mean(torch.tensor([level.half_log_snr], dtype=torch.float64))[0]
    return cost + share * (mean - control.squared_error(eps, level.half_log_snr))
