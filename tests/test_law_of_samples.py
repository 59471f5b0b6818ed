"""The stochastic benchmark's measurement: its figures are those of the laws, not of the number of draws."""

import math

import pytest
import torch

import sdediff
from experiments.peers import law
from sdediff.analytic import Gaussian
from sdediff.dynamics import Frame
from sdediff.samplers.multistep import Multistep
from sdediff.selftest.convergence import affine_map, moments_at

NORMAL = law.Truth("normal", Gaussian((0.0, 0.0, 0.0), 1.0))
SKEW = law.Truth("skew", Gaussian((0.3, -0.2), torch.tensor([[1.3, 0.5], [0.5, 0.4]], dtype=torch.float64)))
LIMIT = 5.0
"""Standard errors: a false alarm in fewer than 1e-5 of seeds, for the tails of 32 batches' jackknife are wider."""


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_exact_sample_has_the_solvers_noise(eta):
    """For standard normal data one step of any length is exact, so the two must be one and the same; a solve with
    normals of its own is not."""
    levels = law.SDE.levels([1.0, 0.6, 0.3, 0.05, 1e-3])
    y, normals = NORMAL.at(1.0, 8, 0), []
    draw = law.stream(y.shape, 1)

    def record():
        normals.append(draw())
        return normals[-1]

    model = NORMAL.data.model(law.SDE)
    solver = law.of_ours("", Multistep("velocity", "asinh", 4, eta=eta))
    end = solver.solve(Frame(model, law.SDE), y, levels, record)
    own = [law.stream(y.shape, seed) for seed in (2, 3)]
    beside = law.exact_beside(Frame(model, law.SDE), y, levels, eta, normals, own[0])
    assert torch.allclose(end, beside, rtol=0, atol=1e-12)
    apart = law.exact_beside(Frame(model, law.SDE), y, levels, eta, normals[1:], own[1])  # one too few: not coupled
    assert not torch.allclose(end, apart, rtol=0, atol=0.1)


def test_a_known_excess_is_found():
    """Samples too wide by a factor: covariance off by its square less 1, log-density by half of that."""
    exact, factor = SKEW.at(law.T_TO, 4096, 0), 1.02
    middle = float(law.SDE.alpha(law.T_TO)) * SKEW.data.mean
    found = law.excess(SKEW, middle + factor * (exact - middle), exact)
    off = factor**2 - 1.0
    assert abs(found.covariance - off) < LIMIT * found.covariance_error
    assert abs(found.log_density + 0.5 * off) < LIMIT * found.log_density_error
    assert found.covariance > LIMIT * found.covariance_error  # and told from none
    assert found.log_density < -LIMIT * found.log_density_error


def test_the_floor_is_no_excess():
    """Other exact samples: a sample covariance's own error is the floor, the excess is not."""
    x, other = (SKEW.at(law.T_TO, 4096, seed) for seed in (0, 1))
    found = law.excess(SKEW, x, other)
    (floor, _), _ = SKEW.floor(4096)
    raw = float((x.T.cov() - SKEW.covariance).norm() / SKEW.covariance.norm())
    assert 0.2 * floor < raw < 5.0 * floor
    # the square of the excess is unbiased for 0; its standard error is the error's times twice the root
    root = max(abs(found.covariance), found.covariance_error)
    assert found.covariance * abs(found.covariance) < LIMIT * 2.0 * root * found.covariance_error
    assert abs(found.log_density) < LIMIT * found.log_density_error


def test_what_is_measured_of_a_coarse_solver_is_its_exact_bias():
    """Five steps of the first-order exponential method on a Gaussian: its excess against the affine map's."""
    sampler, model = Multistep("sample", "logsnr", 1, eta=1.0), SKEW.data.model(law.SDE)
    times = sdediff.GRIDS["logsnr"](law.SDE, 5, 1.0, law.T_TO)
    _, spread = affine_map(sampler, model, times, 2).push(*moments_at(SKEW.data, law.SDE, 1.0))
    truth = float((spread - SKEW.covariance).norm() / SKEW.covariance.norm())
    found = law.measure(SKEW, law.of_ours("", sampler), times, 5, 8192)
    assert abs(found.covariance - truth) < LIMIT * found.covariance_error + 0.02 * truth  # the exact one's own bias
    assert math.isfinite(found.wander)
    with pytest.raises(RuntimeError, match="spent 5 forwards of 4"):
        law.measure(SKEW, law.of_ours("first", sampler), times, 4, 64)
