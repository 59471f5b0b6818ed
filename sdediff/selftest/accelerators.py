"""Devices: an accelerator gives the numbers of the CPU, to the rounding of single precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from sdediff.devices import pick_device
from sdediff.generation import sample
from sdediff.likelihood import log_likelihood
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.score_model import ScoreModel
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.types import DataInfo

_COUNT, _DIM, _STEPS = 16, 4, 16
_LIMIT = 1e-3
"""Largest difference beside the RMS of the result: rounding, which a solve amplifies."""


def devices(settings: Settings) -> list[Case]:
    """Return a case for every solver of fixed steps and the likelihood; none where there is only a CPU."""
    device = pick_device("auto")
    return [] if device.type == "cpu" else device_cases(settings, device)


def device_cases(settings: Settings, device: torch.device) -> list[Case]:
    """Return the cases of one device."""
    solvers = {name: sampler for name, sampler in SAMPLERS.items() if not sampler.adaptive}
    return [
        *(
            Case(f"{name} on {device.type}", partial(_measure_samples, s, settings, device))
            for name, s in solvers.items()
        ),
        Case(f"log_likelihood on {device.type}", partial(_measure_likelihood, settings, device)),
    ]


class FixedNetwork(nn.Module):
    """A smooth network whose weights are cosines of their place: the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        places = torch.arange(_DIM * (_DIM + 1), dtype=torch.float64).reshape(_DIM, _DIM + 1)
        self.weight = nn.Parameter(torch.cos(places * math.sqrt(2.0)).float() / math.sqrt(_DIM), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity, shape of ``x``."""
        return torch.tanh(torch.cat([x, t.to(x)[:, None]], dim=1) @ self.weight.T) - 0.1 * x


def _model(settings: Settings, device: torch.device) -> ScoreModel:
    network = FixedNetwork().to(device)
    return ScoreModel(network, settings.sde, prediction="v_prediction", data=DataInfo((_DIM,)))


def _measure_samples(sampler: Sampler, settings: Settings, device: torch.device) -> Iterator[Finding]:
    yield _difference(
        *(
            sample(_model(settings, place), (_COUNT, _DIM), solver=sampler, steps=_STEPS, seed=settings.seed)
            for place in (torch.device("cpu"), device)
        )
    )


def _measure_likelihood(settings: Settings, device: torch.device) -> Iterator[Finding]:
    x = torch.cos(torch.arange(_COUNT * _DIM, dtype=torch.float64)).float().reshape(_COUNT, _DIM)
    yield _difference(
        *(
            log_likelihood(_model(settings, place), x.to(place), seed=settings.seed).log_prob
            for place in (torch.device("cpu"), device)
        )
    )


def _difference(ours: Tensor, theirs: Tensor) -> Finding:
    """Return the largest difference beside the size of the result."""
    size = float(ours.double().square().mean().sqrt())
    found = float((ours - theirs.cpu()).double().abs().max()) / size
    return Finding("largest difference from the CPU, relative", found, high=_LIMIT)
