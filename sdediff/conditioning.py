r"""Conditioning of a network on the noise level: by time, log-SNR or the timesteps of a chain.

Timestep k = 0 .. N-1 of a chain of N steps is its instant ``t = (k + 1) / N``: the label ``t N - 1``, plus an offset
where labels start elsewhere. A network whose embedding is a function (sinusoidal) takes real labels. One with a table
of embeddings takes the instants alone.
Between them it is evaluated at both neighbours and the same state, and the velocity ``v = cos eps - sin x0`` is linear
in the half log-SNR:

    v = a v_i(x) + b v_{i+1}(x),     a + b = 1,     x0 = cos x - sin v,     eps = sin x + cos v.

The chain preserves variance, so that the state needs no rescaling to the neighbour's level, and v is accurate at either
end. The field is continuous in t, the network's own at every instant, and its error is of order 2 in the distance
between them.

Solvers with a grid move their nodes to instants where these stay distinct, and take one forward for each.

Below the first instant, where no network was trained, the noise half is constant, ``eps = eps_1(x)``. (For a smooth
density eps falls with sigma, but is small at the first instant already; on data near a surface, as images are, it does
not.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.numerics import as_float64, expand, scaled, to_nearest
from sdediff.parametrization import PREDICTIONS
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split

Evaluate = Callable[[Tensor, Level], Split]
"""Split of a state by one forward of the network."""


def _per_sample(value: Scalar, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Expand a scalar for the batch or one a sample to a new tensor ``(B,)``, in single precision at least.

    In half precision timestep 750 would be 752, whatever the network's weights are.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if isinstance(value, float):  # created on the device: no copy
        return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)
    tensor = torch.as_tensor(value, dtype=torch.float64 if x.device.type != "mps" else torch.float32)
    return tensor.to(dtype=dtype, device=x.device).expand(x.shape[0]).clone()


def chain_steps(sde: SDE) -> int:
    """Return the number of steps of a chain.

    Raises:
        ValueError: for any other process.
    """
    if sde.instants is None:
        raise ValueError(f"labels count the steps of a chain: they need a DDPM, not {type(sde).__name__}")
    return len(sde.instants) - 1


def _position(sde: SDE, level: Level) -> Tensor:
    """Return ``t N``, exact at instants; float64, ``()`` or ``(B,)``."""
    position = as_float64(level.t) * chain_steps(sde)
    nearest = position.round()
    return torch.where((position - nearest).abs() < 1e-9, nearest, position)


def _at_instant(position: Tensor) -> bool:
    """Return whether every sample is at an instant above 0."""
    return bool(((position == position.round()) & (position >= 1.0)).all())


def _on_instants(sde: SDE, times: Tensor) -> Tensor:
    """Move inner nodes to the nearest instants, unless these are half way to the next node or beyond."""
    moved = to_nearest(times * chain_steps(sde)).clamp(min=1.0) / chain_steps(sde)
    gaps = times.diff().abs()
    near = (moved - times)[1:-1].abs() < (0.5 - 1e-6) * torch.minimum(gaps[:-1], gaps[1:])
    return torch.cat([times[:1], torch.where(near, moved[1:-1], times[1:-1]), times[-1:]])


def _from_first(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    position = _position(sde, level)
    if bool((position >= 1.0).all()):
        return evaluate(x, level)
    first = _level(sde, position.clamp(min=1.0), level)
    return _with_noise_half(evaluate(x, first), x, level)


def _at_instants(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    position = _position(sde, level)
    between = (position != position.round()) & (position > 1.0)
    if bool(between.any()):
        steps, t = chain_steps(sde), as_float64(level.t).flatten()[between.flatten()][0]
        raise ValueError(
            f"the network knows the {steps} instants of its chain alone, not t = {float(t):g}: solve in fewer steps or "
            "with grid='chain', or give it conditioning='interpolated'"
        )
    return _from_first(evaluate, sde, x, level)


def _interpolated(evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
    position = _position(sde, level)
    if _at_instant(position):
        return evaluate(x, level)
    above, below = (_level(sde, instant.clamp(min=1.0), level) for instant in (position.ceil(), position.floor()))
    later = evaluate(x, above)
    extrapolated = _with_noise_half(later, x, level)
    if bool((position <= 1.0).all()):
        return extrapolated
    earlier, share = evaluate(x, below), expand(_share(below, level, above), x)
    v = (1.0 - share) * _velocity(earlier, below) + share * _velocity(later, above)
    if position.ndim:
        v = torch.where(_below_first(position, x), _velocity(extrapolated, level), v)
    split = PREDICTIONS["v_prediction"].split(v, x, level)
    if later.fraction is not None and earlier.fraction is not None:
        split.fraction = (1.0 - share) * earlier.fraction + share * later.fraction
    return split


def _with_noise_half(split: Split, x: Tensor, level: Level) -> Split:
    """Return the split at ``level`` with the noise half from another level."""
    extrapolated = PREDICTIONS["epsilon"].split(split.eps, x, level)
    extrapolated.fraction = split.fraction
    return extrapolated


def _velocity(split: Split, level: Level) -> Tensor:
    return split.mix(-level.sin, level.cos)


def _below_first(position: Tensor, x: Tensor) -> Tensor:
    """Return a mask of the samples below the first instant, to broadcast with the state."""
    return (position < 1.0).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _share(below: Level, here: Level, above: Level) -> Scalar:
    """Return the weight of the noisier neighbour; 1 where both are equal."""
    if isinstance(here.half_log_snr, float):
        return (below.half_log_snr - here.half_log_snr) / (below.half_log_snr - above.half_log_snr)
    start = as_float64(below.half_log_snr)
    gap = start - as_float64(above.half_log_snr)
    share: Tensor = torch.where(gap > 0.0, (start - here.half_log_snr) / gap, 1.0)
    return share


def _level(sde: SDE, position: Tensor, like: Level) -> Level:
    """Return the level at ``position = t N``, of floats if ``like`` has floats."""
    times = position / chain_steps(sde)
    return sde.levels(times[None])[0] if isinstance(like.t, float) else sde.level(times)


class Conditioning(ABC):
    """Inputs of a network at a noise level; a frozen dataclass, whose fields are saved with the model.

    Attributes:
        labels: whether the inputs are timesteps of a chain.
    """

    labels: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor | Level]:
        """Return the network's first two arguments.

        Args:
            x: state ``(B, *shape)``.
            level: level of the state.
            dtype: dtype of the network.
            sde: process.
        """

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        """Split a state by forwards of the network at levels that it takes."""
        return evaluate(x, level)

    def nfe(self, sde: SDE, level: Level) -> int:
        """Return the number of forwards of a split at a level."""
        return 1

    def snap(self, sde: SDE, times: Tensor) -> Tensor:
        """Move the inner nodes of a grid ``(N + 1,)`` to the network's own times."""
        return times


@dataclass(frozen=True)
class Affine(Conditioning):
    """Inputs ``(x, offset + scale a)`` with a number ``a`` of the level.

    Args:
        scale: factor of the number, not 0.
        offset: input where the number is 0.
    """

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale * self.offset) or self.scale == 0.0:
            raise ValueError(f"labels need a finite scale, not 0, and offset; came {self.scale} and {self.offset}")


@dataclass(frozen=True)
class ByTime(Affine):
    """Inputs ``(x, offset + scale t)`` with t in [0, 1], the process's own time: reversed with the scale -1.

    >>> flow = sdediff.RectifiedFlow()
    >>> sdediff.conditioning.ByTime(-1.0, 1.0).inputs(torch.zeros(1, 2), flow.level(0.25), torch.float, flow)[1]
    tensor([0.7500])
    """

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        return x.to(dtype), _per_sample(self.offset + self.scale * level.t, x, dtype)


@dataclass(frozen=True)
class ByLogSNR(Conditioning):
    """Inputs ``(x / scale, lambda)``: the variance-preserving frame, independent of the schedule."""

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        return scaled(x, 1.0 / level.scale).to(dtype), _per_sample(level.half_log_snr, x, dtype)


@dataclass(frozen=True)
class ByLevel(Conditioning):
    """Inputs ``(x, Level)``, for exact denoisers, which need float64 scalars."""

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Level]:
        return x, level


@dataclass(frozen=True)
class ByLabel(Affine):
    """Inputs ``(x, offset + scale (t N - 1))``, real numbers: the timesteps of a chain from 0 up, or from the offset.

    >>> chain = sdediff.DDPM.linear(1000)
    >>> sdediff.conditioning.ByLabel(offset=1).inputs(torch.zeros(1, 2), chain.level(0.5), torch.float, chain)[1]
    tensor([500.])
    """

    labels: ClassVar[bool] = True

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        label = self.offset + self.scale * (_position(sde, level) - 1.0)
        return x.to(dtype), _per_sample(float(label) if isinstance(level.t, float) else label, x, dtype)

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return _from_first(evaluate, sde, x, level)


@dataclass(frozen=True)
class ByInteger(Conditioning):
    """Inputs ``(x, integer)``: the timesteps of a chain, plus the offset, for networks of integers alone."""

    labels: ClassVar[bool] = True

    offset: int = 0

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        label = to_nearest(_position(sde, level)).long() - 1 + self.offset
        if isinstance(level.t, float):  # created on the device: no copy
            return x.to(dtype), torch.full((x.shape[0],), int(label), device=x.device)
        return x.to(dtype), label.to(x.device).expand(x.shape[0]).clone()

    def snap(self, sde: SDE, times: Tensor) -> Tensor:
        return _on_instants(sde, times)


@dataclass(frozen=True)
class AtInstants(ByInteger):
    """Integer timesteps at the instants, and an error between them."""

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return _at_instants(evaluate, sde, x, level)


@dataclass(frozen=True)
class Interpolated(ByInteger):
    """Integer timesteps, and between two instants both neighbours."""

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return _interpolated(evaluate, sde, x, level)

    def nfe(self, sde: SDE, level: Level) -> int:
        position = _position(sde, level)
        return 1 if _at_instant(position) or bool((position <= 1.0).all()) else 2


CONDITIONINGS: dict[str, Conditioning] = {
    "time": ByTime(),
    "reversed_time": ByTime(scale=-1.0, offset=1.0),
    "logsnr": ByLogSNR(),
    "level": ByLevel(),
    "label": ByLabel(),
    "instants": AtInstants(),
    "interpolated": Interpolated(),
}
