"""Variational bounds: never below minus the exact log-density in the mean, and on it where they are known to be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from sdediff.analytic import GaussianMixture
from sdediff.likelihood import elbo
from sdediff.score_model import ScoreModel
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.chance import DEVIATIONS
from sdediff.selftest.problems import GAUSSIAN, MIXTURE, MIXTURE_1D
from sdediff.selftest.targets import BoundsItems, values_of

_COUNT, _STEPS = 1024, 200
_SLACK = 0.01
"""Rounding and quadrature, nats a dimension."""
_GAP = 0.01
"""Largest gap of a chain of so many steps with the marginal variance, nats a dimension: 0.005, of order 1 in 1/N."""
_PROBLEMS = {"2-D Gaussian": GAUSSIAN, "2-D mixture": MIXTURE, "1-D mixture": MIXTURE_1D}


def bounds(settings: Settings) -> list[Case]:
    """Return the cases of the library's bounds: a chain's, which has a gap, and the continuous one, which has none."""
    return [
        case
        for steps, name, most in ((_STEPS, f"{_STEPS} steps", _GAP), (math.inf, "continuous", 0.0))
        for case in bound_cases(partial(_ours, steps), settings, f", {name}", most)
    ]


def bound_cases(bound: BoundsItems, settings: Settings, note: str = "", most: float = math.inf) -> list[Case]:
    """Return the cases of a bound, ours or somebody else's, with the largest gap it may have, nats a dimension."""
    return [
        Case(name + note, partial(_measure_gap, bound, data, settings, most * data.dim))
        for name, data in _PROBLEMS.items()
    ]


def _ours(length: float, model: ScoreModel, x: Tensor, *, seed: int, **_: int) -> Tensor:
    return elbo(model, x, steps=length, variance="marginal", seed=seed).total


def _measure_gap(bound: BoundsItems, data: GaussianMixture, settings: Settings, most: float) -> Iterator[Finding]:
    """Yield the mean distance of the bound from the truth; its error is that of independent items."""
    x = data.sample(_COUNT, seed=settings.seed + 1)
    found = values_of(bound(data.model(settings.sde), x.clone(), steps=_STEPS, seed=settings.seed))
    if found.shape != (_COUNT,):
        raise ValueError(f"the bounds of {_COUNT} items must have shape ({_COUNT},), not {tuple(found.shape)}")
    gaps = found + data.log_prob(x)
    chance = DEVIATIONS * float(gaps.std()) / math.sqrt(_COUNT) + _SLACK * data.dim
    yield Finding("mean gap to -log p, nats", float(gaps.mean()), -chance, most + chance)
