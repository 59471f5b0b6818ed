"""Ancestral sampling of the chain tends to the reverse SDE: the law of its result converges at weak order 1.

The reverse SDE ends in the data's law exactly. On Gaussian data the sampler's result is Gaussian and its moments come
from the affine map that ``sample`` is; on a mixture the density is carried from step to step by quadrature.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from broken import AncestralWithTooMuchNoise
from quadrature import carry_density, exact_density

from catalogue import GAUSSIAN, MIXTURE_1D
from sdediff import DDPM, SAMPLERS, VPSDE
from sdediff.samplers import Sampler
from sdediff.selftest.convergence import affine_map, moments_at, slope

TOLERANCE = 0.2
BOTH = ("ancestral", "ancestral-marginal")
T_TO = 0.04


def errors_on_gaussians(sampler: Sampler, lengths: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Distance of mean and covariance of x_0 from the data's, for chains of several lengths run through in full."""
    in_mean, in_covariance = [], []
    for n in lengths:
        chain = DDPM.linear(n)
        path = affine_map(sampler, GAUSSIAN.model(chain), chain.instants.flip(0), 2)
        mean, covariance = path.push(*moments_at(GAUSSIAN, chain, 1.0))
        in_mean.append(float((mean - GAUSSIAN.mean).norm()))
        in_covariance.append(float((covariance - GAUSSIAN.covariance).norm()))
    return in_mean, in_covariance


def density_errors(sampler: Sampler, lengths: tuple[int, ...]) -> list[float]:
    """Total variation between the chain's result at ``T_TO`` and the law of the limiting reverse SDE."""
    limit = MIXTURE_1D.model(VPSDE())
    out = []
    for n in lengths:
        chain = DDPM.linear(n)
        instants = chain.instants[round(T_TO * n) :].flip(0)
        x, densities = carry_density(sampler, MIXTURE_1D, chain, instants, reach=5.0, points=401)
        truth = exact_density(MIXTURE_1D, limit.sde, torch.from_numpy(x)[:, None], T_TO)
        out.append(0.5 * float(np.trapezoid(np.abs(densities[-1] - truth), x)))
    return out


@pytest.mark.parametrize("name", BOTH)
def test_moments_converge(name: str) -> None:
    lengths = (100, 200, 400)
    in_mean, in_covariance = errors_on_gaussians(SAMPLERS[name], lengths)
    assert abs(slope(lengths, in_covariance) - 1.0) < TOLERANCE
    assert max(in_mean) < 1e-12  # exact: a state at its mean is taken for its mean


@pytest.mark.parametrize("name", BOTH)
def test_density_converges(name: str) -> None:
    lengths = (50, 100, 200)
    assert abs(slope(lengths, density_errors(SAMPLERS[name], lengths)) - 1.0) < TOLERANCE


def test_wrong_variance_does_not() -> None:
    """The control: 5 % too much variance a step ends in another law."""
    broken = AncestralWithTooMuchNoise()
    assert not abs(slope((100, 200), errors_on_gaussians(broken, (100, 200))[1]) - 1.0) < TOLERANCE
    assert not abs(slope((50, 100, 200), density_errors(broken, (50, 100, 200))) - 1.0) < TOLERANCE
