"""The adaptive solver of the reverse SDE: its step's weak order, its one path at any tolerance, the law of its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE_1D, PROCESSES
from sdediff import SDE, Level, NoiseSource, ScoreModel, sample, solve
from sdediff.dynamics import Frame
from sdediff.numerics import flatten
from sdediff.samplers.adaptive_sde import _TREE_DEPTH, AdaptiveSDE, EulerState, Step, _path, _to_coarse_node
from sdediff.samplers.clocks import clock_of, cosine, tan_of
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.per_sample import clock_of_level, levels_at

VP = PROCESSES["vp"]
MODEL = GAUSSIAN.model(VP)
T_TO = 0.01


def slope(sizes: Sequence[float], errors: Sequence[float]) -> float:
    """Minus the power of the size to which the error goes."""
    return -float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_step_is_the_family_s(eta: float) -> None:
    """Factors of the state, of a frozen velocity and of the noise: those of the fixed-step solvers."""
    here, there = VP.levels([0.7, 0.4])
    integrand = INTEGRANDS["velocity"](eta)
    step = Step.over(np.array([clock_of_level(here)]), np.array([clock_of_level(there)]), eta)
    start, end = (cosine(np.tan(level.angle)) ** (eta**2) for level in (here, there))
    assert math.isclose(step.keep[0], integrand.keep(here, there), rel_tol=1e-12)
    assert math.isclose(step.mass[0], integrand.mass(here, there), rel_tol=1e-11)
    assert math.isclose(step.gain[0] * math.sqrt(end**2 - start**2), integrand.std(here, there), rel_tol=1e-11)


def variance_at_end(steps: int, bend: float, variance: float = 0.3) -> float:
    """Variance of the end on Gaussian data of mean zero, from an exact start: state and kept velocity are linear in
    the normals, so their covariance has a recursion. No randomness in it."""
    clocks = np.linspace(clock_of_level(VP.levels([1.0])[0]), clock_of_level(VP.levels([T_TO])[0]), steps + 1)
    angle = np.arctan(tan_of(clocks))
    spread = variance * np.cos(angle) ** 2 + np.sin(angle) ** 2
    rate = (1.0 - variance) * np.sin(angle) * np.cos(angle) / spread
    covariance: NDArray[np.float64] = spread[0] * np.outer([1.0, rate[0]], [1.0, rate[0]])
    for i in range(steps):
        keep, mass, gain, moment = (float(c[0]) for c in Step.over(clocks[i : i + 1], clocks[i + 1 : i + 2], 1.0))
        guess = np.array([keep, mass])
        kick = gain * math.sqrt(math.cos(angle[i + 1]) ** 2 - math.cos(angle[i]) ** 2)
        value, fresh = rate[i + 1] * guess, rate[i + 1] * kick
        moved = guess + bend * moment * (value - np.array([0.0, 1.0]))
        push, both = np.array([kick + bend * moment * fresh, fresh]), np.stack([moved, value])
        covariance = both @ covariance @ both.T + np.outer(push, push)
    return float(covariance[0, 0] - spread[-1])


def test_the_step_is_of_weak_order_two() -> None:
    """Though the value kept is that of the state before its correction; without the correction it is of order one."""
    sizes = (64, 128)
    assert abs(slope(sizes, [abs(variance_at_end(n, 1.0)) for n in sizes]) - 2.0) < 0.2
    assert abs(slope(sizes, [abs(variance_at_end(n, 0.0)) for n in sizes]) - 1.0) < 0.2


def starts(count: int, sde: SDE = VP) -> Tensor:
    return sde.prior_sample((count, 2), moments=GAUSSIAN.moments, seed=9, dtype=torch.float64)


def on_a_fine_grid(noise: NoiseSource, x: Tensor, steps: int = 512) -> Tensor:
    """Exponential Euler on many fixed steps, whose noise is read off the same Brownian motions."""
    frame, stop = Frame(MODEL, VP), VP.levels([T_TO])[0]
    low, high = VP.levels([1.0])[0].cos ** 2, stop.cos**2
    paths = [_path(noise, k, low, high) for k in range(len(x))]
    clocks = np.linspace(clock_of_level(VP.levels([1.0])[0]), clock_of_level(stop), steps + 1)
    times = cosine(tan_of(clocks)) ** 2
    share = (times - low) / (high - low)
    times[1:-1] = low + (high - low) * _to_coarse_node(share[:-2], share[1:-1])
    times[0], times[-1] = low, high
    clocks = clock_of(np.sqrt(np.expm1(-np.log(times))))
    for i in range(steps):
        level = levels_at(VP, clocks[i : i + 1], np.array([False]), stop)
        keep, mass, gain, _ = (float(c[0]) for c in Step.over(clocks[i : i + 1], clocks[i + 1 : i + 2], 1.0))
        noises = torch.cat([path.increment(float(times[i]), float(times[i + 1])) for path in paths])
        x = keep * x + mass * frame(x, level).mix(-level.sin, level.cos) + gain * noises
    return x


def test_every_tolerance_solves_one_and_the_same_path() -> None:
    """On Gaussian data, where no path can end in another mode. A step of size h errs by h^(3/2) of the tolerance's
    order, independent from step to step: the path's error falls at least with the root of the tolerance. Other noise
    is another path, however fine."""
    noise, x = NoiseSource(8, (4, 2), dtype=torch.float64), starts(4)
    truth = on_a_fine_grid(noise, x)
    tolerances = (0.1, 0.01, 0.001)
    solved = [solve(MODEL, x, AdaptiveSDE(t, t), t_to=T_TO, seed=8).x for t in tolerances]
    errors = [float((end - truth).square().mean().sqrt()) for end in solved]
    assert 0.5 < -slope(tolerances, errors) < 1.2
    others = [solve(MODEL, x, AdaptiveSDE(t, t), t_to=T_TO, seed=7).x for t in tolerances]
    errors = [float((end - truth).square().mean().sqrt()) for end in others]
    assert not -slope(tolerances, errors) > 0.5


def test_a_refused_step_leaves_no_trace() -> None:
    """Same state, velocity and clock; only a shorter plan. A step that fits moves on."""
    sampler, (start, stop) = AdaptiveSDE(1e-3, 1e-3), VP.levels([0.6, T_TO])
    noise, x = NoiseSource(1, (4, 2), dtype=torch.float64), starts(4)
    value = flatten(MODEL(x, start).mix(-start.sin, start.cos))
    for length, refused in ((0.5, True), (1e-6, False)):
        before = EulerState(np.arange(4), x, value, np.full(4, clock_of_level(start)), np.full(4, length))
        paths = [_path(noise, k, start.cos**2, stop.cos**2) for k in range(4)]
        after = sampler._advance(Frame(MODEL, VP), before, paths, x.shape[1:], stop, clock_of_level(stop))
        assert torch.equal(after.y, before.y) == refused
        assert torch.equal(after.value, before.value) == refused
        assert np.array_equal(after.here, before.here) == refused
        assert bool((after.length < before.length).all()) == refused


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_velocities_linear_in_the_clock_are_exact_at_any_tolerance(eta: float) -> None:
    """What a step corrects is the slope, so that a line is integrated exactly: the ends are those of a tight solve on
    the same path. Those of a cubic are not."""

    def ends(power: int, tolerance: float) -> Tensor:
        def velocity(x: Tensor, level: Level) -> Tensor:
            tan = np.exp(-torch.as_tensor(level.half_log_snr, dtype=torch.float64).numpy())
            return torch.from_numpy(np.broadcast_to(clock_of(tan) ** power, len(x)).copy())[:, None].expand_as(x)

        model = ScoreModel(velocity, VP, prediction="v_prediction", conditioning="level")
        return solve(model, starts(4), AdaptiveSDE(tolerance, tolerance, eta), t_to=T_TO, seed=3).x

    # the weights of the longest steps are quadratures, good to 1.3e-8 for eta = 0.5
    torch.testing.assert_close(ends(1, 0.3), ends(1, 0.01), rtol=0.0, atol=1e-7)
    assert float((ends(3, 0.3) - ends(3, 0.01)).abs().max()) > 1e-4


def test_goals_are_nodes_high_in_the_tree() -> None:
    """At most a fifth of the way back, and no deeper than the step asks for."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0.0, 0.9, 200)
    width = 10.0 ** rng.uniform(-9.0, -1.0, 200)
    node = _to_coarse_node(start, start + width)
    assert bool(((node <= start + width) & (node > start + 0.79 * width)).all())
    assert np.array_equal(node * 2.0 ** np.ceil(-np.log2(0.2 * width)) % 1.0, np.zeros(200))


def test_standard_normal_data_are_exact_in_one_step() -> None:
    """v = 0: what remains is the Brownian motion itself, and no step is ever refused."""
    data = type(GAUSSIAN)((0.0, 0.0), 1.0)
    model, x = data.model(VP), starts(3)
    start, stop = VP.levels([1.0, T_TO])
    found = solve(model, x, AdaptiveSDE(1e-5, 1e-5), t_to=T_TO, seed=2)
    noise = NoiseSource(2, (3, 2), dtype=torch.float64)
    steps = torch.cat(
        [_path(noise, k, start.cos**2, stop.cos**2).increment(start.cos**2, stop.cos**2) for k in range(3)]
    )
    torch.testing.assert_close(found.x, (start.cos * x + steps) / stop.cos, rtol=1e-9, atol=1e-9)


def test_the_ends_have_the_law_of_the_data() -> None:
    """Kolmogorov-Smirnov, 400 draws at the default tolerance, level 1e-6; a mixture shifted by 0.5 must be caught."""
    draws = sample(MIXTURE_1D.model(VP), (400, 1), "adaptive-sde", seed=4, dtype=torch.float64)[:, 0].numpy()

    def cdf(v: NDArray[np.float64], shift: float = 0.0) -> NDArray[np.float64]:
        parts = zip(MIXTURE_1D.weights.tolist(), MIXTURE_1D.means[:, 0].tolist(), (0.3, 0.4), strict=True)
        return sum((w * stats.norm.cdf(v, m + shift, s) for w, m, s in parts), np.zeros_like(v))

    assert stats.kstest(draws, cdf).pvalue > 1e-6
    assert stats.kstest(draws, lambda v: cdf(v, 0.5)).pvalue < 1e-6


def test_the_depth_of_the_tree_holds_the_last_step_before_the_data() -> None:
    """At t_min the noise left has a variance of a hundred nodes or more."""
    for sde in PROCESSES.values():
        assert sde.levels([sde.t_min])[0].sin ** 2 > 100.0 * 2.0**-_TREE_DEPTH


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"eta": 0.0}, {"eta": 1.5}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        AdaptiveSDE(**options)
