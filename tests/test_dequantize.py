"""Integer data: levels placed in their bins, their volume counted, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from catalogue import GAUSSIAN
from sdediff import VPSDE, DataInfo, NoiseSource, ScoreModel
from sdediff.analytic import Gaussian
from sdediff.likelihood import bits_per_dim, log_likelihood
from sdediff.likelihood.dequantize import dequantise, integer_data, log_bin_volume

MEAN, STD, DIM = -0.2, 0.4, 4
LAW = Gaussian([MEAN] * DIM, STD**2)
PATH = {"steps": 8}
SLACK = 4e-4  # bits: 8 steps of rk4 are exact to 3e-4 on this law, values in float32 to 1e-6


def integers(levels: int, n: int) -> Tensor:
    delta = 2.0 / (levels - 1)
    return ((LAW.sample(n, seed=9) + 1.0) / delta).round().clamp(0, levels - 1).long()


def exact_bits(x: Tensor, levels: int) -> Tensor:
    """``-E[log2 N(v)] / D - log2 delta``: over a bin ``E (v - m)^2 = (centre - m)^2 + delta^2 / 12``."""
    delta = 2.0 / (levels - 1)
    squared = (-1.0 + delta * x - MEAN).square() + delta**2 / 12.0
    nats = 0.5 * math.log(2.0 * math.pi * STD**2) + squared.mean(dim=1) / (2.0 * STD**2) - math.log(delta)
    return nats / math.log(2.0)


@pytest.mark.parametrize("levels", [17, 256])
def test_bits_of_discretised_gaussian_data_within_the_stated_error(levels):
    """The errors of 8 items, each over its stated error, and of their mean over its own: with 15 degrees of freedom.

    ``|t| < 9`` for 8 items fails by chance with 2e-6; ``|z| < 5`` for the mean, from all 120 degrees, with 2e-6.
    """
    x = integers(levels, 8)
    result = bits_per_dim(LAW.model(VPSDE()), x, levels=levels, samples=16, seed=2, **PATH)
    error = result.bits_per_dim - exact_bits(x, levels)
    of_mean = float(result.standard_error.square().sum().sqrt()) / 8.0
    assert float((error.abs() - 9.0 * result.standard_error).max()) < SLACK
    assert abs(float(error.mean())) < 5.0 * of_mean + SLACK
    assert result.spread == pytest.approx(result.standard_error * 4.0)
    # Negative controls: the volume omitted, and bins of 2 / levels instead of 2 / (levels - 1).
    for offset in (-math.log2(2.0 / (levels - 1)), math.log2(levels / (levels - 1))):
        assert abs(float(error.mean()) - offset) > 5.0 * of_mean + SLACK


def test_mean_is_a_bound_on_the_probability_of_the_integers():
    """Jensen: the exact expectation over bins costs at least ``-log2`` of the bin's mass."""
    levels = 5
    x = integers(levels, 50)
    delta = 2.0 / (levels - 1)
    centre = -1.0 + delta * x
    law = stats.norm(MEAN, STD)
    mass = torch.from_numpy(law.cdf(centre + delta / 2.0) - law.cdf(centre - delta / 2.0))
    assert bool((exact_bits(x, levels) >= -mass.log2().mean(dim=1)).all())


def test_data_sets_standard_error():
    """The mean over 400 items against the exact mean over the same law: 4.5 standard errors, 7e-6."""
    levels = 33
    x = integers(levels, 400)
    result = bits_per_dim(LAW.model(VPSDE()), x, levels=levels, seed=3, **PATH)
    # the Gaussian's cost at a variance that rounding and uniform noise widen by delta^2 / 12 each: below 3e-3 bits here
    expected = 0.5 * math.log2(2.0 * math.pi * math.e * STD**2) - math.log2(2.0 / (levels - 1))
    assert abs(result.mean - expected) < 4.5 * result.mean_standard_error + 4e-3
    assert result.mean == pytest.approx(float(result.bits_per_dim.mean()))
    assert bool(result.standard_error.isnan().all())
    # Negative control: half a bit is far outside.
    assert abs(result.mean + 0.5 - expected) > 4.5 * result.mean_standard_error + 4e-3


def test_one_draw_is_the_log_likelihood_of_integers():
    info = DataInfo((DIM,), 17)
    model, x = LAW.model(VPSDE()), integers(17, 5)
    draws = [log_likelihood(model, x, data=info, draw=k, **PATH).bits_per_dim for k in range(2)]
    result = bits_per_dim(model, x, levels=17, samples=2, batch_size=2, **PATH)
    assert result.bits_per_dim == pytest.approx(0.5 * (draws[0] + draws[1]), rel=1e-6)  # float32
    assert result.nfe == 2 * 3 * 4 * 8
    own = ScoreModel(model.network, VPSDE(), "v_prediction", conditioning="level", moments=LAW.moments, data=info)
    assert torch.equal(bits_per_dim(own, x, **PATH).bits_per_dim, draws[0])


def test_dequantisation_is_uniform_in_the_bin():
    """Kolmogorov-Smirnov over 40,000 draws at p > 1e-5; item and draw decide, not the batch."""
    info = DataInfo((20_000,), 17, -1.0, 3.0)
    x = torch.arange(40_000).remainder(17).reshape(2, -1)
    noise = NoiseSource(1, x.shape, dtype=torch.float64)
    values = dequantise(x, info, noise, draw=3)
    position = (values - (-1.0 + 0.25 * x)) / 0.25 + 0.5
    assert stats.kstest(position.flatten().numpy(), "uniform").pvalue > 1e-5
    assert stats.kstest(0.98 * position.flatten().numpy(), "uniform").pvalue < 1e-5  # negative control
    alone = dequantise(x[1:], info, NoiseSource(1, (1, 20_000), first=1, dtype=torch.float64), draw=3)
    assert torch.equal(values[1:], alone)
    assert not torch.equal(values, dequantise(x, info, noise, draw=4))
    assert log_bin_volume(info, (3, 2)) == pytest.approx(6.0 * math.log(0.25))


X = torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X.float(), {"levels": 17}, "integer data only"),
        (X + 17, {"levels": 17}, "0 .. 16"),
        (X - 1, {"levels": 17}, "0 .. 16"),
        (X, {}, "number of levels"),
        (X, {"levels": 1}, "at least 2"),
        (X, {"levels": 17, "low": 1.0, "high": 1.0}, "low < high"),
        (X, {"levels": 17, "high": math.inf}, "low < high"),
        (X, {"levels": 17, "samples": 0}, "at least 1"),
        (X[:, :1], {"levels": 17}, "shape"),
    ],
)
def test_refuses(x, options, message):
    with pytest.raises(ValueError, match=message) as error:
        bits_per_dim(GAUSSIAN.model(VPSDE()), x, **options)
    assert "\n" not in str(error.value)


def test_the_models_own_levels_are_the_default():
    own = DataInfo((2,), 256, 0.0, 1.0, "photographs")
    assert integer_data(X, own) == own
    assert integer_data(X, own, levels=8, high=0.0, low=-7.0) == own._replace(levels=8, low=-7.0, high=0.0)
    assert integer_data(X, None, levels=4) == DataInfo((2,), 4)
