r"""How a network is asked about a level: by which number, and what is done where it knows no number.

Timestep k = 0 .. N-1 of a chain of N steps is its instant ``t = (k + 1) / N``: the label ``t N - 1``. A network whose
embedding is a function (sinusoidal) takes real labels. One with a table of embeddings knows the instants alone. Between
them both neighbours are asked at the same state, and the velocity ``v = cos eps - sin x0`` is linear in the half
log-SNR:

    v = a v_i(x) + b v_{i+1}(x),     a + b = 1,     x0 = cos x - sin v,     eps = sin x + cos v.

The chain preserves variance, so that the state needs no rescaling to look like one of the neighbour's, and v loses no
digits at either end. The field is continuous in t, the network's own at every instant, and off by the square of the
distance between them.

Solvers with a grid put their nodes on instants where that keeps them apart, and so pay one forward for each.

Below the first instant no network was trained. There the noise half is held, ``eps = eps_1(x)``. (For a smooth density
eps falls with sigma, but is small at the first instant already; on data near a surface, as images are, it does not.)
"""

from __future__ import annotations

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

Ask = Callable[[Tensor, Level], Split]
"""One forward of the network."""


def _per_sample(value: Scalar, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B,)`` of its own from a scalar for the batch or one a sample, in single precision at least.

    In half precision timestep 750 would be 752, whatever the network's weights are.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if isinstance(value, float):  # made where it is needed: nothing to copy to the device
        return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)
    tensor = torch.as_tensor(value, dtype=torch.float64 if x.device.type != "mps" else torch.float32)
    return tensor.to(dtype=dtype, device=x.device).expand(x.shape[0]).clone()


def chain_steps(sde: SDE) -> int:
    """The number of steps of a chain.

    Raises:
        ValueError: for a process that is none.
    """
    if sde.instants is None:
        raise ValueError(f"labels count the steps of a chain: they need a DDPM, not {type(sde).__name__}")
    return len(sde.instants) - 1


def _place(sde: SDE, level: Level) -> Tensor:
    """``t N``, at instants to the last bit; float64, ``()`` or ``(B,)``."""
    place = as_float64(level.t) * chain_steps(sde)
    nearest = place.round()
    return torch.where((place - nearest).abs() < 1e-9, nearest, place)


def _at_instant(place: Tensor) -> bool:
    """Whether every sample stands at an instant that a network knows."""
    return bool(((place == place.round()) & (place >= 1.0)).all())


def _on_instants(sde: SDE, times: Tensor) -> Tensor:
    """Inner nodes on the nearest instants, where that is nearer than half way to the next node: they stay in order."""
    moved = to_nearest(times * chain_steps(sde)).clamp(min=1.0) / chain_steps(sde)
    gaps = times.diff().abs()
    near = (moved - times)[1:-1].abs() < (0.5 - 1e-6) * torch.minimum(gaps[:-1], gaps[1:])
    return torch.cat([times[:1], torch.where(near, moved[1:-1], times[1:-1]), times[-1:]])


def _from_first(ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
    place = _place(sde, level)
    if bool((place >= 1.0).all()):
        return ask(x, level)
    first = _level(sde, place.clamp(min=1.0), level)
    return _hold_noise(ask(x, first), x, level)


def _at_instants(ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
    place = _place(sde, level)
    between = (place != place.round()) & (place > 1.0)
    if bool(between.any()):
        steps, t = chain_steps(sde), as_float64(level.t).flatten()[between.flatten()][0]
        raise ValueError(
            f"the network knows the {steps} instants of its chain alone, not t = {float(t):g}: solve in fewer steps or "
            "with grid='chain', or give it conditioning='interpolated'"
        )
    return _from_first(ask, sde, x, level)


def _interpolated(ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
    place = _place(sde, level)
    if _at_instant(place):
        return ask(x, level)
    above, below = (_level(sde, instant.clamp(min=1.0), level) for instant in (place.ceil(), place.floor()))
    later = ask(x, above)
    held = _hold_noise(later, x, level)
    if bool((place <= 1.0).all()):
        return held
    earlier, share = ask(x, below), expand(_share(below, level, above), x)
    v = (1.0 - share) * _velocity(earlier, below) + share * _velocity(later, above)
    v = torch.where(_below_first(place, x), _velocity(held, level), v)
    split = PREDICTIONS["v_prediction"].split(v, x, level)
    if later.fraction is not None and earlier.fraction is not None:
        split.fraction = (1.0 - share) * earlier.fraction + share * later.fraction
    return split


def _hold_noise(split: Split, x: Tensor, level: Level) -> Split:
    """The split at ``level`` with the noise half that the network gave at another."""
    held = PREDICTIONS["epsilon"].split(split.eps, x, level)
    held.fraction = split.fraction
    return held


def _velocity(split: Split, level: Level) -> Tensor:
    return split.mix(-level.sin, level.cos)


def _below_first(place: Tensor, x: Tensor) -> Tensor:
    """Which samples, against the state."""
    return (place < 1.0).to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def _share(below: Level, here: Level, above: Level) -> Scalar:
    """The weight of the noisier neighbour; 1 where both are the same."""
    if isinstance(here.half_log_snr, float):
        return (below.half_log_snr - here.half_log_snr) / (below.half_log_snr - above.half_log_snr)
    start = as_float64(below.half_log_snr)
    gap = start - as_float64(above.half_log_snr)
    share: Tensor = torch.where(gap > 0.0, (start - here.half_log_snr) / gap, 1.0)
    return share


def _level(sde: SDE, place: Tensor, like: Level) -> Level:
    """The level at a place, floats where the given one has floats."""
    times = place / chain_steps(sde)
    return sde.levels(times[None])[0] if isinstance(like.t, float) else sde.level(times)


class Conditioning(ABC):
    """How a network is asked; a frozen dataclass, whose fields are saved with the model.

    Attributes:
        labels: whether it counts the steps of a chain, and so needs one.
    """

    labels: ClassVar[bool] = False

    @abstractmethod
    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor | Level]:
        """Return the network's first two arguments.

        Args:
            x: the state, ``(B, *shape)``.
            level: the level of the state.
            dtype: the dtype of the network.
            sde: the process.
        """

    def between(self, ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
        """Split a state, given the network's answer at levels that it knows."""
        return ask(x, level)

    def forwards(self, sde: SDE, level: Level) -> int:
        """Return the number of forwards that a split at a level takes."""
        return 1

    def settle(self, sde: SDE, times: Tensor) -> Tensor:
        """Move the nodes of a grid ``(N + 1,)``, between its ends, to where the network is best asked."""
        return times


@dataclass(frozen=True)
class ByTime(Conditioning):
    """``(x, t)`` with t in [0, 1], the process's own time."""

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        return x.to(dtype), _per_sample(level.t, x, dtype)


@dataclass(frozen=True)
class ByLogSNR(Conditioning):
    """``(x / scale, lambda)``: the variance-preserving frame, no schedule in it."""

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        return scaled(x, 1.0 / level.scale).to(dtype), _per_sample(level.half_log_snr, x, dtype)


@dataclass(frozen=True)
class ByLevel(Conditioning):
    """``(x, Level)``: exact denoisers, which want float64 scalars."""

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Level]:
        return x, level


@dataclass(frozen=True)
class ByLabel(Conditioning):
    """``(x, t N - 1)``, a real number: the timesteps of a chain from 0 up."""

    labels: ClassVar[bool] = True

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        label = _place(sde, level) - 1.0
        return x.to(dtype), _per_sample(float(label) if isinstance(level.t, float) else label, x, dtype)

    def between(self, ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
        return _from_first(ask, sde, x, level)


class ByInteger(Conditioning):
    """``(x, integer)``: the timesteps of a chain for networks that know them alone."""

    labels: ClassVar[bool] = True

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        label = to_nearest(_place(sde, level)).long() - 1
        return x.to(dtype), label.to(x.device).expand(x.shape[0]).clone()

    def settle(self, sde: SDE, times: Tensor) -> Tensor:
        return _on_instants(sde, times)


@dataclass(frozen=True)
class AtInstants(ByInteger):
    """Integers at the instants, and an error between them."""

    def between(self, ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
        return _at_instants(ask, sde, x, level)


@dataclass(frozen=True)
class Interpolated(ByInteger):
    """Integers, and between two instants both neighbours."""

    def between(self, ask: Ask, sde: SDE, x: Tensor, level: Level) -> Split:
        return _interpolated(ask, sde, x, level)

    def forwards(self, sde: SDE, level: Level) -> int:
        place = _place(sde, level)
        return 1 if _at_instant(place) or bool((place <= 1.0).all()) else 2


CONDITIONINGS: dict[str, Conditioning] = {
    "time": ByTime(),
    "logsnr": ByLogSNR(),
    "level": ByLevel(),
    "label": ByLabel(),
    "instants": AtInstants(),
    "interpolated": Interpolated(),
}
