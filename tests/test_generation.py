"""Samples and their densities, found along the way: exact where the law is known, and what the likelihood finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE, SKEW
from sdediff import DDPM, SDE, VESDE, VPSDE, NoiseSource, RectifiedFlow, ScoreModel, log_likelihood, sample, solve
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.likelihood.flow.of_samples import DensityOfSamples, sample_with_density, sampling_path
from sdediff.samplers import SAMPLERS

ROUGH = GaussianMixture(
    torch.cat([SKEW.means, SKEW.means], dim=1),
    torch.stack(
        [torch.block_diag(*2 * [v @ w.diag() @ v.T]) for w, v in zip(SKEW._variances, SKEW._basis, strict=True)]
    ),
    SKEW.weights,
)
"""In more dimensions than those up to which the trace is exact whatever is asked for."""


def blurred(law: GaussianMixture, x: Tensor, sde: SDE) -> Tensor:
    """Log-density of the data with the noise at the end of the way."""
    t = sde.t_data
    return law.log_prob(sde.alpha(t) * x, sde, t) + law.dim * sde.log_alpha(t)


def drawn(law: GaussianMixture, sde: SDE, n: int, steps: int, **options: object) -> tuple[Tensor, DensityOfSamples]:
    """Draws of the prior, and what became of them."""
    model, source = law.model(sde), NoiseSource(3, (n, *law.shape), dtype=torch.float64)
    start = sde.prior_sample(source.shape, moments=law.moments, noise=source)
    way = sampling_path(model, SAMPLERS["ode"], steps, None)
    return start, sample_with_density(model, start, way, source, moments=law.moments, **options)  # type: ignore[arg-type]


def test_density_of_gaussian_samples_is_exact_on_every_process(sde):
    x, log_prob = sample(GAUSSIAN.model(sde), (16, 2), steps=7, dtype=torch.float64, return_log_prob=True)
    # the flow is exact; sums of a few terms of order 10, and scores of order 10 times states rounded at 1e-16
    assert log_prob == pytest.approx(blurred(GAUSSIAN, x, sde), abs=1e-12)
    assert float((log_prob - blurred(GAUSSIAN, 1.001 * x, sde)).abs().min()) > 1e-6  # negative control


def test_density_of_mixture_samples_is_exact_to_the_stated_error(sde):
    """The flow carries the density from the start; there the prior stands for the mixture's own law."""
    start, found = drawn(MIXTURE, sde, 32, 100)
    prior = sde.prior_log_prob(start, moments=MIXTURE.moments)
    error = found.log_prob - prior + MIXTURE.log_prob(start, sde, sde.t_max) - blurred(MIXTURE, found.x, sde)
    stated = found.solver_error
    assert float(stated.max()) < 1e-3
    # the estimate of a size is good to a factor of 2 in the mean over items
    assert float(error.square().mean().sqrt()) < 2.0 * float(stated.square().mean().sqrt())
    assert bool((found.standard_error == 0.0).all())


def test_density_is_that_which_the_likelihood_finds(sde):
    """Two paths, up and down, on nodes of their own: one density, to the sum of the two errors stated."""
    _, found = drawn(MIXTURE, sde, 32, 60)
    other = log_likelihood(MIXTURE.model(sde), found.x, steps=60)
    difference = (found.log_prob - other.log_prob).square().mean().sqrt()
    parts = [found.solver_error, other.error_budget.systematic["solver"]]
    assert float(difference) < 2.0 * sum(float(part.square().mean().sqrt()) for part in parts)


@pytest.mark.parametrize("probes", [1, 2])
def test_probes_state_their_error(probes):
    """On 6-D data with a rough divergence: the mean over 400 samples is off by its stated error.

    The stated errors are unbiased or too large: beyond 4.5 of them with a chance of 7e-6.
    """
    _, exact = drawn(ROUGH, VPSDE(), 400, 40, trace="exact")
    _, found = drawn(ROUGH, VPSDE(), 400, 40, trace="hutchinson", probes=probes)
    assert torch.equal(found.x, exact.x)
    error = float(found.standard_error.square().sum().sqrt()) / 400
    difference = float((found.log_prob - exact.log_prob).mean())
    assert error < 0.02
    assert abs(difference) < 4.5 * error
    assert abs(difference + 10.0 * error) > 4.5 * error  # negative control: 0.1 to 0.2 nats more would be seen


def test_mean_density_is_minus_the_entropy():
    """Of 4,000 Gaussian samples: ``log p`` has the variance D / 2 = 1. 4.5 standard errors: 7e-6 of false alarm."""
    sde = VPSDE()
    _, log_prob = sample(GAUSSIAN.model(sde), (4000, 2), steps=3, dtype=torch.float64, return_log_prob=True)
    blur = math.exp(-2.0 * float(sde.half_log_snr(sde.t_min)))
    covariance = GAUSSIAN.covariance + blur * torch.eye(2, dtype=torch.float64)
    entropy = 0.5 * float(torch.logdet(2.0 * math.pi * math.e * covariance))
    error = 1.0 / math.sqrt(4000.0)
    assert abs(float(log_prob.mean()) + entropy) < 4.5 * error
    standard = math.log(2.0 * math.pi * math.e)  # negative control: the entropy of the starts
    assert abs(float(log_prob.mean()) + standard) > 4.5 * error


@pytest.mark.parametrize("process", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_samples_are_those_of_a_solve_to_the_data_s_end(process):
    calls = []

    class Counted(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            calls.append(len(x))
            return torch.tanh(x)

    model = ScoreModel(Counted(), process)
    options = {"steps": 6, "seed": 4, "dtype": torch.float64}
    x, log_prob = sample(model, (5, 3, 2), batch_size=2, return_log_prob=True, **options)
    assert calls == [2] * 7 + [2] * 7 + [1] * 7  # one forward a node
    start = process.prior_sample((5, 3, 2), noise=NoiseSource(4, (5, 3, 2), dtype=torch.float64))
    end = solve(model, start, steps=6, t_to=process.t_min).x / process.alpha(process.t_min)
    assert x == pytest.approx(end, rel=1e-12, abs=1e-12)
    again, densities = sample(model, (3, 3, 2), first=2, return_log_prob=True, **options)
    assert again == pytest.approx(x[2:], rel=1e-12, abs=1e-12)
    assert densities == pytest.approx(log_prob[2:], rel=1e-10)
    assert log_prob.dtype == torch.float64


REFUSED = {
    "noise": ({"solver": "sde"}, "deterministic solver of one forward a step"),
    "two forwards": ({"solver": "heun"}, "deterministic solver of one forward a step"),
    "tolerance": ({"rtol": 1e-3}, "deterministic solver of one forward a step"),
    "to the data": ({"grid": [1.0, 0.5, 0.0]}, "end at 1e-05 or above"),
    "from within": ({"grid": [0.9, 0.5, 0.1]}, "start at t = 1"),
    "upwards": ({"grid": [0.1, 0.5, 1.0]}, "start at t = 1"),
    "trace": ({"trace": "guess"}, "unknown trace 'guess'"),
    "probes": ({"probes": 0}, "at least 1"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_density_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        sample(GAUSSIAN.model(VPSDE()), (2, 2), return_log_prob=True, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sde", [DDPM.cosine(1000), RectifiedFlow()])
def test_a_lower_start_has_the_law_of_its_level(sde):
    """Gaussian data are exact from any level: the same start and solve by hand, and not that from the noise."""
    model = Gaussian([2.0, 0.0], 0.25).model(sde)
    options = {"steps": 5, "seed": 3, "dtype": torch.float64}
    x = sample(model, (2000, 2), t_from=0.8, **options)
    start = sde.prior_sample((2000, 2), t=0.8, moments=model.moments, seed=3, dtype=torch.float64)
    assert torch.equal(x, solve(model, start, t_from=0.8, t_to=0.0, steps=5, seed=3).x)
    assert torch.allclose(x.var(dim=0), torch.full((2,), 0.25, dtype=torch.float64), rtol=0.2)  # six standard errors
    with pytest.raises(ValueError, match="leave t_from out"):
        sample(model, (2, 2), t_from=0.8, return_log_prob=True)
