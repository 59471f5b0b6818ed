r"""Dequantisation of integer data: the values at which a model's density is evaluated, and the bound on a probability.

A model of a density p, blurred by the noise of its start level, is a model of integers once a *decoder* ``P(k | v)``
gives the level k of a value v. For any distribution ``q(v | k)`` of values Jensen's inequality gives

    log P(k) = log integral of p(v) P(k | v)  >=  E_q[log p(v) + log P(k | v) - log q(v | k)],

the mean over draws of the *log-weight* in brackets, tight where q is p times the decoder (Theis et al. 2016; Hoogeboom
et al. 2020); ``log E_q exp`` of it is ``log P(k)`` itself (Burda et al. 2016). A :class:`Dequantisation` is a start
level, a distribution q and a decoder. With ``delta`` the width of a bin, ``v_k`` its middle and ``rho = sigma / alpha``
the noise of the start level in the model's units:

- ``uniform``: v uniform in the bin, which is also the decoder: ``E log p(v) + D log delta``, evaluated at the first
  level. Suited where p is smooth within a bin, as for data dequantised uniformly in training.
- ``truncated-normal`` (Zheng et al. 2023, section 4): ``v_k + rho eps`` with eps a standard normal truncated to the
  bin, which is the decoder: ``E log p(v) + H(q)``. Suited where the model's data are the levels themselves: then the
  blurred p is ``N(v_k, rho^2)`` about each, and the loss is the mass outside the bins.
- ``decoder`` (Kingma et al. 2021, eq. 4): ``v_k + rho eps`` with eps standard normal, decoded by the posterior
  ``P(k | v)`` of the levels given v (:func:`~sdediff.likelihood.discrete.decoder.log_level_posterior`). It decodes
  every value: the mass of p beyond the outermost bins belongs to a level too.

The start level follows from ``tau = delta / (2 rho)``. Truncated normals lose ``-log(2 Phi(tau) - 1)`` nats an
entry on data of levels, 0.0027 at the default 3, but ``log delta - H(q)``, 0.389, on a density flat within bins.
The entropy H(q) is taken draw by draw, ``-log q(v | k)``: on data of levels it cancels the scatter of ``log p(v)``.
The decoder loses ``-E log P(k | v)`` on separate levels, and that plus ``log delta - log(rho sqrt(2 pi e))`` on a flat
density: the default ``tau = sqrt(pi e / 2)`` makes both alike, 0.104 nats, and so the worst case least.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sdediff.data.levels import bin_width, to_values
from sdediff.data.remarks import warn_of_levels
from sdediff.data.units import has_units, to_model
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.likelihood.discrete.decoder import log_level_posterior
from sdediff.noise import NoiseSource, Stage
from sdediff.numerics import LOG_2PI, single, sum_features, wide, widest
from sdediff.options import CallOptions
from sdediff.sampling import check_state
from sdediff.sde import SDE
from sdediff.types import DataInfo

# ---- levels and range ---------------------------------------------------------------------------------------


def integer_data(
    x: Tensor, data: DataInfo | None, levels: int | None = None, low: float | None = None, high: float | None = None
) -> DataInfo:
    """Return the levels and range of integer data, the model's own or those given.

    Args:
        x: integer tensor ``(B, *shape)``, entries ``0 .. levels - 1``.
        data: description of the model's data where there is one.
        levels: number of levels, instead of the model's own.
        low: value of level 0 in the model's units, instead of the model's own.
        high: value of the highest level in the model's units, instead of the model's own.

    Raises:
        ValueError: for float tensors, if the number of levels is unknown or below 2, or for an empty range.
    """
    if x.is_floating_point() or x.is_complex():
        raise ValueError(
            f"bits/dim exist for integer data only (levels 0, 1, ...); came {x.dtype}. "
            "For continuous data ask log_likelihood for nats"
        )
    info = DataInfo(tuple(x.shape[1:])) if data is None else data
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
    """Refuse data that are not a batch of the model's items; warn of floats that are levels."""
    if not isinstance(x, Tensor) or x.is_floating_point():
        check_state(x)
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"the data must be a non-empty batch (B, *shape), not {tuple(x.shape)}")
    if data is not None and tuple(x.shape[1:]) != tuple(data.shape):
        raise ValueError(f"the model's items have shape {tuple(data.shape)}, not {tuple(x.shape[1:])}")
    if data is not None and has_units(data) and not x.is_floating_point():
        raise ValueError(f"the model's data are continuous rows in units of their own: give floats, not {x.dtype}")
    warn_of_levels(x, data)


def prepare_items(
    model: Denoiser, x: Tensor, data: DataInfo | None, options: CallOptions
) -> tuple[Denoiser, Tensor, DataInfo | None]:
    """Return the model as the options say, the data in its coordinates, and of integers their levels and range.

    Args:
        model: a denoiser with its process.
        x: data ``(B, *shape)`` in their units, or integers.
        data: levels and range of integer data, instead of the model's own.
        options: options of the call, of which condition and execution are taken.

    Raises:
        TypeError: if the model is no denoiser.
        ValueError: as :func:`check_items` and :func:`integer_data`.
    """
    check_denoiser(model)
    model = model.given(options.get("condition")).with_execution(options.get("execution"))
    check_items(x, model.data)
    x = to_model(single(x), model.data)
    model.check_batch(len(x))
    info = None if x.is_floating_point() else integer_data(x, model.data if data is None else data)
    return model, x, info


# ---- uniform, also for log_likelihood ------------------------------------------------------------------------


def dequantise(x: Tensor, info: DataInfo, noise: NoiseSource, draw: int) -> Tensor:
    """Draw values uniform in the bins of the integers ``x``, shape of ``x``; draw number ``draw`` of each sample."""
    return Uniform().draw(x, info, 0.0, noise, draw).values


def log_bin_volume(info: DataInfo, shape: Sequence[int]) -> float:
    """Return ``D log delta``, the log-volume of one item's bin, nats."""
    return math.prod(shape) * math.log(bin_width(info))


# ---- truncated normals --------------------------------------------------------------------------------------


def truncated_normal(normals: Tensor, tau: float) -> Tensor:
    """Return standard normals mapped monotonically to normals truncated to ``[-tau, tau]``, entry by entry."""
    # The lower tail for both signs, by erfc, which keeps its digits there (torch's ndtr does not).
    tail = 0.5 * torch.special.erfc(normals.abs() * math.sqrt(0.5))
    size: Tensor = torch.special.ndtri(tail * math.erf(tau * math.sqrt(0.5)) + 0.5 * math.erfc(tau * math.sqrt(0.5)))
    return -torch.sign(normals) * size.clamp(-tau, 0.0)


def _offset_values(x: Tensor, info: DataInfo, offset: Tensor) -> Tensor:
    """Return values at an offset from those of the levels, float64."""
    return to_values(x, info, dtype=offset.dtype) + offset


# ---- the table -----------------------------------------------------------------------------------------------


class WeightedValues(NamedTuple):
    """Values for integers, with their part of the log-weight besides the density.

    Attributes:
        values: values at which the density is evaluated, ``(B, *shape)``, in the dtype of the noise.
        log_weight: ``log P(x | v) - log q(v | x)``, nats, float64 ``(B,)``.
    """

    values: Tensor
    log_weight: Tensor


class Dequantisation(ABC):
    """A start level, a distribution of values for integers, and a decoder.

    Attributes:
        blurs: whether the noise of the start level is part of the model of integers, and not an approximation.
    """

    blurs: ClassVar[bool] = True

    @abstractmethod
    def start(self, sde: SDE, info: DataInfo) -> float:
        """Return the time whose blurred density is evaluated."""

    @abstractmethod
    def draw(self, x: Tensor, info: DataInfo, rho: float, noise: NoiseSource, draw: int) -> WeightedValues:
        """Draw number ``draw`` of each item's values.

        Args:
            x: levels, integer ``(B, *shape)``.
            info: levels and range of the data.
            rho: sigma over alpha at the start level.
            noise: noise source of the shape of ``x``.
            draw: number of the draw.
        """


@dataclass(frozen=True)
class Uniform(Dequantisation):
    """Values uniform in the bin (Theis et al. 2016)."""

    blurs = False

    def start(self, sde: SDE, info: DataInfo) -> float:
        return sde.t_data

    def draw(self, x: Tensor, info: DataInfo, rho: float, noise: NoiseSource, draw: int) -> WeightedValues:
        uniform = noise.uniform(draw, stage=Stage.DEQUANTISATION)
        volume = torch.full((len(x),), log_bin_volume(info, x.shape[1:]), dtype=widest(x.device), device=x.device)
        return WeightedValues(to_values(x, info, u=uniform, dtype=noise.dtype), volume)


@dataclass(frozen=True)
class NoisyDequantisation(Dequantisation):
    """Values about their level with noise of the size at the start level.

    Attributes:
        tau: half a bin over the noise of the start level. Where the process or the chain's first instant is noisier,
            that level is taken, and tau is smaller: the bound still holds, for a model at a noisier level.
    """

    tau: float

    def __post_init__(self) -> None:
        if not 0.0 < self.tau < math.inf:
            raise ValueError(f"tau, half a bin over the noise, must be positive and finite, not {self.tau}")

    @final
    def start(self, sde: SDE, info: DataInfo) -> float:
        return max(sde.t_data, float(sde.time(-math.log(0.5 * bin_width(info) / self.tau))))


@dataclass(frozen=True)
class TruncatedNormal(NoisyDequantisation):
    """Normal noise truncated to the bin (Zheng et al. 2023); the smaller tau, the closer to a uniform distribution."""

    tau: float = 3.0

    def draw(self, x: Tensor, info: DataInfo, rho: float, noise: NoiseSource, draw: int) -> WeightedValues:
        tau = 0.5 * bin_width(info) / rho
        eps = truncated_normal(wide(noise.normal(draw, stage=Stage.DEQUANTISATION)), tau)
        own = 0.5 * (eps.square() + LOG_2PI) + math.log(rho * math.erf(tau * math.sqrt(0.5)))
        return WeightedValues(_offset_values(x, info, rho * eps).to(noise.dtype), sum_features(own))


@dataclass(frozen=True)
class DecodedNormal(NoisyDequantisation):
    """Normal noise, decoded by the posterior of the levels (Kingma et al. 2021)."""

    tau: float = math.sqrt(math.pi * math.e / 2.0)

    def draw(self, x: Tensor, info: DataInfo, rho: float, noise: NoiseSource, draw: int) -> WeightedValues:
        eps = wide(noise.normal(draw, stage=Stage.DEQUANTISATION))
        own = 0.5 * (eps.square() + LOG_2PI) + math.log(rho)
        values = _offset_values(x, info, rho * eps)
        return WeightedValues(values.to(noise.dtype), sum_features(own + log_level_posterior(x, values, rho, info)))


DEQUANTISATIONS: dict[str, Dequantisation] = {
    "uniform": Uniform(),
    "truncated-normal": TruncatedNormal(),
    "decoder": DecodedNormal(),
}
"""Dequantisations of ``bits_per_dim``, by name."""
