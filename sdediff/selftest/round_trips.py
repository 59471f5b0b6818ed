"""Round trips: data to latents and back, and latents that are normal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.chance import gaussian_deviance
from sdediff.selftest.problems import GAUSSIAN, MIXTURE
from sdediff.transport import decode, encode

_COUNT = 1024
_TRIPS = {"ode": 1e-3, "reversible": 1e-9}
"""Solver of a trip, and its largest error in float64: of a tolerance of 1e-6, amplified; of rounding."""


def round_trips(settings: Settings) -> list[Case]:
    """Return a case for each way of encoding and kind of data."""
    return [
        Case(f"{kind}, {solver}", partial(_measure_trip, data, solver, limit, settings))
        for kind, data in (("2-D Gaussian", GAUSSIAN), ("2-D mixture", MIXTURE))
        for solver, limit in _TRIPS.items()
    ]


def _measure_trip(data: GaussianMixture, solver: str, limit: float, settings: Settings) -> Iterator[Finding]:
    """Yield the largest error of the trip, and the distance of the latents' law from the process's end."""
    sde, x = settings.sde, data.sample(_COUNT, seed=settings.seed + 1)
    model = data.model(sde)
    z = encode(model, x, solver)
    yield Finding("largest error of a round trip", float((decode(model, z, solver) - x).abs().max()), high=limit)
    end = sde.levels([sde.t_max])[0]
    spread = end.alpha**2 * data.covariance + end.sigma**2 * torch.eye(2, dtype=torch.float64)
    latents = z if z.ndim == x.ndim else z[:, 0]
    value, most = gaussian_deviance(latents, Gaussian(end.alpha * data.mean, spread))
    yield Finding("deviance of the latents", value, high=most)
