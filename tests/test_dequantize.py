"""Integers as densities: laws of the values, the log-weights' two expectations, start levels, what decoders say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from sdediff import SDE, VESDE, VPSDE, DataInfo, NoiseSource
from sdediff.likelihood.discrete.decoder import (
    log_bin_mass,
    log_discretised_gaussian,
    log_gaussian,
    log_level_posterior,
)
from sdediff.likelihood.discrete.dequantization import (
    DEQUANTISATIONS,
    DecodedNormal,
    Dequantisation,
    TruncatedNormal,
    Uniform,
    dequantise,
    integer_data,
    log_bin_volume,
    truncated_normal,
)

INFO = {"17": DataInfo((1,), 17, -1.0, 3.0), "256": DataInfo((1,), 256, 0.0, 1.0)}
LAWS: dict[str, Dequantisation] = {**DEQUANTISATIONS, "wide": TruncatedNormal(0.4), "wide-decoder": DecodedNormal(0.4)}
N = 40_000
LEGENDRE = np.polynomial.legendre.leggauss(400)


def noise(n: int, seed: int = 1, first: int = 0) -> NoiseSource:
    return NoiseSource(seed, (n, 1), first=first, dtype=torch.float64)


def delta(info: DataInfo) -> float:
    assert info.levels is not None
    return (info.high - info.low) / (info.levels - 1)


def noise_of(law: Dequantisation, info: DataInfo) -> float:
    """The standard deviation that a law wants of its start level."""
    return 0.5 * delta(info) / getattr(law, "tau", 1e9)


# ---- truncated normals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1e-3, 0.39, 3.0, 9.0, 40.0])
def test_truncated_normals_keep_the_rank(tau):
    """``Phi`` of the result lies where ``Phi`` of the normal did, within the truncated range: to rounding, odd."""
    normals = torch.linspace(-9.0, 9.0, 3601, dtype=torch.float64)
    result = truncated_normal(normals, tau)
    assert torch.equal(result, -truncated_normal(-normals, tau))
    assert float(result.abs().max()) <= tau
    mass = 2.0 * stats.norm.cdf(tau) - 1.0
    assert special.ndtr(result.numpy()) - 0.5 == pytest.approx(mass * (special.ndtr(normals.numpy()) - 0.5), abs=1e-15)
    assert bool((result.diff() > -1e-14).all())  # where nearly all is cut off, neighbours differ by rounding alone
    if tau == 40.0:  # nothing is cut off: the tails too are what they were
        assert result == pytest.approx(normals, rel=1e-12)


def truncated_normal_entropy(tau: float) -> float:
    """``log(sqrt(2 pi e) Z) - tau phi(tau) / Z``, nats, of a standard normal truncated to ``[-tau, tau]``."""
    mass = math.erf(tau * math.sqrt(0.5))
    return 0.5 * math.log(2.0 * math.pi * math.e) + math.log(mass) - tau * float(stats.norm.pdf(tau)) / mass


@pytest.mark.parametrize("tau", [1e-3, 0.39, 1.0, 3.0187, 9.0])
def test_entropy_of_truncated_normals(tau):
    """In closed form, by integration, and as what draws say of their own density; that within 5 errors, 6e-7.

    The 0.01522 below a normal's entropy is that of Zheng et al. (2023) at their start level.
    """
    nodes, weights = LEGENDRE
    density = stats.norm.pdf(tau * nodes) / math.erf(tau * math.sqrt(0.5))
    closed = truncated_normal_entropy(tau)
    assert closed == pytest.approx(-float(tau * (weights * density * np.log(density)).sum()), abs=1e-9)
    if tau == 3.0187:
        assert 0.5 * math.log(2.0 * math.pi * math.e) - closed == pytest.approx(0.01522, abs=5e-6)
    info = DataInfo((1,), 3)
    drawn = TruncatedNormal(tau).draw(torch.ones(N, 1, dtype=torch.int64), info, 0.5 / tau, noise(N), 0).log_weight
    error = float(drawn.std()) / math.sqrt(N)
    assert abs(float(drawn.mean()) - closed - math.log(0.5 / tau)) < 5.0 * error + 1e-12


# ---- values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [None, 0.4, 3.0])
def test_values_have_their_law_in_the_bin(tau):
    """Kolmogorov-Smirnov over 40,000 draws at p > 1e-5; item and draw decide, not the batch."""
    law, rho = (Uniform(), 1.0) if tau is None else (TruncatedNormal(tau), 0.125 / tau)
    info, x = INFO["17"], torch.arange(N).remainder(17)[:, None]
    values = law.draw(x, info, rho, noise(N), 3).values
    position = ((values - (-1.0 + 0.25 * x)) / rho).flatten().numpy()
    target = stats.uniform(-0.125, 0.25) if tau is None else stats.truncnorm(-tau, tau)
    assert stats.kstest(position, target.cdf).pvalue > 1e-5
    assert stats.kstest(0.9 * position, target.cdf).pvalue < 1e-5  # negative control
    alone = law.draw(x[1000:1001], info, rho, noise(1, first=1000), 3).values
    assert torch.equal(values[1000:1001], alone)
    assert not torch.equal(values, law.draw(x, info, rho, noise(N), 4).values)


def test_uniform_values_are_those_of_log_likelihood():
    info, x = INFO["17"], torch.arange(17)[:, None]
    draw = Uniform().draw(x, info, 0.1, noise(17), 2)
    assert torch.equal(dequantise(x, info, noise(17), draw=2), draw.values)
    assert torch.equal(draw.log_weight, torch.full((17,), log_bin_volume(info, (1,)), dtype=torch.float64))
    assert log_bin_volume(info, (3, 2)) == pytest.approx(6.0 * math.log(0.25))


@pytest.mark.parametrize("name", LAWS)
def test_values_in_float32_are_those_in_float64(name):
    """Where the network is asked, and only there: bits come of values, in float32's 6e-8, a few times."""
    law, info, x = LAWS[name], INFO["256"], torch.arange(256)[:, None]
    rho = noise_of(law, info)
    rounded = NoiseSource(1, (256, 1), dtype=torch.float32)
    draw = law.draw(x, info, rho, rounded, 0)
    again = law.draw(x, info, rho, _As64(rounded), 0)
    assert draw.values.dtype == torch.float32
    assert draw.values.double() == pytest.approx(again.values, abs=2e-7)
    assert draw.log_weight == pytest.approx(again.log_weight, abs=1e-9)


class _As64(NoiseSource):
    """The same float32 normals in float64."""

    def __init__(self, source: NoiseSource) -> None:
        super().__init__(source.seed, source.shape, dtype=torch.float32)
        self._source, self.dtype = source, torch.float64

    def normal(self, step: int, stage: int = 0) -> Tensor:
        return self._source.normal(step, stage).double()


# ---- log-weights ---------------------------------------------------------------------------------------------

Density = Callable[[Tensor, DataInfo, float], Tensor]


def smooth(v: Tensor, info: DataInfo, rho: float) -> Tensor:
    """Log-density of Gaussian data a few bins wide, blurred."""
    centre, std = info.low + 7.3 * delta(info), math.hypot(2.5 * delta(info), rho)
    return -0.5 * (((v - centre) / std).square() + math.log(2.0 * math.pi * std**2))


def of_levels(v: Tensor, info: DataInfo, rho: float) -> Tensor:
    """Log-density of data that are levels, of probabilities proportional to ``k + 1`` up to level 15, blurred."""
    offsets = (v[..., None] - info.low - delta(info) * torch.arange(16)) / rho
    weights = torch.log(torch.arange(1.0, 17.0, dtype=torch.float64) / 136.0)
    return torch.logsumexp(weights - 0.5 * offsets.square(), dim=-1) - math.log(rho * math.sqrt(2.0 * math.pi))


def exact(law: Dequantisation, density: Density, info: DataInfo, rho: float, k: int) -> tuple[float, float]:
    """``log P(k)`` and the mean of the log-weights by integration, from textbook formulas of q and the decoder."""
    width, centre = delta(info), info.low + k * delta(info)
    reach = 10.0 * rho if isinstance(law, DecodedNormal) else 0.5 * width
    nodes, weights = LEGENDRE
    v = centre + reach * torch.from_numpy(nodes)
    z = (v.numpy() - centre) / rho
    all_levels = info.low + width * np.arange(info.levels or 0)
    kernel = stats.norm.logpdf(v.numpy()[:, None], all_levels, rho)
    own, read = {
        Uniform: lambda: (-math.log(width) + 0.0 * z, 0.0),
        TruncatedNormal: lambda: (stats.truncnorm(-reach / rho, reach / rho).logpdf(z) - math.log(rho), 0.0),
        DecodedNormal: lambda: (stats.norm.logpdf(z) - math.log(rho), kernel[:, k] - special.logsumexp(kernel, axis=1)),
    }[type(law)]()
    log_p = density(v, info, rho).numpy()
    probability = reach * float((weights * np.exp(log_p + read)).sum())
    return math.log(probability), reach * float((weights * np.exp(own) * (log_p + read - own)).sum())


@pytest.mark.parametrize("density", [smooth, of_levels])
@pytest.mark.parametrize("levels", INFO)
@pytest.mark.parametrize("name", LAWS)
def test_log_weights_are_a_bound_and_their_exponential_is_unbiased(name, levels, density):
    """Both expectations against integration, each within 5 of its standard errors: 6e-7 of false alarm.

    Negative control: with the entropy of the values left out both are far above.
    """
    law, info, k = LAWS[name], INFO[levels], 6
    rho = noise_of(law, info) if density is smooth or name != "uniform" else 0.3 * delta(info)
    x = torch.full((N, 1), k)
    values, log_weight = law.draw(x, info, rho, noise(N, seed=5), 0)
    weights = density(values.flatten(), info, rho) + log_weight
    log_probability, mean = exact(law, density, info, rho, k)
    assert mean <= log_probability + 1e-12
    error = float(weights.std()) / math.sqrt(N)
    assert abs(float(weights.mean()) - mean) < 5.0 * error + 1e-9
    ratio = torch.exp(weights - log_probability)
    assert abs(float(ratio.mean()) - 1.0) < 5.0 * float(ratio.std()) / math.sqrt(N) + 1e-9
    broken = weights - log_weight
    assert float(broken.mean()) > log_probability + 5.0 * error


def gap(name: str, density: Density, rho: float | None = None) -> float:
    law, info = LAWS[name], INFO["17"]
    log_probability, mean = exact(law, density, info, noise_of(law, info) if rho is None else rho, 6)
    return log_probability - mean


def test_each_law_is_tight_where_it_should_be():
    """On data of levels: the mass beyond the bin, ``-log(2 Phi(3) - 1)``, and what the decoder mistakes.

    On a smooth density: half the noise's variance times the expected square of the slope and, for the truncated
    normal, all that its entropy is short of the bin's volume.
    """
    assert gap("truncated-normal", of_levels) < 1e-3  # its own levels have their mass in the bin but for 0.0027
    assert gap("truncated-normal", smooth) == pytest.approx(math.log(6.0) - truncated_normal_entropy(3.0), abs=5e-3)
    assert gap("uniform", of_levels, rho=delta(INFO["17"]) / 6.0) > 0.3
    assert gap("uniform", smooth) < 0.01
    assert gap("wide-decoder", smooth) < 0.2
    assert gap("decoder", of_levels) < 0.11 > gap("decoder", smooth)


def test_the_decoders_start_makes_the_worst_case_least():
    """Separate levels lose ``-E log P(k | v)``, a flat density that plus ``log(delta / (rho sqrt(2 pi e)))``."""

    def lost(tau: float) -> tuple[float, float]:
        info, rho = DataInfo((1,), 65, -32.0, 32.0), 0.5 / tau
        nodes, weights = np.polynomial.hermite_e.hermegauss(120)
        z = torch.from_numpy(rho * nodes)[:, None]
        posterior = log_level_posterior(torch.full_like(z, 32, dtype=torch.int64), z, rho, info)
        separate = -float((torch.from_numpy(weights)[:, None] * posterior).sum()) / math.sqrt(2.0 * math.pi)
        return separate, separate - math.log(rho * math.sqrt(2.0 * math.pi * math.e))

    separate, flat = lost(DecodedNormal().tau)
    assert separate == pytest.approx(flat, abs=1e-12)
    assert separate == pytest.approx(0.104, abs=1e-3)
    assert min(max(lost(tau)) for tau in (0.95 * DecodedNormal().tau, 1.05 * DecodedNormal().tau)) > separate + 1e-3


# ---- start levels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [TruncatedNormal(), DecodedNormal(), TruncatedNormal(0.5)], ids=str)
def test_the_start_level_has_the_noise_the_law_wants(sde: SDE, law):
    """Bins of 0.4 are far from either end of every process."""
    info = DataInfo((1,), 6)
    level = sde.level(law.start(sde, info))
    wanted, first = 0.2 / law.tau, 0.0
    if sde.instants is not None:  # the random chain begins at more noise than the narrow laws want
        first = float(torch.exp(-sde.half_log_snr(sde.instants[1])))
    assert float(torch.exp(-level.half_log_snr)) == pytest.approx(max(wanted, first), rel=1e-9)


def test_a_start_before_the_process_or_the_chain_begins_is_its_begin():
    info = DataInfo((1,), 2**20)
    for law in (TruncatedNormal(), DecodedNormal()):
        assert law.start(VPSDE(), info) == VPSDE.t_min
        assert law.start(VESDE(), info) == VESDE.t_min
        assert law.start(VPSDE().discretize(100), info) == pytest.approx(0.01)
        assert Uniform().start(VPSDE(), info) == VPSDE.t_min


@pytest.mark.parametrize("law", [TruncatedNormal, DecodedNormal])
@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_tau_without_meaning(law, tau):
    with pytest.raises(ValueError, match="tau"):
        law(tau)


# ---- decoders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [1e-4, 0.02, 0.3, 5.0])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_level_posterior_is_a_law_over_the_levels(levels, std, monkeypatch):
    """It sums to one, and is the normalised kernel; chunks of levels make no difference."""
    info = DataInfo((12,), levels)
    z = torch.linspace(-1.6, 1.9, 12, dtype=torch.float64).expand(levels, 12)
    x = torch.arange(levels)[:, None].expand(levels, 12)
    posterior = log_level_posterior(x, z, std, info)
    assert posterior.exp().sum(dim=0) == pytest.approx(torch.ones(12, dtype=torch.float64), abs=1e-13)
    kernel = -0.5 * ((z - (-1.0 + 2.0 / (levels - 1) * x.double())) / std).square()
    scale = max(1.0, float(kernel.abs().max()))
    assert posterior == pytest.approx(torch.log_softmax(kernel, dim=0), abs=1e-15 * 8 * scale)
    monkeypatch.setattr("sdediff.likelihood.discrete.decoder._TABLE_ENTRIES", 3 * x.numel())
    assert log_level_posterior(x, z, std, info) == pytest.approx(posterior, rel=1e-12)


def test_level_posterior_keeps_its_digits_where_it_is_sure():
    """Two levels have odds ``exp(-2 z / std^2)`` at z, and ``log P = -log1p`` of them, however small."""
    info, z = DataInfo((1,), 2), torch.tensor([[0.0], [0.4], [1.0], [8.0]], dtype=torch.float64)
    posterior = log_level_posterior(torch.ones(4, 1, dtype=torch.int64), z, 0.2, info)
    assert posterior == pytest.approx(-torch.log1p(torch.exp(-2.0 * z / 0.04)), rel=1e-12)


def test_standard_deviations_of_their_own_for_each_entry():
    info, x = DataInfo((3,), 17), torch.tensor([[0, 8, 16], [3, 4, 5]])
    mean = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(2, 3)
    std = torch.tensor([[0.01, 0.1, 0.5], [1.0, 0.2, 0.03]], dtype=torch.float64)
    for log_prob in (log_bin_mass, log_level_posterior):
        together = log_prob(x, mean, std, info)
        single = [log_prob(x, mean, float(s), info)[i, j] for (i, j), s in np.ndenumerate(std.numpy())]
        assert together.flatten() == pytest.approx(torch.stack(single), rel=1e-13)
    assert log_discretised_gaussian(x, mean, std, info) == pytest.approx(log_bin_mass(x, mean, std, info).sum(dim=1))
    density = torch.distributions.Normal(mean, std).log_prob(mean + 0.3).sum(dim=1)
    assert log_gaussian(mean + 0.3, mean, std) == pytest.approx(density, rel=1e-12)
    assert log_gaussian(mean, mean, 0.1) == pytest.approx(
        torch.full((2,), -3.0 * math.log(0.1 * math.sqrt(2 * math.pi)))
    )


# ---- what integers mean --------------------------------------------------------------------------------------


def test_the_models_own_levels_are_the_default():
    x, own = torch.zeros(2, 2, dtype=torch.uint8), DataInfo((2,), 256, 0.0, 1.0, "photographs")
    assert integer_data(x, own) == own
    assert integer_data(x, own, levels=8, high=0.0, low=-7.0) == own._replace(levels=8, low=-7.0, high=0.0)
    assert integer_data(x, None, levels=4) == DataInfo((2,), 4)
