"""Samplers of azula, through a schedule that looks the levels up.

Its samplers space their steps evenly in the time of the schedule, so its own grid is its VP schedule, cut to the
interval. A denoiser conditioned on the log-SNR (its ``KarrasDenoiser``) may be given another of its schedules at
sampling time; those are the swapped grids. The schedule that names levels by their index hands it any other.
``REABSampler`` does not converge as shipped and is left in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from azula import denoise, noise, sample
from torch import Tensor

from sdediff.dynamics import Frame

from .adapter import Levels, Peer, Rule, by_sigma


class Indexed(noise.Schedule):
    """Levels by their place in the solve: time 1 is the first, time 0 the last."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels

    def index(self, t: Tensor) -> Tensor:
        return ((1.0 - t) * (len(self.levels) - 1)).round().long()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.tensor([level.cos for level in self.levels], dtype=torch.float64)
        sigma = torch.tensor([level.sin for level in self.levels], dtype=torch.float64)
        return alpha[self.index(t)], sigma[self.index(t)]


class Exact(denoise.Denoiser):
    """The denoiser in azula's terms."""

    def __init__(self, frame: Frame, levels: Levels) -> None:
        super().__init__()
        self.frame, self.schedule = frame, Indexed(levels)

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> denoise.DiracPosterior:
        level = self.schedule.levels[int(self.schedule.index(t))]
        return denoise.DiracPosterior(mean=self.frame(x_t, level).x0)


def _solve(sampler: Callable[..., Any], options: dict[str, Any], frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    options = {**options, "steps": len(levels) - 1, "silent": True, "dtype": torch.float64}
    return sampler(Exact(frame, levels), **options)(y)


def _even(schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Rule:
    """Even steps in a schedule's time between the two times at which it has the ends' ``sigma / alpha``."""

    def sigma(t: Tensor) -> Tensor:
        signal, noisy = schedule(t)
        return noisy / signal

    def make(count: int, low: float, high: float) -> Tensor:
        fine = torch.linspace(0.0, 1.0, 200_001, dtype=torch.float64)
        values = sigma(fine)
        start, stop = (
            fine[torch.searchsorted(values, torch.tensor(end)).clamp(max=len(fine) - 1)] for end in (high, low)
        )
        return sigma(torch.linspace(float(start), float(stop), count, dtype=torch.float64))

    return by_sigma(make)


GRIDS: dict[str, Rule] = {"VP": _even(noise.VPSchedule())}
SWAPPED: dict[str, Rule] = {
    "cosine": _even(noise.CosineSchedule()),
    "rectified": _even(noise.RectifiedSchedule()),
    "decay": _even(noise.DecaySchedule()),
    "VE": _even(noise.VESchedule()),
}


def peers() -> list[Peer]:
    """Every deterministic sampler at every useful order."""
    made = [
        Peer("azula DDIM", partial(_solve, sample.DDIMSampler, {}), GRIDS, swapped=SWAPPED),
        Peer("azula Heun", partial(_solve, sample.HeunSampler, {}), GRIDS, forwards=2, swapped=SWAPPED),
    ]
    families = {"zAB": (2, 3, 4), "vAB": (2, 3, 4, 5), "zEAB": (2, 3, 4), "xEAB": (2, 3, 4), "REAB": (3,)}
    for family, orders in families.items():
        sampler = getattr(sample, f"{family}Sampler")
        for n in orders:
            solve = partial(_solve, sampler, {"order": n})
            made.append(Peer(f"azula {family} {n}", solve, GRIDS, swapped=SWAPPED))
    return made
