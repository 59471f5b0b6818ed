r"""The reconstruction term of a bound, ``-log p(x | x_1)``: what is left to say of the data at the first noise level.

Integers have two decoders. ``"discretised"`` is a Gaussian about the denoiser's x0, integrated over each level's bin
(Ho et al. 2020, eq. 13). ``"levels"`` weighs the levels by how likely they make the noisy state itself, entry by entry
(Kingma et al. 2021, section 3.3): no forward, and the better one where the noise is narrower than the bins and the
denoiser is not; where the noise is wider, only the denoiser knows. Continuous data have a Gaussian density about the
denoiser's x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import GaussianErrors
from sdediff.likelihood.decoder import log_discretised_gaussian, log_gaussian, log_level_posterior
from sdediff.numerics import choose, sum_features
from sdediff.types import DataInfo, Level, Split

LogProb = Callable[[Tensor, Tensor | float], Tensor]
"""From a decoder's mean ``(B, *shape)`` and standard deviation to the data's log-probability, nats ``(B,)``."""


class Decoder(NamedTuple):
    """A law of the data given the state at the first level.

    Attributes:
        log_prob: of the data, given mean and standard deviation.
        denoised: whether it stands about the denoiser's x0, which takes a forward, or about the noisy state over alpha.
        gaussian: whether it is a Gaussian density, whose cost is the denoiser's squared error.
    """

    log_prob: LogProb
    denoised: bool = True
    gaussian: bool = False


def density(x: Tensor) -> Decoder:
    """The decoder of continuous data."""
    return Decoder(lambda mean, std: log_gaussian(x, mean, std), gaussian=True)


def _discretised(x: Tensor, info: DataInfo) -> Decoder:
    return Decoder(lambda mean, std: log_discretised_gaussian(x, mean, std, info))


def _levels(x: Tensor, info: DataInfo) -> Decoder:
    return Decoder(lambda mean, std: sum_features(log_level_posterior(x, mean, std, info)), denoised=False)


DECODERS: dict[str, Callable[[Tensor, DataInfo], Decoder]] = {"discretised": _discretised, "levels": _levels}
"""Of integer data."""


def make_decoder(name: str | None, x: Tensor, info: DataInfo | None) -> Decoder:
    """The decoder of a batch; by default the discretised Gaussian of integers and the density of floats.

    Raises:
        ValueError: for an unknown name, or any name with continuous data.
    """
    if info is not None:
        return choose(DECODERS, "discretised" if name is None else name, "decoder")(x, info)
    if name is not None:
        raise ValueError(f"decoders are for integer data; continuous data have a density: leave out decoder={name!r}")
    return density(x)


def reconstruction_cost(
    model: Denoiser,
    x0: Tensor,
    eps: Tensor,
    level: Level[float],
    decoder: Decoder,
    std: Callable[[Split], float | Tensor],
    control: GaussianErrors,
) -> Tensor:
    """``-log p(x | x_1)`` for one draw of the noise, nats, float64 ``(B,)``.

    Args:
        model: the denoiser.
        x0: the data in the model's units, ``(B, *shape)``.
        eps: the noise.
        level: of the first instant.
        decoder: of these data.
        std: the standard deviation of a decoder about the denoiser's x0.
        control: errors whose mean is known.
    """
    if not decoder.denoised:
        noise_std = math.exp(-level.half_log_snr)
        return -decoder.log_prob(x0.double() + noise_std * eps.double(), noise_std)
    split = model(level.alpha * x0 + level.sigma * eps, level)
    width = std(split)
    cost = -decoder.log_prob(split.x0, width)
    if not decoder.gaussian:
        return cost
    # The cost is a constant and half the squared error of the noise, times (sigma / alpha / std)^2.
    share = 0.5 if isinstance(width, Tensor) else 0.5 * (math.exp(-level.half_log_snr) / width) ** 2
    mean = control.mean(torch.tensor([level.half_log_snr], dtype=torch.float64))[0]
    return cost + share * (mean - control.drawn(eps, level.half_log_snr))
