"""The bound from sampled steps and in continuous time, and learned variances.

Where a test compares a Monte-Carlo mean with its expectation it allows 4.5 standard errors: by chance 7e-6 a time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE, PROCESSES
from sdediff import DDPM, VPSDE, DataInfo, NoiseSource, ScoreModel, Split
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.denoiser import Denoiser
from sdediff.gaussian import GaussianErrors, Moments
from sdediff.likelihood import elbo
from sdediff.likelihood.bound.chain import BoundBatch, ChainSteps, reverse_variance, sampled_steps
from sdediff.likelihood.bound.stratified import KURTOSIS, LAWS, LevelDistribution, stratified_pairs, variance_of_draws
from sdediff.likelihood.discrete.decoder import density_decoder
from sdediff.noise import Stage
from sdediff.types import Level

CONTINUOUS = math.inf
DEGENERATE = Moments.of(torch.tensor([0.3, -0.2, 0.1]), torch.diag(torch.tensor([2.0, 0.05, 0.0])))
"""A direction without variance, as a pixel that is always black."""


class Learned(Denoiser):
    """Guesses half of the state as its noise, and fixed fractions for the variance."""

    def __init__(self, sde, fraction: Tensor | None) -> None:
        super().__init__()
        self.sde, self.moments, self.data, self.fraction = sde, None, None, fraction

    def forward(self, x: Tensor, level: Level) -> Split:
        split = ScoreModel(lambda x, t: 0.5 * x, self.sde)(x, level)
        split.fraction = None if self.fraction is None else self.fraction.expand_as(x)
        return split


# ---- the control variate -------------------------------------------------------------------------------------


def test_control_is_the_error_of_the_exact_denoiser_of_gaussian_data():
    sde, x0 = VPSDE(), GAUSSIAN.sample(5, seed=1)
    eps = NoiseSource(2, x0.shape, dtype=torch.float64).normal(0)
    for t in (1e-3, 0.3, 1.0):
        error = (GAUSSIAN.model(sde).epsilon(sde.perturb(x0, t, eps), t) - eps).square().sum(dim=1)
        drawn = GaussianErrors(x0, GAUSSIAN.moments).squared_error(eps, sde.half_log_snr(t))
        assert drawn == pytest.approx(error, rel=1e-9)


def test_means_and_integrals_of_the_control_are_exact():
    """Signs have the second moments of normals; Gauss-Legendre with 40 nodes a half unit of lambda is exact."""
    x0 = torch.tensor([[0.5, 0.1, -1.0], [2.0, -0.3, 0.1]], dtype=torch.float64)
    errors = GaussianErrors(x0, DEGENERATE)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    for lam in (-3.0, 0.4, 5.0):
        drawn = torch.stack([errors.squared_error(eps.expand(2, 3), lam) for eps in signs]).mean(dim=0)
        assert errors.mean(torch.tensor([lam], dtype=torch.float64))[0] == pytest.approx(drawn, rel=1e-12)
    edges = torch.linspace(3.0, -3.0, 13, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(40))
    for upper, lower, got in zip(edges[:-1], edges[1:], errors.integral(edges), strict=True):
        half = 0.5 * (upper - lower)
        expected = half * (weights[:, None] * errors.mean(lower + half * (1.0 + nodes))).sum(dim=0)
        assert got == pytest.approx(expected, rel=1e-10)


# ---- sampled steps -------------------------------------------------------------------------------------------


def expected_steps(chain: DDPM, x0: Tensor, fraction: Tensor, guess=lambda s: 0.5) -> Tensor:
    """Expectation of each step's KL for ``eps_hat = guess(sigma) x``, from the betas: ``(N - 1, B)``."""
    betas = torch.tensor(chain.betas, dtype=torch.float64)
    alpha_bar = torch.cumprod(1.0 - betas, 0)
    tilde = betas[1:] * (1.0 - alpha_bar[:-1]) / (1.0 - alpha_bar[1:])
    share = (betas[1:] ** 2 / ((1.0 - betas[1:]) * (1.0 - alpha_bar[1:])))[:, None, None]  # of the mean, in eps
    a, s = alpha_bar[1:, None, None].sqrt(), (1.0 - alpha_bar[1:, None, None]).sqrt()
    squared = share * ((1.0 - guess(s) * s) ** 2 + (guess(s) * a * x0) ** 2)
    log_own = fraction * betas[1:, None, None].log() + (1.0 - fraction) * tilde[:, None, None].log()
    log_ratio = log_own - tilde[:, None, None].log()
    return 0.5 * (log_ratio + torch.exp(-log_ratio) - 1.0 + squared * torch.exp(-log_own)).sum(dim=2)


FRACTIONS = {
    "posterior": torch.zeros(2, dtype=torch.float64),
    "marginal": torch.ones(2, dtype=torch.float64),
    "learned": torch.tensor([0.2, 0.7], dtype=torch.float64),
}


@pytest.mark.parametrize(("variance", "law", "control"), [
    ("posterior", "moments", "none"), ("marginal", "logsnr", "moments"), ("learned", "moments", "moments"),
])  # fmt: skip
def test_sampled_steps_are_unbiased_each_of_them(variance, law, control):
    """11 comparisons a case: 8e-5."""
    chain, x0 = DDPM.linear(12), MIXTURE.sample(4000, seed=1)
    model, fraction = Learned(chain, FRACTIONS[variance]), FRACTIONS[variance]
    exact = expected_steps(chain, x0, fraction)
    got = elbo(model, x0, draws=4, variance=variance, law=law, control=control, seed=2)

    def z(rows: Tensor) -> Tensor:
        return (rows - exact).mean(dim=1) / (rows - exact).std(dim=1) * math.sqrt(len(x0))

    assert float(z(got.diffusion).abs().max()) < 4.5
    # Negative control: draws weighted as if all steps were equally likely.
    steps = ChainSteps(chain.levels(chain.instants[1:]), reverse_variance(variance))
    places = LevelDistribution(
        steps.half_log_snr, LAWS[law](steps.half_log_snr, Moments.of(torch.zeros(2), torch.eye(2)))
    )
    places.probability = torch.full((11,), 1.0 / 11.0, dtype=torch.float64)
    noise = NoiseSource(2, x0.shape, dtype=torch.float64)
    broken = sampled_steps(
        model, BoundBatch(x0, noise, density_decoder(x0), GaussianErrors.none(x0)), steps, places, 4, 2
    )
    assert float(z(broken.diffusion).abs().max()) > 4.5


def test_every_step_by_the_same_expectation():
    """With the control the exact sum keeps its expectation, and loses noise."""
    chain, x0 = DDPM.linear(12), MIXTURE.sample(4000, seed=1)
    model = Learned(chain, FRACTIONS["learned"])
    exact = expected_steps(chain, x0, FRACTIONS["learned"]).sum(dim=0)
    for control in ("none", "moments"):
        beyond = elbo(model, x0, variance="learned", control=control, seed=3).diffusion.sum(dim=0) - exact
        assert abs(float(beyond.mean() / beyond.std())) * math.sqrt(len(x0)) < 4.5


def test_steps_are_drawn_by_their_probability():
    """The share of each cell among the draws, by the binomial law of independent pairs; 6 cells, 4.5 sigma."""
    edges = torch.tensor([3.0, 2.0, 0.5, 0.2, -1.0, -1.1, -4.0], dtype=torch.float64)
    places = LevelDistribution(edges, LAWS["moments"](edges, GAUSSIAN.moments))
    u = stratified_pairs(NoiseSource(1, (20000, 2)), 2, -1)
    for of in (places.cell(u), torch.searchsorted(-edges, -places.half_log_snr(u), right=True) - 1):
        share = torch.bincount(of.flatten(), minlength=6).double() / u.numel()
        z = (share - places.probability) / (places.probability * (1.0 - places.probability) / u.numel()).sqrt()
        assert float(z.abs().max()) < 4.5
    assert float((places.probability * 6.0 - 1.0).abs().max()) > 0.1  # they are not alike


# ---- learned variances ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 7])
def test_learned_variance_at_its_ends_is_posterior_and_marginal(steps):
    chain, x0 = DDPM.linear(30), MIXTURE.sample(5, seed=2)
    for fixed in ("posterior", "marginal"):
        model = Learned(chain, FRACTIONS[fixed])
        options = {"steps": steps, "control": "none", "seed": 1}
        learned, expected = (elbo(model, x0, variance=v, **options) for v in ("learned", fixed))
        assert torch.allclose(learned.diffusion, expected.diffusion, rtol=1e-14, atol=0.0)
        # the first step's own: learned, it runs from the next bridge's variance to the forward step's
        assert torch.allclose(learned.reconstruction, expected.reconstruction) is (fixed == "marginal")


def normal_kl(mean_1, logvar_1, mean_2, logvar_2):
    return 0.5 * (-1.0 + logvar_2 - logvar_1 + np.exp(logvar_1 - logvar_2) + (mean_1 - mean_2) ** 2 * np.exp(-logvar_2))


@pytest.mark.parametrize("stride", [1, 5])
def test_learned_variance_by_the_formulas_of_improved_ddpm(stride):
    """Nichol & Dhariwal (2021), eq. 10-15, written out on the strided chain's betas."""
    chain, x0 = DDPM.linear(50), MIXTURE.sample(6, seed=3)
    fraction = torch.tensor([0.3, 0.9], dtype=torch.float64)
    n = 50 // stride
    got = elbo(Learned(chain, fraction), x0, steps=n, variance="learned", control="none", seed=4)
    bar = np.cumprod(1.0 - np.array(chain.betas))[stride - 1 :: stride]
    before = np.append(1.0, bar[:-1])
    betas = 1.0 - bar / before
    posterior = betas * (1.0 - before) / (1.0 - bar)
    low, high = np.log(np.append(posterior[1], posterior[1:])), np.log(betas)
    noise, f, clean = NoiseSource(4, x0.shape, dtype=torch.float64), fraction.numpy(), x0.numpy()
    for i in range(n):
        eps = noise.normal(i, stage=Stage.BOUND).numpy()
        x_t = np.sqrt(bar[i]) * clean + np.sqrt(1.0 - bar[i]) * eps
        guess = (x_t - np.sqrt(1.0 - bar[i]) * 0.5 * x_t) / np.sqrt(bar[i])
        log_own = f * high[i] + (1.0 - f) * low[i]
        if i == 0:
            law = torch.distributions.Normal(torch.from_numpy(guess), torch.from_numpy(np.exp(0.5 * log_own)))
            assert got.reconstruction == pytest.approx(-law.log_prob(x0).sum(dim=1), rel=1e-8)
            continue
        from_x0 = np.sqrt(before[i]) * betas[i] / (1.0 - bar[i])
        from_x_t = (1.0 - before[i]) * np.sqrt(1.0 - betas[i]) / (1.0 - bar[i])
        means = [from_x0 * x + from_x_t * x_t for x in (clean, guess)]
        expected = normal_kl(means[0], np.log(posterior[i]), means[1], log_own).sum(axis=1)
        assert got.diffusion[i - 1].numpy() == pytest.approx(expected, rel=1e-8)


# ---- continuous time -----------------------------------------------------------------------------------------


def test_gaussian_data_have_their_density_up_to_order_two_in_the_first_noise():
    """The control is the denoiser: nothing is left to chance. What the decoder does not know is ``(1/SNR)^2``."""
    x0, sde = GAUSSIAN.sample(20, seed=1), VPSDE()
    snr, gaps = [], []
    for lam in (2.5, 3.0, 3.5, 4.0):
        ends = [float(sde.time(lam)), 1.0]
        result = elbo(GAUSSIAN.model(sde), x0, steps=CONTINUOUS, times=ends, draws=2)
        assert float(result.standard_error.max()) < 1e-11
        gaps.append((result.total + GAUSSIAN.log_prob(x0)).abs().numpy())
        snr.append(2.0 * lam)
    slopes = np.polyfit(snr, np.log(np.stack(gaps)), 1)[0]
    assert -float(np.median(slopes)) == pytest.approx(2.0, abs=0.1)


ITEMS = MIXTURE.sample(4000, seed=5)
DENSITY = MIXTURE.log_prob(ITEMS)


def test_exact_denoiser_gives_the_density_of_each_item_within_its_error():
    """The 95 % interval of 4,000 items holds ``-log p`` 93 to 97 times in 100 (the binomial deviation is 0.35)."""
    result = elbo(MIXTURE.model(VPSDE()), ITEMS, steps=CONTINUOUS, seed=1)
    low, high = result.interval()
    truth = -DENSITY
    assert 0.93 < float(((low < truth) & (truth < high)).double().mean()) < 0.97
    beyond = result.total - truth
    assert abs(float(beyond.mean() / beyond.std())) * math.sqrt(len(ITEMS)) < 4.5
    # Negative controls: the errors taken as if they were known; the reconstruction term left out.
    assert float((beyond.abs() < 1.96 * result.standard_error).double().mean()) < 0.93
    assert abs(float((beyond - result.reconstruction).mean())) > 1.0


def test_errors_are_unbiased_in_the_square():
    """Mean squared error over mean squared standard error of 4,000 items; its deviation is estimated from the items."""
    result = elbo(MIXTURE.model(VPSDE()), ITEMS, steps=CONTINUOUS, draws=16, seed=2)
    excess = (result.total + DENSITY).square() - result.standard_error.square()
    assert abs(float(excess.mean() / excess.std())) * math.sqrt(len(ITEMS)) < 4.5
    broken = (result.total + DENSITY).square() - 0.5 * result.standard_error.square()  # negative control
    assert abs(float(broken.mean() / broken.std())) * math.sqrt(len(ITEMS)) > 4.5


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_uncertainty_of_a_variance_is_half_its_variance(n):
    """In the mean over all outcomes of n draws from three values whose kurtosis is the one that is assumed."""
    values, chances = torch.tensor([[-1.0, 0.0, 1.0], [0.1, 0.8, 0.1]], dtype=torch.float64)
    assert float(chances @ values**4 / (chances @ values**2) ** 2) == pytest.approx(KURTOSIS)
    places = torch.cartesian_prod(*[torch.arange(3)] * n).T
    weight, found = chances[places].prod(dim=0), variance_of_draws(values[places])
    assert float(weight @ found.variance) == pytest.approx(0.2 / n, rel=1e-12)
    spread = float(weight @ (found.variance - 0.2 / n) ** 2)
    assert float(weight @ found.uncertainty) == pytest.approx(0.5 * spread, rel=1e-12)


def test_sampled_chain_states_its_error():
    """Against its own expectation: of unit-variance data in 16 dimensions ``eps_hat = sigma x``, without control."""
    chain, law = DDPM.linear(40), Gaussian([0.0] * 16, 1.0)
    x0 = law.sample(4000, seed=2)
    result = elbo(law.model(chain), x0, draws=64, samples=4, control="none", seed=2)
    exact = expected_steps(chain, x0, torch.zeros(16), guess=lambda s: s).sum(dim=0)
    beta = chain.betas[0]  # x0 - x0_hat = beta x0 - sqrt(beta (1 - beta)) eps at the first instant
    exact += 0.5 * (beta * x0.square() + 1.0 - beta + math.log(2.0 * math.pi * beta)).sum(dim=1)
    for confidence in (0.5, 0.95):
        low, high = result.interval(confidence)
        truth = exact + result.prior
        covered = float(((low < truth) & (truth < high)).double().mean())
        assert abs(covered - confidence) < 0.02 + 4.0 * math.sqrt(confidence * (1.0 - confidence) / len(x0))
    # Negative control: Satterthwaite's degrees are less than one a stratum.
    assert 4.0 < float(result.degrees.median()) < 32.0


def test_what_a_wrong_denoiser_adds_is_its_distance_from_the_right_one():
    """``KL(p || model) = integral E|eps_hat - eps_exact|^2 d lambda``, here for the Gaussian with the data's moments.

    Its own bound has no noise; the integral is taken by the trapezium rule at 200 levels on the items' own noise.
    """
    law, sde, n = Gaussian(MIXTURE.mean, MIXTURE.covariance), VPSDE(), 200
    wrong = elbo(law.model(sde), ITEMS, steps=CONTINUOUS, draws=2)
    lams = torch.linspace(6.9, -5.0, n, dtype=torch.float64)
    noise, total = NoiseSource(3, ITEMS.shape, dtype=torch.float64), torch.zeros(len(ITEMS), dtype=torch.float64)
    for i, level in enumerate(sde.levels(sde.time(lams))):
        x = level.alpha * ITEMS + level.sigma * noise.normal(i)
        total += (law.split(x, level).eps - MIXTURE.split(x, level).eps).square().sum(dim=1)
    distance = total * float(lams[0] - lams[-1]) / (n - 1)
    beyond = wrong.total + DENSITY - distance
    assert abs(float(beyond.mean() / beyond.std())) * math.sqrt(len(ITEMS)) < 4.5
    # Negative control: a bound that counts half of it, or twice.
    assert abs(float((beyond + 0.5 * distance).mean() / beyond.std())) * math.sqrt(len(ITEMS)) > 4.5
    assert float((wrong.total + DENSITY).mean()) > 0.0


@pytest.mark.parametrize("name", ["cosine", "subvp", "ve", "flow", "ddpm"])
def test_no_schedule_is_left_in_it(name):
    """Between the same two noise levels every process has the same bound, draw by draw."""

    def bound(sde, **options):
        ends = [float(sde.time(lam)) for lam in (3.5, -3.5)]
        return elbo(MIXTURE.model(sde), ITEMS[:20], times=ends, seed=6, **options)

    expected, got = bound(VPSDE(), steps=CONTINUOUS, draws=16), bound(PROCESSES[name], steps=CONTINUOUS, draws=16)
    # the posterior of x0 divides by sigma^2: the rounding of the schedule's inverse, 1e-13 of lambda, comes e^7 larger
    assert got.total == pytest.approx(expected.total, rel=1e-8)
    assert got.prior == pytest.approx(expected.prior, rel=1e-8)
    # Negative control: a bound of one step at mid-time knows the schedule.
    middle = (elbo(MIXTURE.model(sde), ITEMS[:20], times=[0.25, 0.5, 0.75]).total for sde in (VPSDE(), PROCESSES[name]))
    assert float((next(middle) - next(middle)).abs().max()) > 1e-3


@pytest.mark.parametrize("decoder", ["discretised", "levels"])
def test_integers_have_their_probability(decoder):
    """Point masses on the levels: the exact denoiser's bound is ``-log P(k)``, either decoder sure at small noise."""
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    law = GaussianMixture(torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)[:, None], torch.zeros(4), weights)
    x = torch.arange(4).repeat(500)[:, None]
    model = law.model(VPSDE()).double()
    data, ends = DataInfo((1,), 4), [1e-5, 1.0]
    result = elbo(model, x, steps=CONTINUOUS, times=ends, decoder=decoder, data=data, draws=32, seed=1)
    assert result.nfe == (34 if decoder == "discretised" else 32)
    beyond = (result.total + weights.log().repeat(500)).reshape(500, 4)
    z = beyond.mean(dim=0) / beyond.std(dim=0) * math.sqrt(500.0)
    assert float(z.abs().max()) < 4.5
    # Negative control: without the reconstruction term, at a noise as wide as the bins, something is left to say.
    wide = elbo(model, x, steps=CONTINUOUS, times=[float(VPSDE().time(0.5)), 1.0], decoder=decoder, data=data)
    assert float(wide.reconstruction.mean()) > 0.1
    assert result.bits_per_dim == pytest.approx(result.total / math.log(2.0))


# ---- the contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"steps": CONTINUOUS, "draws": 8}, {"steps": 30, "draws": 6}])
def test_items_are_the_same_in_any_batch_and_every_forward_counts(options, global_generators_untouched):
    model, calls = MIXTURE.model(VPSDE()), []
    model.register_forward_hook(lambda *_: calls.append(1))
    x0 = ITEMS[:7]
    together = elbo(model, x0, seed=5, **options)
    assert len(calls) == together.nfe == options["draws"] + 2
    in_parts = elbo(model, x0, seed=5, batch_size=3, **options)
    assert len(calls) - together.nfe == in_parts.nfe == 3 * together.nfe
    alone = elbo(model, x0[4:5], seed=5, first=4, **options)
    other = elbo(model, x0[4:5], seed=6, first=4, **options)
    # sums over features may differ in their last digits with the batch
    assert torch.allclose(together.total, in_parts.total, rtol=1e-9, atol=0.0)
    assert torch.allclose(together.standard_error, in_parts.standard_error, rtol=1e-7, atol=0.0)
    assert torch.allclose(together.diffusion[:, 4:5], alone.diffusion, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together.total[4:5], other.total, rtol=1e-3, atol=0.0)


def test_rows_lie_between_their_times():
    sde = VPSDE()
    result = elbo(GAUSSIAN.model(sde), GAUSSIAN.sample(3), steps=CONTINUOUS, draws=8)
    assert result.diffusion.shape == (4, 3)
    assert float(result.times[0]) == pytest.approx(sde.t_min)
    assert float(result.times[-1]) == pytest.approx(sde.t_max)
    expected = GaussianErrors(GAUSSIAN.sample(3), GAUSSIAN.moments).integral(sde.half_log_snr(result.times))
    assert result.diffusion.numpy() == pytest.approx(expected.numpy(), rel=1e-8)
    chain = DDPM.linear(9)
    assert torch.equal(elbo(GAUSSIAN.model(chain), GAUSSIAN.sample(3), draws=2).times, chain.instants[1:])


def test_ends_of_integers_are_no_finer_than_their_bins():
    chain, integers = DDPM.linear(10), torch.zeros(2, 2, dtype=torch.int64)
    for sde, levels, noise in ((VPSDE(), 17, 0.4 / 8.0), (chain, 256, float(torch.exp(-chain.half_log_snr(0.1))))):
        result = elbo(GAUSSIAN.model(sde), integers, steps=CONTINUOUS, draws=2, data=DataInfo((2,), levels))
        assert float(torch.exp(-sde.half_log_snr(result.times[0]))) == pytest.approx(noise)
    floats = elbo(GAUSSIAN.model(chain), FLOATS, steps=CONTINUOUS, draws=2)
    assert float(floats.times[0]) == pytest.approx(0.1)


def test_mean_over_items_has_its_error():
    result = elbo(MIXTURE.model(VPSDE()), ITEMS[:50], steps=CONTINUOUS, draws=4)
    assert result.mean == pytest.approx(float(result.total.mean()))
    assert result.mean_standard_error == pytest.approx(float(result.total.std()) / math.sqrt(50.0))
    assert math.isnan(elbo(MIXTURE.model(VPSDE()), ITEMS[:1], steps=CONTINUOUS, draws=4).mean_standard_error)


CHAIN, FLOATS = GAUSSIAN.model(DDPM.linear(4)), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 3}, "even number"),
        ({"draws": 0}, "even number"),
        ({"steps": 2.5}, "whole number or math.inf"),
        ({"steps": math.inf, "times": [0.1, 0.2, 0.3]}, "two ends"),
        ({"steps": math.inf, "times": [0.2, 0.1]}, "two ends"),
        ({"law": "best"}, "unknown law"),
        ({"control": "best"}, "unknown control"),
        ({"decoder": "levels"}, "integer data"),
        ({"variance": "learned"}, "no learned variance"),
        ({"times": [0.5], "draws": 2}, "no steps to sample"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message) as error:
        elbo(CHAIN, FLOATS, **options)
    assert "\n" not in str(error.value)


def test_refuses_a_confidence_that_is_none():
    with pytest.raises(ValueError, match="between 0 and 1, not 95"):
        elbo(CHAIN, FLOATS, samples=2).interval(95)
