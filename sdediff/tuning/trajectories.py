"""Pilot trajectories: starts as a user draws them, and where the exact flow takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.noise import NoiseSource
from sdediff.numerics import sum_features
from sdediff.sampling import solve
from sdediff.types import brief

STEPS, LAST = 96, 12
"""Steps of the accurate solve: down to ``t_to``, and from there to the data."""
_BATCH = 256


class Pilot(NamedTuple):
    """Starts at ``t_max`` and the ends of their trajectories, each ``(n, *shape)``.

    Attributes:
        start: the state at ``t_max``.
        end: the state at ``t_to``.
        clean: the state at ``t = 0``.
        row: which of the model's items each is, ``(n,)``.
    """

    start: Tensor
    end: Tensor
    clean: Tensor
    row: Tensor

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)

    def select(self, index: Tensor | slice) -> Pilot:
        """Some of the trajectories."""
        return Pilot(*(tensor[index] for tensor in self))


class Errors(NamedTuple):
    """RMS over samples and dimensions, and the median over samples of each one's RMS."""

    rms: float
    median: float

    @staticmethod
    def of(x: Tensor, exact: Tensor) -> Errors:
        """The errors of states ``(n, *shape)``."""
        squared = sum_features((x - exact).square()).double() / math.prod(x.shape[1:])
        return Errors(float(squared.mean().sqrt()), float(squared.median().sqrt()))


def starts(model: Denoiser, count: int, seed: int) -> Tensor:
    """Initialisation states at ``t_max``: even ones from the model's moments, odd ones from the standard normal.

    The first kind is what sampling draws, the second what an encoding is compared with; where the model knows no
    moments all are standard. They depend on ``(seed, index)`` alone and are in float64, where the device has it.

    Raises:
        ValueError: if the model does not say what its data are.
    """
    if model.data is None:
        raise ValueError("the model does not say what its data are (build it with data=DataInfo(...))")
    device = model.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    shape = (count, *model.data.shape)
    drawn = [
        model.sde.prior_sample(
            shape, t=model.sde.t_max, moments=moments, noise=NoiseSource(seed, shape, dtype=dtype, device=device)
        )
        for moments in (model.moments, None)
    ]
    odd = (torch.arange(count, device=device) % 2 == 1).reshape(-1, *(1,) * (len(shape) - 1))
    return torch.where(odd, drawn[1], drawn[0])


def follow(model: Denoiser, x: Tensor, t_to: float, progress: Callable[[int, int], None]) -> Pilot:
    """Solve from starts by the default solver on many nodes; its error there is far below any that is tuned.

    Args:
        model: the denoiser.
        x: starts at ``t_max``.
        t_to: where the first stage ends.
        progress: called after every batch.
    """
    ends, cleans = [], []
    every = torch.arange(len(x), device=x.device)
    parts = torch.split(every, _BATCH)
    with torch.no_grad():
        for i, rows in enumerate(parts):
            own = model.rows(rows)
            ends.append(solve(own, x[rows], "ode", t_to=t_to, steps=STEPS).x)
            cleans.append(solve(own, ends[-1], "ode", t_from=t_to, t_to=0.0, steps=LAST).x)
            progress(i + 1, len(parts))
    return Pilot(x, torch.cat(ends), torch.cat(cleans), every)
