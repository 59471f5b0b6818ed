"""Laws: samples have the distribution of the data.

Mean and covariance of a correlated Gaussian by a likelihood ratio, and the whole distribution of a mixture on a line by
Kolmogorov's distance. What a first-order method's own error adds in so many steps is allowed for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from sdediff.analytic import GaussianMixture
from sdediff.generation import sample
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.score_model import ScoreModel
from sdediff.selftest.cases import Case, Finding, Settings
from sdediff.selftest.chance import gaussian_deviance, kolmogorov_distance
from sdediff.selftest.problems import GAUSSIAN, MIXTURE_1D, share_below
from sdediff.selftest.targets import DrawsSamples

_COUNT, _FEW, _STEPS = 4096, 512, 400
"""Samples; samples of adaptive methods, which choose steps for each of them; steps of all others."""
_SLACK = 0.04
"""Relative error of a covariance that steps may leave."""


def laws(settings: Settings) -> list[Case]:
    """Return a case for every solver of ``SAMPLERS``."""
    return [
        Case(name, partial(_measure_law, partial(_draw, sampler), settings, _FEW if sampler.adaptive else _COUNT))
        for name, sampler in SAMPLERS.items()
    ]


def law_cases(draw: DrawsSamples, settings: Settings) -> list[Case]:
    """Return the case of somebody else's sampler."""
    return [Case("samples", partial(_measure_law, draw, settings, _COUNT))]


def _measure_law(draw: DrawsSamples, settings: Settings, count: int) -> Iterator[Finding]:
    """Yield the distances of samples from the laws of their data."""
    x = _samples(draw, GAUSSIAN, settings, count)
    value, limit = gaussian_deviance(x, GAUSSIAN, _SLACK)
    yield Finding("deviance of mean and covariance", value, high=limit)
    value, limit = kolmogorov_distance(share_below(_samples(draw, MIXTURE_1D, settings, count)))
    yield Finding("Kolmogorov distance of two modes", value, high=limit)


def _samples(draw: DrawsSamples, data: GaussianMixture, settings: Settings, count: int) -> Tensor:
    """Return samples that have the right shape."""
    shape = (count, *data.shape)
    x = draw(data.model(settings.sde), shape, steps=_STEPS, seed=settings.seed)
    if tuple(x.shape) != shape:
        raise ValueError(f"samples must have shape {shape}, not {tuple(x.shape)}")
    return x.detach().cpu()


def _draw(sampler: Sampler, model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """Draw samples by a solver of the library, adaptive ones at their own tolerance."""
    return sample(model, shape, solver=sampler, steps=None if sampler.adaptive else steps, seed=seed)
