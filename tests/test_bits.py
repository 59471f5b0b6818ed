"""Bits a dimension: closed forms within their stated error, bounds in their order, parts of the error, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from catalogue import GAUSSIAN, PROCESSES
from experiments.imperfect import Erring
from sdediff import VESDE, VPSDE, DataInfo, ScoreModel
from sdediff.analytic import Gaussian, GaussianMixture
from sdediff.likelihood import bits_per_dim, log_likelihood
from sdediff.likelihood.bits_per_dim import BOUNDS
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS, DecodedNormal, TruncatedNormal, Uniform

MEAN, STD, DIM = -0.2, 0.4, 4
LAW = Gaussian([MEAN] * DIM, STD**2)
PATH = {"steps": 12, "trace": "exact"}
SLACK = 1e-5  # bits: 12 steps are exact to 1e-6 on Gaussian data, values in float32 to as much
FINE = {"rtol": 1e-5, "atol": 1e-5, "trace": "exact"}
NATS = math.log(2.0)


def delta(levels: int) -> float:
    return 2.0 / (levels - 1)


def integers(levels: int, n: int) -> Tensor:
    return ((LAW.sample(n, seed=9) + 1.0) / delta(levels)).round().clamp(0, levels - 1).long()


def probability(name: str, x: Tensor, levels: int, rho: float) -> Tensor:
    """``log2 P`` a dimension of integers read off the blurred law: of its bins, or of the decoder's posterior."""
    law, centre, half = stats.norm(MEAN, math.hypot(STD, rho)), -1.0 + delta(levels) * x, 0.5 * delta(levels)
    if name != "decoder":
        return torch.from_numpy(np.log2(law.cdf(centre + half) - law.cdf(centre - half))).mean(dim=1)
    v, step = np.linspace(MEAN - 4.0, MEAN + 4.0, 4001, retstep=True)
    logs = kernel(v, levels, rho)
    posterior = np.exp(logs - special.logsumexp(logs, axis=1, keepdims=True))
    return torch.from_numpy(np.log2(step * law.pdf(v) @ posterior))[x].mean(dim=1)


def expected_bits(name: str, x: Tensor, levels: int, rho: float) -> Tensor:
    """The bound's expectation: ``-E log2 N(v)`` from the variance of v about its level, the entropy, the decoder."""
    tau = 0.5 * delta(levels) / rho
    mass, density = math.erf(tau * math.sqrt(0.5)), float(stats.norm.pdf(tau))
    variance, entropy, read = {
        "uniform": (delta(levels) ** 2 / 12.0, math.log(delta(levels)), torch.zeros(levels)),
        "truncated-normal": (
            rho**2 * (1.0 - 2.0 * tau * density / mass),
            math.log(rho * mass * math.sqrt(2.0 * math.pi * math.e)) - tau * density / mass,
            torch.zeros(levels),
        ),
        "decoder": (rho**2, math.log(rho * math.sqrt(2.0 * math.pi * math.e)), expected_reading(levels, rho)),
    }[name]
    squared, total = (-1.0 + delta(levels) * x - MEAN).square() + variance, STD**2 + rho**2
    nats = 0.5 * math.log(2.0 * math.pi * total) + squared.mean(dim=1) / (2.0 * total) - entropy - read[x].mean(dim=1)
    return nats / NATS


def kernel(v: np.ndarray, levels: int, rho: float) -> np.ndarray:
    """``log N(v; v_k, rho^2)`` but for a constant, ``(..., levels)``."""
    return -0.5 * ((v[..., None] - np.linspace(-1.0, 1.0, levels)) / rho) ** 2


def expected_reading(levels: int, rho: float) -> Tensor:
    """``E log P(k | v)`` of every level k over ``v = v_k + rho eps``, by integration."""
    z, weights = np.polynomial.legendre.leggauss(120)
    weights = 9.0 * weights * stats.norm.pdf(9.0 * z)
    logs = kernel(np.linspace(-1.0, 1.0, levels)[:, None] + 9.0 * rho * z, levels, rho)
    own = logs[np.arange(levels), :, np.arange(levels)]
    return torch.from_numpy((weights * (own - special.logsumexp(logs, axis=-1))).sum(axis=1))


# ---- closed forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("name", DEQUANTISATIONS)
def test_bits_of_discretised_gaussian_data_within_the_stated_error(name, levels):
    """48 items of 6 draws: the errors over their stated ones have variance 5/3 (5 degrees of freedom), their mean 0.

    5 standard errors of the mean over all fail by chance with 1e-6; ``|t| < 25`` for each of 48 items with 1e-4.
    """
    x = integers(levels, 48)
    result = bits_per_dim(LAW.model(VPSDE()), x, levels=levels, dequantisation=name, samples=6, seed=2, **PATH)
    rho = float(torch.exp(-VPSDE().half_log_snr(result.t_from)))
    error = result.bits_per_dim - expected_bits(name, x, levels, rho)
    of_mean = float(result.standard_error.square().sum().sqrt()) / len(x)
    assert float((error.abs() - 25.0 * result.standard_error).max()) < SLACK
    assert abs(float(error.mean())) < 5.0 * of_mean + SLACK
    assert result.spread == pytest.approx(result.standard_error * math.sqrt(6.0))
    assert float(result.probe_error.max()) == 0.0
    assert result.dequantisation_spread == pytest.approx(result.spread)
    # Jensen, exactly, and the negative controls: entropy left out, bins of 2 / levels instead of 2 / (levels - 1).
    assert bool((expected_bits(name, x, levels, rho) >= -probability(name, x, levels, rho)).all())
    for offset in (-math.log2(delta(levels)), *([math.log2(levels / (levels - 1))] if name == "uniform" else [])):
        assert abs(float(error.mean()) - offset) > 5.0 * of_mean + SLACK


def test_an_interval_covers_the_bound_s_expectation():
    """600 items of 6 draws: a true rate of 95 % shows as 0.91 to 0.99 but for a chance of 1e-5; by 1.96 errors 89 %."""
    x = integers(17, 600)
    result = bits_per_dim(LAW.model(VPSDE()), x, levels=17, samples=6, seed=2, **PATH)
    expected = expected_bits("uniform", x, 17, float(torch.exp(-VPSDE().half_log_snr(result.t_from))))
    low, high = result.interval()
    assert 0.91 < float(((low <= expected) & (expected <= high)).double().mean()) < 0.99
    assert float(((expected - result.bits_per_dim).abs() < 1.96 * result.standard_error).double().mean()) < 0.92


POINTS = list(itertools.product(range(5), range(5)))
CHANCES = np.random.default_rng(0).dirichlet(np.full(25, 0.7))
GRID = GaussianMixture([[a / 2 - 1.0, b / 2 - 1.0] for a, b in POINTS], 0.0, CHANCES)
"""Data that are levels themselves: 25 points of the plane, with the probabilities of the integers known."""


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_data_of_levels_cost_what_they_should(sde):
    """The mean cost over the law of the integers is its entropy, to what each law gives away: 2 entries of at most
    0.0027 nats for the truncated normal and 0.104 for the decoder, which its neighbours, less than certain, lessen.

    64 draws of each item; 5 standard errors, 6e-7 for each. Some 20 steps, each within 1e-5, add 1e-4.
    """
    x, chances = torch.tensor(POINTS), torch.from_numpy(CHANCES)
    entropy = -float((chances * chances.log2()).sum()) / 2.0
    for name, least, most in (("truncated-normal", 0.0, 0.0028), ("decoder", 0.0, 0.104)):
        rows = x.repeat(64, 1)
        result = bits_per_dim(GRID.model(sde), rows, levels=5, dequantisation=name, samples=1, **FINE)
        draws = result.bits_per_dim.reshape(64, 25)
        cost, error = draws.mean(dim=0), draws.std(dim=0) / 8.0
        mean, of_mean = float(chances @ cost), float((chances * error).norm())
        assert least / NATS - 5.0 * of_mean - 1e-4 < mean - entropy < most / NATS + 5.0 * of_mean + 1e-4
        assert 5.0 * of_mean < 0.1  # negative control: a tenth of a bit would be seen
    # a uniform law, which does not know that the data are levels, costs more: some 0.19 bits, of 0.02 errors each
    coarse = {"rtol": 1e-3, "atol": 1e-3, "trace": "exact"}
    uniform = bits_per_dim(GRID.model(sde), x.repeat(128, 1), levels=5, t_from=result.t_from, **coarse)
    draws = uniform.bits_per_dim.reshape(128, 25) @ chances
    assert float(draws.mean()) - entropy > 5.0 * float(draws.std()) / math.sqrt(128.0)


# ---- several draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Uniform(), TruncatedNormal(1.0), DecodedNormal()], ids=str)
def test_the_importance_bound_grows_with_its_draws_up_to_the_probability(law):
    """Over 900 items alike: one draw costs more than 8, and these lie between ``-log P`` and the half way to it.

    5 standard errors each, 6e-7. The stated error of an item, by the delta method from its draws, is the scatter of the
    items, less what 8 draws do not see of the larger weights.
    """
    levels, rows = 5, torch.tensor([[1, 1, 2, 3]]).repeat(900, 1)
    options = {"levels": levels, "dequantisation": law, "bound": "importance", **PATH}
    one, many = (bits_per_dim(LAW.model(VPSDE()), rows, samples=samples, **options) for samples in (1, 8))
    growth = one.bits_per_dim - many.bits_per_dim
    assert float(growth.mean()) > 5.0 * float(growth.std()) / 30.0
    rho = float(torch.exp(-VPSDE().half_log_snr(many.t_from)))
    reads = "decoder" if law == DecodedNormal() else "bins"
    exact, error = -float(probability(reads, rows[:1], levels, rho)), float(many.bits_per_dim.std()) / 30.0
    assert -5.0 * error - SLACK < many.mean - exact < 0.5 * (one.mean - exact) + 5.0 * error
    assert 0.7 < float(many.standard_error.square().mean().sqrt()) / (30.0 * error) < 1.15


def test_the_importance_bound_of_subsets():
    log_weights = 3.0 * torch.randn(6, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, _ = BOUNDS["importance"](log_weights)
    parts = [BOUNDS["importance"](log_weights[[j for j in range(6) if j != m]])[0] for m in range(6)]
    assert bool((whole >= torch.stack(parts).mean(dim=0)).all())
    assert whole == pytest.approx(log_weights.exp().mean(dim=0).log(), rel=1e-12)
    shifted, error = BOUNDS["importance"](log_weights - 2000.0)
    assert shifted == pytest.approx(whole - 2000.0, abs=1e-9)
    assert error == pytest.approx(BOUNDS["importance"](log_weights)[1], rel=1e-9)


def test_what_is_not_the_probes_is_the_dequantisation():
    """16 draws by probes, and the same by exact traces, whose spread is the dequantisation's alone.

    Mean squares over 48 items: each has a relative standard error of sqrt(2 / (15 * 48)) = 0.053 of its whole. That
    nothing is below 0 adds at most the mean of what is cut off.
    """
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    law = Gaussian([0.0] * 12, basis @ torch.diag(torch.logspace(-1.5, 0.0, 12, dtype=torch.float64)) @ basis.T)
    x = ((law.sample(48, seed=2) + 1.0) / delta(9)).round().clamp(0, 8).long()
    options = {"levels": 9, "samples": 16, "rtol": 1e-3, "atol": 1e-3}
    probed = bits_per_dim(law.model(VPSDE()), x, trace="hutchinson", probes=4, **options)
    exact = bits_per_dim(law.model(VPSDE()), x, trace="exact", **options)
    whole, probes, rest = (
        float(part.square().mean()) for part in (probed.spread, probed.probe_error, probed.dequantisation_spread)
    )
    cut = float((probed.probe_error.square() - probed.spread.square()).clamp(min=0.0).mean())
    assert probes > 0.3 * whole  # so that the parts can be told apart
    assert rest == pytest.approx(whole - probes + cut, rel=1e-9)
    assert abs(whole - probes - float(exact.spread.square().mean())) < 5.0 * 0.053 * whole * math.sqrt(2.0)
    budget = probed.error_budget.to_dict()
    assert budget["probes"]["item"] == pytest.approx(math.sqrt(probes / 16.0))
    assert budget["dequantisation"]["item"] == pytest.approx(math.sqrt(rest / 16.0))
    assert budget["population"]["mean"] == pytest.approx(probed.mean_standard_error)
    assert probed.standard_error.square().mean() == pytest.approx((probes + rest - cut) / 16.0)


def test_the_budget_has_the_parts_of_the_path():
    """Those of ``log_likelihood``, in bits a dimension; the start level's blur only where it is an approximation."""
    x = integers(17, 5)
    for name, law in DEQUANTISATIONS.items():
        result = bits_per_dim(LAW.model(VPSDE()), x, levels=17, dequantisation=name, samples=2, steps=12)
        parts = result.error_budget.to_dict()
        assert set(parts) == {"probes", "dequantisation", "solver", "quadrature", "prior", "population"} | (
            set() if law.blurs else {"t_min"}
        )
        assert "bits/dim" in str(result.error_budget)
    floats = [
        log_likelihood(LAW.model(VPSDE()), x, data=DataInfo((DIM,), 17), draw=draw, steps=12).error_budget.systematic
        for draw in range(2)
    ]
    uniform = bits_per_dim(LAW.model(VPSDE()), x, levels=17, samples=2, steps=12).error_budget.systematic
    for name, values in uniform.items():
        assert values == pytest.approx(0.5 * (floats[0][name] + floats[1][name]), rel=1e-6, abs=1e-12)


def test_the_target_error_is_in_bits():
    """A draw held to a target is the likelihood of integers held to it; free, it has a larger error."""
    law = Gaussian([0.0] * 6, 0.1 * torch.ones(6, 6) + torch.diag(torch.linspace(0.1, 0.4, 6)))
    x, nats = torch.tensor([[0, 2, 3, 1, 2, 4], [1, 1, 4, 0, 3, 2]]), 6.0 * NATS
    options = {"trace": "hutchinson", "probes": 2, "steps": 12}
    held = bits_per_dim(law.model(VPSDE()), x, levels=5, target_error=0.1, **options)
    same = log_likelihood(law.model(VPSDE()), x, data=DataInfo((6,), 5), target_error=0.1, **options)
    free = bits_per_dim(law.model(VPSDE()), x, levels=5, **options)
    assert held.bits_per_dim == pytest.approx(same.bits_per_dim, rel=1e-6)
    assert held.probe_error == pytest.approx(same.standard_error / nats, rel=1e-4)
    assert bool((held.probe_error < free.probe_error).all())


def test_data_sets_standard_error():
    """The mean over 400 items against the exact mean over the same law: 4.5 standard errors, 7e-6."""
    levels = 33
    x = integers(levels, 400)
    result = bits_per_dim(LAW.model(VPSDE()), x, levels=levels, seed=3, **PATH)
    # the Gaussian's cost at a variance that rounding and uniform noise widen by delta^2 / 12 each: below 3e-3 bits here
    expected = 0.5 * math.log2(2.0 * math.pi * math.e * STD**2) - math.log2(delta(levels))
    assert abs(result.mean - expected) < 4.5 * result.mean_standard_error + 4e-3
    assert result.mean == pytest.approx(float(result.bits_per_dim.mean()))
    assert bool(result.standard_error.isnan().all())
    # Negative control: half a bit is far outside.
    assert abs(result.mean + 0.5 - expected) > 4.5 * result.mean_standard_error + 4e-3


# ---- invariances ---------------------------------------------------------------------------------------------


def test_one_draw_is_the_log_likelihood_of_integers():
    info = DataInfo((DIM,), 17)
    model, x = LAW.model(VPSDE()), integers(17, 5)
    draws = [log_likelihood(model, x, data=info, draw=k, **PATH) for k in range(2)]
    result = bits_per_dim(model, x, levels=17, samples=2, **PATH)
    assert result.bits_per_dim == pytest.approx(0.5 * (draws[0].bits_per_dim + draws[1].bits_per_dim), rel=1e-6)
    assert result.nfe == draws[0].nfe + draws[1].nfe
    own = ScoreModel(model.network, VPSDE(), "v_prediction", conditioning="level", moments=LAW.moments, data=info)
    assert bits_per_dim(own, x, **PATH).bits_per_dim == pytest.approx(draws[0].bits_per_dim, rel=1e-6)


@pytest.mark.parametrize("name", DEQUANTISATIONS)
def test_an_item_is_its_own(name, global_generators_untouched):
    """Neither its batch nor its neighbours matter, only its index; another seed is another draw."""
    model, x = LAW.model(VPSDE()), integers(17, 7)
    options = {"levels": 17, "dequantisation": name, "samples": 2, "seed": 4, **PATH}
    seen = []
    together = bits_per_dim(model, x, **options)
    parts = bits_per_dim(model, x, batch_size=3, progress=lambda done, total: seen.append((done, total)), **options)
    alone = bits_per_dim(model, x[5:6], first=5, **options)
    assert parts.bits_per_dim == pytest.approx(together.bits_per_dim, rel=1e-5)
    assert alone.bits_per_dim == pytest.approx(together.bits_per_dim[5:6], rel=1e-5)
    assert parts.nfe == 3 * together.nfe
    assert seen == [(3, 7), (6, 7), (7, 7)]
    other = bits_per_dim(model, x, **(options | {"seed": 5}))
    assert float((other.bits_per_dim - together.bits_per_dim).abs().min()) > 1e-4


@pytest.mark.parametrize("name", DEQUANTISATIONS)
def test_bits_do_not_hang_on_the_units(name):
    """The same integers at values ``a v + b``, under the model of data so moved: the same bits, draw by draw.

    Start levels follow the bins; uniform values see the blur of ``t_min``, 1e-3 of one of the models' units, whose
    square over the data's variance is below 1e-5.
    """
    scale, shift, x = 2.5, 0.3, integers(17, 6)
    moved = Gaussian([scale * MEAN + shift] * DIM, (scale * STD) ** 2)
    options = {"levels": 17, "dequantisation": name, "samples": 2, **PATH}
    here = bits_per_dim(LAW.model(VPSDE()), x, **options)
    there = bits_per_dim(moved.model(VPSDE()), x, low=shift - scale, high=shift + scale, **options)
    assert there.bits_per_dim == pytest.approx(here.bits_per_dim, abs=2.0 * SLACK)
    # Negative control: the range forgotten.
    wrong = bits_per_dim(moved.model(VPSDE()), x, **options)
    assert float((wrong.bits_per_dim - here.bits_per_dim).abs().max()) > 0.1


def test_the_noise_follows_the_start_level():
    """Asked for at another time, a law is the one with that level's noise; uint8 are integers like others."""
    model, x = LAW.model(VPSDE()), integers(17, 4)
    for law in (TruncatedNormal, DecodedNormal):
        own = bits_per_dim(model, x, levels=17, dequantisation=law(1.3), **PATH)
        told = bits_per_dim(model, x.to(torch.uint8), levels=17, dequantisation=law(), t_from=own.t_from, **PATH)
        assert told.t_from == own.t_from
        assert told.bits_per_dim == pytest.approx(own.bits_per_dim, rel=1e-9)


X = torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X.float(), {"levels": 17}, "integer data only.*nats"),
        (X + 17, {"levels": 17}, "0 .. 16"),
        (X - 1, {"levels": 17}, "0 .. 16"),
        ((X + 17).to(torch.uint8), {"levels": 17}, "0 .. 16"),
        (X, {}, "number of levels"),
        (X, {"levels": 1}, "at least 2"),
        (X, {"levels": 17, "low": 1.0, "high": 1.0}, "low < high"),
        (X, {"levels": 17, "high": math.inf}, "low < high"),
        (X, {"levels": 17, "samples": 0}, "at least 1"),
        (X, {"levels": 17, "batch_size": 0}, "at least 1"),
        (X, {"levels": 17, "dequantisation": "normal"}, "choose one of: uniform, truncated-normal, decoder"),
        (X, {"levels": 17, "bound": "median"}, "choose one of: mean, importance"),
        (X, {"levels": 17, "bound": "importance", "trace": "hutchinson"}, "exact"),
        (X[:, :1], {"levels": 17}, "shape"),
    ],
)
def test_refuses(x, options, message):
    with pytest.raises(ValueError, match=message) as error:
        bits_per_dim(GAUSSIAN.model(VPSDE()), x, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("process", ["ddpm-cosine", "flow"])
def test_numbers_without_meaning_are_refused(process):
    """In 3 steps from pure noise the path's stated error is many bits; in 40 the number is right to 0.1."""
    rng = torch.Generator().manual_seed(1)
    law = GaussianMixture(0.5 * torch.randn(6, 8, generator=rng).double(), torch.full((6,), 0.05).double())
    exact = law.model(PROCESSES[process])
    network = Erring(exact, 8, "epsilon")  # 0.015 RMS off
    model = ScoreModel(network, exact.sde, "epsilon", conditioning="time", moments=exact.moments)
    x = ((law.sample(16, seed=3).clamp(-1.0, 1.0) + 1.0) * 127.5).round().long()
    options = {"levels": 256, "low": -1.0, "high": 1.0}
    with pytest.raises(FloatingPointError, match=r"of 16 likelihoods mean nothing: .* take more steps"):
        bits_per_dim(model, x, steps=3, **options)
    found = bits_per_dim(model, x, steps=40, **options)
    width = torch.full((1,), 2.0 / 255.0).log().double() * 8
    truth = -(law.log_prob(x.double() / 127.5 - 1.0) + width) / (8 * math.log(2.0))
    assert abs(float((found.bits_per_dim - truth).mean())) < 0.1
