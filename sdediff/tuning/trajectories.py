"""Pilot trajectories: starts as drawn in sampling, and their ends under the exact flow."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.noise import NoiseSource
from sdediff.numerics import widest
from sdediff.samplers.base import Progress
from sdediff.sampling import solve
from sdediff.types import brief

PILOT_STEPS, PILOT_LAST_STEPS = 96, 12
"""Steps of the accurate solve: down to ``t_to``, and from there to the data."""
BATCH = 256
"""Trajectories solved together."""


class Pilot(NamedTuple):
    """Starts at ``t_max`` and the ends of their trajectories, each ``(n, *shape)``.

    Attributes:
        start: states at ``t_max``.
        end: states at ``t_to``.
        clean: states at ``t = 0``.
        row: indices of the items in the model's condition, ``(n,)``.
    """

    start: Tensor
    end: Tensor
    clean: Tensor
    row: Tensor

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)

    def select(self, index: Tensor | slice) -> Pilot:
        """Select some of the trajectories."""
        return Pilot(*(tensor[index] for tensor in self))


def starts(model: Denoiser, count: int, seed: int) -> Tensor:
    """Draw states at ``t_max``: even ones from the model's moments, odd ones from the standard normal.

    Sampling starts from the first kind, and encodings are compared with the second; where the model knows no moments
    all are standard. They depend on ``(seed, index)`` alone and are in float64, where the device has it.

    Raises:
        ValueError: if the model does not say what its data are.
    """
    if model.data is None:
        raise ValueError("the model does not say what its data are (build it with data=DataInfo(...))")
    device = model.device
    dtype = widest(device)
    shape = (count, *model.data.shape)
    drawn = [
        model.sde.prior_sample(
            shape, t=model.sde.t_max, moments=moments, noise=NoiseSource(seed, shape, dtype=dtype, device=device)
        )
        for moments in (model.moments, None)
    ]
    odd = (torch.arange(count, device=device) % 2 == 1).reshape(-1, *(1,) * (len(shape) - 1))
    return torch.where(odd, drawn[1], drawn[0])


def solve_pilot(model: Denoiser, x: Tensor, t_to: float, progress: Progress) -> Pilot:
    """Solve from starts by the default solver on many nodes; its error is far below that of any tuned solver.

    Args:
        model: denoiser.
        x: starts at ``t_max``.
        t_to: time at which the first stage ends.
        progress: callback after every batch.
    """
    ends, cleans = [], []
    every = torch.arange(len(x), device=x.device)
    batches = torch.split(every, BATCH)
    with torch.no_grad():
        for i, rows in enumerate(batches):
            items = model.rows(rows)
            ends.append(solve(items, x[rows], "ode", t_to=t_to, steps=PILOT_STEPS).x)
            cleans.append(solve(items, ends[-1], "ode", t_from=t_to, t_to=0.0, steps=PILOT_LAST_STEPS).x)
            progress(i + 1, len(batches))
    return Pilot(x, torch.cat(ends), torch.cat(cleans), every)
