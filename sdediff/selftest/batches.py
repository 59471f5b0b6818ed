"""Batches: an item's result is the same whatever is solved beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from sdediff.generation import sample
from sdediff.likelihood import elbo, log_likelihood
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.problems import MIXTURE, ROUGH

_COUNT, _SIZE = 7, 3
_LIMIT = 1e-4
"""Of single precision: products of matrices round by the size of the batch, and a solve amplifies it."""


def batches(settings: Settings) -> list[Case]:
    """Return a case for every solver, the likelihood and the bound."""
    solvers = [
        Case(name, partial(_measure_parts, partial(_draw, sampler, settings))) for name, sampler in SAMPLERS.items()
    ]
    return [
        *solvers,
        Case("log_likelihood", partial(_measure_parts, partial(_score, settings))),
        Case("elbo", partial(_measure_parts, partial(_bound, settings))),
    ]


def _draw(sampler: Sampler, settings: Settings, size: int) -> Tensor:
    return sample(MIXTURE.model(settings.sde), (_COUNT, 2), solver=sampler, seed=settings.seed, batch_size=size)


def _score(settings: Settings, size: int) -> Tensor:
    x = ROUGH.sample(_COUNT, seed=settings.seed + 1)
    return log_likelihood(ROUGH.model(settings.sde), x, seed=settings.seed, batch_size=size).log_prob


def _bound(settings: Settings, size: int) -> Tensor:
    x = ROUGH.sample(_COUNT, seed=settings.seed + 1)
    return elbo(ROUGH.model(settings.sde), x, steps=1000, draws=8, seed=settings.seed, batch_size=size).total


def _measure_parts(result: Callable[[int], Tensor]) -> Iterator[Finding]:
    """Yield the largest difference between results of all items at once and of a few at a time."""
    yield Finding("largest difference by batch size", float((result(_COUNT) - result(_SIZE)).abs().max()), high=_LIMIT)
