r"""Conditioning of a network on the noise level: by time, log-SNR or the timesteps of a chain.

Timestep k = 0 .. N-1 of a chain of N steps is its instant ``t = (k + 1) / N``: the label ``t N - 1``, plus an offset
where labels start elsewhere. A network whose embedding is a function (sinusoidal) takes real labels. One with a table
of embeddings takes the instants alone, see :mod:`sdediff.instants`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.instants import Evaluate, at_instant, at_instants, from_first, interpolated, on_instants, position_of
from sdediff.numerics import scaled, to_nearest, widest
from sdediff.parametrization import SIGMA_DATA, check_sigma_data, edm_scale
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split


def _per_sample(value: Scalar, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Expand a scalar for the batch or one a sample to a new tensor ``(B,)``, in single precision at least.

    In half precision timestep 750 would be 752, whatever the network's weights are.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if isinstance(value, float):  # created on the device: no copy
        return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)
    tensor = torch.as_tensor(value, dtype=widest(x.device))
    return tensor.to(dtype=dtype, device=x.device).expand(x.shape[0]).clone()


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
class ByEDM(Conditioning):
    """Inputs ``(c_in x / alpha, c_noise)`` of Karras et al. (2022, table 1), for the prediction ``"edm"``.

    With ``s = sigma / alpha`` they are ``c_in = 1 / sqrt(s^2 + sigma_data^2)``, which gives the input variance 1, and
    ``c_noise = log(s) / 4``.

    Args:
        sigma_data: standard deviation of the data.

    >>> flow = sdediff.RectifiedFlow()
    >>> sdediff.conditioning.ByEDM(1.0).inputs(torch.ones(1, 1), flow.level(0.8), torch.float, flow)
    (tensor([[1.2127]]), tensor([0.3466]))
    """

    sigma_data: float = SIGMA_DATA

    def __post_init__(self) -> None:
        check_sigma_data(self.sigma_data)

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        scale = level.scale * edm_scale(level, self.sigma_data)
        return scaled(x, 1.0 / scale).to(dtype), _per_sample(-0.25 * level.half_log_snr, x, dtype)


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
        label = self.offset + self.scale * (position_of(sde, level) - 1.0)
        return x.to(dtype), _per_sample(float(label) if isinstance(level.t, float) else label, x, dtype)

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return from_first(evaluate, sde, x, level)


@dataclass(frozen=True)
class ByInteger(Conditioning):
    """Inputs ``(x, integer)``: the timesteps of a chain, plus the offset, for networks of integers alone."""

    labels: ClassVar[bool] = True

    offset: int = 0

    def inputs(self, x: Tensor, level: Level, dtype: torch.dtype, sde: SDE) -> tuple[Tensor, Tensor]:
        label = to_nearest(position_of(sde, level)).long() - 1 + self.offset
        if isinstance(level.t, float):  # created on the device: no copy
            return x.to(dtype), torch.full((x.shape[0],), int(label), device=x.device)
        return x.to(dtype), label.to(x.device).expand(x.shape[0]).clone()

    def snap(self, sde: SDE, times: Tensor) -> Tensor:
        return on_instants(sde, times)


@dataclass(frozen=True)
class AtInstants(ByInteger):
    """Integer timesteps at the instants, and an error between them."""

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return at_instants(evaluate, sde, x, level)


@dataclass(frozen=True)
class Interpolated(ByInteger):
    """Integer timesteps, and between two instants both neighbours."""

    def split(self, evaluate: Evaluate, sde: SDE, x: Tensor, level: Level) -> Split:
        return interpolated(evaluate, sde, x, level)

    def nfe(self, sde: SDE, level: Level) -> int:
        position = position_of(sde, level)
        return 1 if at_instant(position) or bool((position <= 1.0).all()) else 2


CONDITIONINGS: dict[str, Conditioning] = {
    "time": ByTime(),
    "reversed_time": ByTime(scale=-1.0, offset=1.0),
    "logsnr": ByLogSNR(),
    "edm": ByEDM(),
    "level": ByLevel(),
    "label": ByLabel(),
    "instants": AtInstants(),
    "interpolated": Interpolated(),
}
