"""Likelihoods: the log-density of exact models, the mass of the whole density, and the coverage of stated errors.

A likelihood is averaged over a few seeds, so that one without random probes can be told from one with; what the seeds
leave is allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sdediff.analytic import GaussianMixture
from sdediff.likelihood import log_likelihood
from sdediff.score_model import ScoreModel
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.chance import DEVIATIONS, largest_share
from sdediff.selftest.problems import GAUSSIAN, MIXTURE, MIXTURE_1D, ROUGH
from sdediff.selftest.targets import ScoresItems, WithError, errors_of, values_of

_COUNT, _SEEDS, _STEPS, _POINTS, _REACH = 256, 4, 200, 241, 4.0
"""Items; seeds; steps; points of the grid on a line, from minus to plus ``_REACH``."""
_SLACK = 0.02
"""Error, nats a dimension, that a solver of its own steps may have."""
_UNSTATED = 1e-3
"""Error, nats a dimension, that somebody else's standard error need not hold: that of its steps, beside its probes'."""


def likelihoods(settings: Settings) -> list[Case]:
    """Return the cases of the library's likelihood: exact traces, and random probes."""
    return [
        *likelihood_cases(partial(_ours, "exact"), settings, unstated=0.0),
        Case("12-D mixture, 2 probes", partial(_measure_errors, partial(_ours, "hutchinson"), ROUGH, settings, 0.0)),
    ]


def likelihood_cases(score: ScoresItems, settings: Settings, unstated: float = _UNSTATED) -> list[Case]:
    """Return the cases of a likelihood, ours or somebody else's."""
    return [
        Case("2-D Gaussian", partial(_measure_errors, score, GAUSSIAN, settings, unstated)),
        Case("2-D mixture", partial(_measure_errors, score, MIXTURE, settings, unstated)),
        Case("1-D mixture", partial(_measure_mass, score, settings)),
    ]


def _ours(trace: str, model: ScoreModel, x: Tensor, *, seed: int, **_: int) -> WithError:
    """Score by the default solver; half of the 95 % interval is 1.96 of its errors together."""
    result = log_likelihood(model, x, trace=trace, probes=2, seed=seed)
    low, high = result.interval()
    return result.log_prob, 0.5 * (high - low) / 1.96


def _measure_errors(
    score: ScoresItems, data: GaussianMixture, settings: Settings, unstated: float
) -> Iterator[Finding]:
    """Yield the mean and the size of the errors, and how often the stated ones cover them."""
    x, slack = data.sample(_COUNT, seed=settings.seed + 1), _SLACK * data.dim
    truth = data.log_prob(x)
    results = [_scored(score, data, x, settings, k) for k in range(_SEEDS)]
    errors = torch.stack([values_of(result) - truth for result in results])
    mean, noise = errors.mean(dim=0), errors.var(dim=0) / _SEEDS
    chance = DEVIATIONS * float(mean.std()) / math.sqrt(_COUNT)
    yield Finding("mean error, nats", float(mean.mean()), -slack - chance, slack + chance)
    yield Finding("RMS error, nats", _rms(mean), high=slack + 1.5 * math.sqrt(float(noise.mean())))
    stated = errors_of(results[0])
    if stated is not None:
        missed = float((~(errors[0].abs() <= 1.96 * stated + unstated * data.dim + 1e-9)).double().mean())
        yield Finding("share beyond 1.96 stated errors", missed, high=largest_share(_COUNT))


def _measure_mass(score: ScoresItems, settings: Settings) -> Iterator[Finding]:
    """Yield what the density on a line adds up to: a random log-density's exponential is too large by its noise."""
    x = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)[:, None]
    values = torch.stack([values_of(_scored(score, MIXTURE_1D, x, settings, k)) for k in range(_SEEDS)])
    density = values.mean(dim=0).exp()
    width = 2.0 * _REACH / (_POINTS - 1)
    noise = values.var(dim=0) / _SEEDS
    excess = width * float((density * torch.expm1(0.5 * noise)).sum())
    chance = DEVIATIONS * width * float((density.square() * noise).sum().sqrt())
    slack = _SLACK + excess + chance
    yield Finding("mass of the density", width * float(density.sum()), 1.0 - slack, 1.0 + slack)


def _scored(score: ScoresItems, data: GaussianMixture, x: Tensor, settings: Settings, k: int) -> WithError:
    """Return the numbers under the k-th seed, one an item."""
    result = score(data.model(settings.sde), x.clone(), steps=_STEPS, seed=settings.seed + k)
    found = values_of(result)
    if found.shape != (len(x),):
        raise ValueError(f"the log-densities of {len(x)} items must have shape ({len(x)},), not {tuple(found.shape)}")
    return result


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
