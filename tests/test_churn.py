"""Churn (Karras et al. 2022, algorithm 2): the published algorithm, exact in law where it adds noise."""

import math
from itertools import pairwise

import pytest
import torch

import sdediff
from catalogue import GAUSSIAN, MIXTURE
from sdediff.dynamics import Frame
from sdediff.samplers.churn import EDM_HEUN, Churn, noise_std
from sdediff.samplers.singlestep import Singlestep

VP = sdediff.VPSDE()
TIMES = [0.95, 0.8, 0.55, 0.42, 0.2, 0.11, 0.03, 1e-3]
SETTINGS = {
    "published": Churn(),
    "everywhere": Churn(low=0.0, high=math.inf),
    "little": Churn(churn=0.4, low=0.0, high=math.inf),
    "loud": Churn(churn=2.0, low=0.1, high=2.0, inflate=1.007),
}


def start():
    return VP.prior_sample((6, 2), t=TIMES[0], dtype=torch.float64, seed=1)


def written_out(x, times, model, noise, churn):
    """Algorithm 2 line by line, in ``x / alpha`` and ``t = sigma / alpha``."""
    levels = VP.levels(times)
    ts = [level.sigma / level.alpha for level in levels]
    x, steps = x / levels[0].alpha, len(ts) - 1

    def slope(state, t):
        level = VP.levels([VP.time(-math.log(t))])[0]
        return (state - model(level.alpha * state, level).x0) / t

    for i, (t, after) in enumerate(pairwise(ts)):
        inside = churn.low <= t <= churn.high
        gamma = min(churn.churn / steps, math.sqrt(2.0) - 1.0) if inside else 0.0
        raised = t + gamma * t
        x = x + math.sqrt(raised**2 - t**2) * churn.inflate * noise.normal(i)
        d = (x - (x - raised * slope(x, raised))) / raised
        moved = x + (after - raised) * d
        x = x + (after - raised) * (d / 2 + slope(moved, after) / 2)
    return levels[-1].alpha * x


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_published_algorithm(name):
    model, churn = MIXTURE.model(VP), SETTINGS[name]
    noise = sdediff.NoiseSource(4, (6, 2), dtype=torch.float64)
    ours = sdediff.solve(model, start(), churn, grid=TIMES, seed=4).x
    assert torch.allclose(ours, written_out(start(), TIMES, model, noise, churn), rtol=1e-9, atol=1e-10)
    for other in set(SETTINGS) - {name}:  # negative control
        assert not torch.allclose(ours, written_out(start(), TIMES, model, noise, SETTINGS[other]), atol=1e-3)


def test_without_churn_it_is_its_deterministic_method():
    model = MIXTURE.model(VP)
    for method in (EDM_HEUN, Singlestep("sample", "logsnr", (0.5,))):
        churn = Churn(churn=0.0, method=method)
        plain = sdediff.solve(model, start(), method, grid=TIMES).x
        assert torch.equal(sdediff.solve(model, start(), churn, grid=TIMES, seed=1).x, plain)
        assert (churn.stochastic, churn.order, churn.evaluations) == (False, method.order, method.evaluations)


@pytest.mark.parametrize("gamma", [1e-6, 0.1, math.sqrt(2.0) - 1.0])
def test_the_raised_level_has_its_own_marginal(sde, gamma):
    """With the noise as it is, raising is the forward transition: mean and covariance of Gaussian data, exactly."""
    frame, churn = Frame(GAUSSIAN.model(sde), sde), Churn(low=0.0, high=math.inf)
    for t in (0.02, 0.3, 0.8):
        here = sde.levels([t])[0]
        raised = churn.raised(frame, here, gamma)
        assert raised.sigma / raised.alpha == pytest.approx((1.0 + gamma) * here.sigma / here.alpha, rel=1e-9)
        keep, std = raised.cos / here.cos, noise_std(here, raised)
        assert keep * here.cos == pytest.approx(raised.cos, rel=1e-12)  # of every clean sample
        assert keep**2 * here.sin**2 + std**2 == pytest.approx(raised.sin**2, rel=1e-12)
        mean, deviation = sde.transition(torch.ones(1, 2, dtype=torch.float64), here.t, raised.t)
        assert float(mean[0, 0]) == pytest.approx(keep * raised.scale / here.scale, rel=1e-9)
        assert float(deviation) == pytest.approx(std * raised.scale, rel=1e-6)  # of times whose distance has rounded


def test_much_churn_leaves_the_marginal_alone():
    """A thousand raises by 1 %, each taken back by the exact flow of Gaussian data, keep its law; noise louder by 1 %
    adds 2 % of what is exchanged. Exact: covariances, no draws."""
    model, gamma = GAUSSIAN.model(VP), 0.01
    here = VP.levels([0.3])[0]
    raised = Churn(low=0.0, high=math.inf).raised(Frame(model, VP), here, gamma)
    keep, std = raised.cos / here.cos, noise_std(here, raised)
    variances = GAUSSIAN.moments.variances
    exact = here.cos**2 * variances + here.sin**2
    back = (exact / (raised.cos**2 * variances + raised.sin**2)).sqrt()

    def after(inflate):
        variance = exact
        for _ in range(1000):
            variance = back**2 * (keep**2 * variance + (inflate * std) ** 2)
        return (variance / exact - 1.0).abs().max()

    assert float(after(1.0)) < 1e-11
    assert float(after(1.01)) > 0.01


def test_noise_is_added_between_its_bounds_only(sde):
    """And never beyond the process's noisiest level."""
    frame = Frame(GAUSSIAN.model(sde), sde)
    churn = Churn(low=0.1, high=5.0)
    for t in torch.linspace(0.01, 0.99, 25, dtype=torch.float64).tolist():
        here = sde.levels([t])[0]
        tan = here.sigma / here.alpha
        raised = churn.raised(frame, here, 0.3)
        assert (raised != here) == (0.1 <= tan <= 5.0)
        assert Churn(low=0.0, high=math.inf).raised(frame, here, 0.3).t <= sde.t_max


@pytest.mark.parametrize("given", [{"churn": -1.0}, {"inflate": -0.1}, {"low": 2.0, "high": 1.0}, {"low": -1.0}])
def test_impossible_settings_are_refused(given):
    with pytest.raises(ValueError, match="must"):
        Churn(**given)
