"""The variational bound: its decoder, its terms against closed forms, and that it is a bound."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from catalogue import GAUSSIAN, MIXTURE
from sdediff import DDPM, VPSDE, DataInfo, NoiseSource, ScoreModel
from sdediff.analytic import Gaussian
from sdediff.gaussian import Moments
from sdediff.likelihood import elbo
from sdediff.likelihood.discrete.decoder import log_bin_mass
from sdediff.noise import Stage


def info(levels: int, low: float = -1.0, high: float = 1.0) -> DataInfo:
    return DataInfo((levels,), levels, low, high)


# ---- the decoder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("mean", [-4.0, -1.0, 0.013, 0.9, 30.0])
def test_decoder_is_a_distribution(levels, std, mean):
    x = torch.arange(levels)[None]
    log_mass = log_bin_mass(x, torch.full((1, levels), mean, dtype=torch.float64), std, info(levels))
    # the logarithms carry a few ulp of rounding of their own size, at most 745 where the mass is not 0
    assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def reference_log_mass(k: int, mean: float, std: float, data: DataInfo) -> float:
    with mpmath.workdps(60):
        width = mpmath.mpf(data.high - data.low) / (data.levels - 1)
        centre = data.low + width * k
        below = -mpmath.inf if k == 0 else (centre - width / 2 - mpmath.mpf(mean)) / mpmath.mpf(std)
        above = mpmath.inf if k == data.levels - 1 else (centre + width / 2 - mpmath.mpf(mean)) / mpmath.mpf(std)
        if below > 0:  # far up, 1 - 1 has no digits: use the other tail
            below, above = -above, -below
        return float(mpmath.log(mpmath.ncdf(above) - mpmath.ncdf(below)))


@pytest.mark.parametrize("k", [0, 1, 100, 127, 254, 255])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.01), (0.99, 0.01), (-1.2, 0.02), (0.3, 0.2), (1e-3, 5.0)])
def test_decoder_keeps_its_digits_in_the_tails(k, mean, std):
    data = info(256)
    got = log_bin_mass(torch.tensor([[k]]), torch.tensor([[mean]], dtype=torch.float64), std, data)
    expected = reference_log_mass(k, mean, std, data)  # down to -log p = 2e4, where p clamped at 1e-12 says 27.6
    # Bins narrower than a standard deviation lose width / std of the digits of the logarithms' difference.
    assert float(got) == pytest.approx(expected, rel=1e-11, abs=1e-11)


# ---- the terms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [True, False])
def test_prior_term_is_the_divergence_of_two_gaussians(sde, moments):
    x0 = MIXTURE.sample(5, seed=1)
    level = sde.levels([sde.t_max])[0]
    own = MIXTURE.moments if moments else Moments.zero(x0.shape[1:])
    mean = level.alpha * MIXTURE.mean if moments else torch.zeros(2, dtype=torch.float64)
    covariance = level.sigma**2 * torch.eye(2, dtype=torch.float64)
    p = torch.distributions.MultivariateNormal(
        mean, covariance + (level.alpha**2 * MIXTURE.covariance if moments else 0.0)
    )
    q = torch.distributions.MultivariateNormal(level.alpha * x0, covariance)
    expected = torch.distributions.kl_divergence(q, p)
    # the reference forms traces and log-determinants of order 1 to log sigma^2 before they cancel
    tolerance = 1e-13 * max(1.0, abs(math.log(level.sigma)))
    assert own.kl(x0, level) == pytest.approx(expected, abs=tolerance)


def test_steps_match_the_divergence_between_bridges(sde):
    """Each row is the KL between the bridge with the real x0 and that with the denoiser's."""
    model, x0, n = MIXTURE.model(sde), MIXTURE.sample(6, seed=2), 5
    times = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    got = elbo(model, x0, times=times, control="none", seed=4)
    noise = NoiseSource(4, x0.shape, dtype=torch.float64)
    for i in range(1, n):
        eps, s, t = noise.normal(i, stage=Stage.BOUND), times[i - 1], times[i]
        x_t = sde.perturb(x0, t, eps)
        real, std = sde.bridge(x_t, x0, t, s)
        guess, _ = sde.bridge(x_t, model.denoise(x_t, t), t, s)
        expected = 0.5 * ((real - guess) / std).square().sum(dim=1)
        assert got.diffusion[i - 1] == pytest.approx(expected, rel=1e-8)


def test_marginal_variance_is_the_divergence_of_unequal_gaussians():
    """On a chain: ``KL(N(mu, beta-tilde) || N(mu_hat, beta))``."""
    chain = DDPM.linear(20)
    model, x0 = MIXTURE.model(chain), MIXTURE.sample(6, seed=2)
    posterior, marginal = (elbo(model, x0, variance=v, control="none", seed=1) for v in ("posterior", "marginal"))
    betas = torch.tensor(chain.betas, dtype=torch.float64)
    alpha_bar = torch.cumprod(1.0 - betas, 0)
    tilde = betas[1:] * (1.0 - alpha_bar[:-1]) / (1.0 - alpha_bar[1:])
    squared = 2.0 * tilde[:, None] * posterior.diffusion
    ratio = (tilde / betas[1:])[:, None]
    expected = x0.shape[1] * 0.5 * (ratio - 1.0 - ratio.log()) + 0.5 * squared / betas[1:, None]
    assert marginal.diffusion == pytest.approx(expected, rel=1e-9)
    assert torch.equal(marginal.reconstruction, posterior.reconstruction)


@pytest.mark.parametrize("variance", ["posterior", "marginal"])
def test_bounds_the_density(variance):
    """The mean of the bound less ``-log p`` is not negative, over 1,000 independent items.

    Were it 0, it would fall 4 standard errors below with probability 3e-5.
    """
    chain = DDPM.linear(50)
    x0 = MIXTURE.sample(1000, seed=3)
    result = elbo(MIXTURE.model(chain), x0, variance=variance, seed=2)
    gap = result.total + MIXTURE.log_prob(x0)
    error = float(gap.std()) / math.sqrt(len(gap))
    assert float(gap.mean()) > -4.0 * error
    # Negative control: without the steps' terms it is no bound.
    assert float((gap - result.diffusion.sum(dim=0)).mean()) < -4.0 * error


def test_integers_cost_at_least_their_entropy_and_little_more():
    """Gaussian levels, finer than the data's spread: ``entropy - log delta`` a dimension up to ``(delta / std)^2``.

    Cross-entropy exceeds entropy, so the bound's mean over data drawn from the law does; 4 standard errors (3e-5).
    """
    levels, std, dim = 65, 0.3, 4
    data = DataInfo((dim,), levels)
    delta = 2.0 / (levels - 1)
    law = Gaussian([0.0] * dim, std**2)
    chain = DDPM.linear(400)
    x = ((law.sample(400, seed=5) + 1.0) / delta).round().clamp(0, levels - 1).long()
    result = elbo(law.model(chain), x, data=data, variance="marginal", seed=1)
    entropy = 0.5 * math.log2(2.0 * math.pi * math.e * std**2) - math.log2(delta)
    error = float(result.bits_per_dim.std()) / math.sqrt(len(x))
    mean = float(result.bits_per_dim.mean())
    assert entropy - 4.0 * error < mean
    assert mean < entropy + 0.2 + 4.0 * error
    # Negative control: a density forgets log2(delta) = -5 bits.
    continuous = elbo(law.model(chain), law.sample(400, seed=5), variance="marginal", seed=1)
    assert abs(float(continuous.total.mean()) / (dim * math.log(2.0)) - mean) > 4.0


# ---- the contract --------------------------------------------------------------------------------------------


def test_standard_error_covers_the_exact_expectation():
    """On Gaussian data the expectation over the noise is known for every x0: its Student statistic is that of 63 dof.

    ``|t| < 6.5`` for 16 items fails by chance with probability 16 * 1.5e-8.
    """
    chain = DDPM.linear(10)
    law = Gaussian([0.2], 0.5)
    x0 = law.sample(16, seed=6)
    result = elbo(law.model(chain), x0, samples=64, control="none", seed=3)
    exact = torch.zeros(16, dtype=torch.float64)
    for i, level in enumerate(chain.levels(chain.instants[1:])):
        # x0_hat - x0 = -(1 - k)(x0 - m) + k (sigma / alpha) eps, k = alpha^2 c / (alpha^2 c + sigma^2)
        k = level.alpha**2 * 0.5 / (level.alpha**2 * 0.5 + level.sigma**2)
        squared = (1.0 - k) ** 2 * (x0[:, 0] - 0.2) ** 2 + (k * level.sigma / level.alpha) ** 2
        if i == 0:
            exact += 0.5 * (math.log(2.0 * math.pi * chain.betas[0]) + squared / chain.betas[0])
        else:
            snr, before = (math.exp(2.0 * float(chain.half_log_snr(j / 10))) for j in (i + 1, i))
            exact += 0.5 * (before - snr) * squared
    estimate = result.total - result.prior
    t = (estimate - exact) / result.standard_error
    assert float(t.abs().max()) < 6.5
    assert float((t * math.sqrt(64.0)).abs().max()) > 6.5  # negative control: the error of one draw, not of the mean
    assert bool(elbo(law.model(chain), x0, seed=3).standard_error.isnan().all())


def test_an_item_is_the_same_alone_and_every_forward_counts(global_generators_untouched):
    chain = DDPM.linear(12)
    calls = []

    def network(x, t):
        calls.append(len(x))
        return 0.5 * x

    model = ScoreModel(network, chain)
    x0 = MIXTURE.sample(7, seed=2)
    together = elbo(model, x0, samples=2, seed=5)
    assert len(calls) == together.nfe == 24
    calls.clear()
    seen = []
    in_parts = elbo(model, x0, samples=2, seed=5, batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert len(calls) == in_parts.nfe == 72
    alone = elbo(model, x0[4:5], samples=2, seed=5, first=4)
    assert torch.allclose(together.diffusion, in_parts.diffusion, rtol=1e-13, atol=0.0)
    assert torch.allclose(together.total[4:5], alone.total, rtol=1e-13, atol=0.0)


def test_chains_of_other_processes_are_their_discretisation():
    """The bound does not depend on the frame: the instants of VP equal those of its chain."""
    x0 = GAUSSIAN.sample(5, seed=1)
    direct = elbo(GAUSSIAN.model(VPSDE()), x0, steps=25, seed=1)
    chain = elbo(GAUSSIAN.model(VPSDE().discretize(25)), x0, seed=1)
    assert torch.allclose(direct.diffusion, chain.diffusion, rtol=1e-9, atol=0.0)
    assert torch.allclose(direct.total, chain.total, rtol=1e-9, atol=1e-9)


def test_strided_chain_keeps_to_its_instants():
    seen = []

    def network(x, t):
        seen.append(float(t[0]))
        return 0.0 * x

    elbo(ScoreModel(network, DDPM.linear(1000)), torch.zeros(1, 2), steps=7)
    position = 1000.0 * torch.tensor(sorted(seen), dtype=torch.float64)
    # times reach the network as float32: 1000 * 6e-8
    assert float((position - position.round()).abs().max()) < 1e-4


CHAIN = GAUSSIAN.model(DDPM.linear(4))
FLOATS, INTEGERS = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "x", "options", "message"),
    [
        (GAUSSIAN.model(VPSDE()), FLOATS, {}, "VPSDE is not a chain"),
        (CHAIN, FLOATS, {"steps": 3, "times": [0.5]}, "either steps or times"),
        (CHAIN, FLOATS, {"times": [0.5, 0.25]}, "t_1 < ... < t_N"),
        (CHAIN, FLOATS, {"times": [0.0, 0.25]}, "t_1 < ... < t_N"),
        (CHAIN, FLOATS, {"variance": "small"}, "unknown variance 'small'"),
        (CHAIN, FLOATS, {"prior": "flat"}, "unknown prior 'flat'"),
        (CHAIN, FLOATS, {"samples": 0}, "at least 1"),
        (CHAIN, FLOATS, {"batch_size": 0}, "at least 1"),
        (CHAIN, FLOATS[:, :1], {}, "shape"),
        (CHAIN, FLOATS[:0], {}, "non-empty"),
        (CHAIN, FLOATS * math.nan, {}, "NaN"),
        (CHAIN, INTEGERS, {}, "levels"),
        (CHAIN, INTEGERS + 9, {"data": DataInfo((2,), 4)}, "0 .. 3"),
    ],
)
def test_refuses(model, x, options, message):
    with pytest.raises(ValueError, match=message) as error:
        elbo(model, x, **options)
    assert "\n" not in str(error.value)


def test_no_bits_for_continuous_data_and_no_silent_nan():
    with pytest.raises(ValueError, match="integer data only"):
        _ = elbo(CHAIN, FLOATS).bits_per_dim
    broken = ScoreModel(lambda x, t: x * math.nan, DDPM.linear(4))
    with pytest.raises(FloatingPointError, match="not finite"):
        elbo(broken, FLOATS)
