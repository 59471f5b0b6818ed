"""Every sampler converges at the order it declares, on every kind of process.

Deterministic methods: pathwise on a mixture, against DOP853 at 1e-12. Stochastic ones: mean and covariance of the end
on Gaussian data, where a linear method is an affine map that its own ``sample`` gives away when fed unit vectors; no
Monte Carlo. Predictor-corrector is not affine (its moves scale with norms): its law is found by quadrature on a line.

Orders are asymptotic. The grids are uniform in lambda for reverse SDEs and graded at the ends for the ODE, so that the
low-order start of a multistep method does not show; the steps are as many as a number of forwards allows. From inside
the interval, where half of the state is signal, the ODE's grids are those that a solve has by default.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from broken import AncestralWithTooMuchNoise, CorrectorWithoutProviso, EqualStepWeights, HeunWithoutCorrector
from scipy.interpolate import CubicSpline
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE, PROCESSES
from sdediff import GRIDS, SAMPLERS, SDE, NoiseSource
from sdediff.analytic import Gaussian
from sdediff.integrators import torchdiffeq, torchsde
from sdediff.samplers import Sampler
from sdediff.samplers.external import AdaptiveODE, FixedODE, ReverseSDE
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.predictor_corrector import PredictorCorrector
from sdediff.samplers.relative import Relative
from sdediff.sampling import node_times
from sdediff.selftest.convergence import (
    TimesOf,
    graded_angle,
    moments_at,
    pathwise_error,
    probability_flow,
    quiet,
    slope,
    uniform_logsnr,
    weak_error,
)
from sdediff.selftest.problems import WithoutMoments
from sdediff.selftest.quadrature import FloatArray, backward, hermite_rule, normal_rule

TOLERANCE = 0.2
T_TO = 1e-3
LAW_PROCESSES = ("vp", "cosine", "ve", "flow", "ddpm")
INSIDE_PROCESSES = ("vp", "flow")
"""Fewer, for in the frame of a solver and on grids in the noise level all are one."""
DETERMINISTIC = {name: s for name, s in SAMPLERS.items() if not s.stochastic and not s.adaptive}
ASYMPTOTIC = {"dpm++3m": (512, 1024), "reversible": (512, 1024)}
"""Later pairs of forwards. What dpm++3m's update leaves of the quadratic term and the cubic error cancel on long
steps, so that its slope comes up to 2 from below (1.43, 1.76, 1.90, 1.96 on the rectified flow from 128 forwards on).
What the low-order start of the reversible method excites dies out over the grid, not over a step (4.32 there from 256
to 512, then 4.01; within 0.01 of 4 on every process)."""
LATER = {"edm-churn": (256, 512), "sde": (512, 1024)}
"""Later pairs too: up to 96 steps the published churn is cut off at as much new noise as there is in every step; the
default's errors of second order, all of them of the noise, are so small that up to 128 those of higher order show."""
UNEQUAL: dict[str, TimesOf] = {"exponential-em": GRIDS["reference"]}
"""Steps that differ in lambda: where all are equal its first-order errors on Gaussian data telescope (a slope of 2)."""
NONLINEAR = ("pc",)
PATHWISE = ("adaptive-sde",)
"""Their law is in ``test_adaptive_sde``."""
STOCHASTIC = {name: s for name, s in SAMPLERS.items() if s.stochastic and name not in NONLINEAR + PATHWISE}
ADAPTIVE = {name: s for name, s in SAMPLERS.items() if s.adaptive and not s.stochastic}
LINE = Gaussian((0.5,), 0.5)


def test_every_sampler_has_an_order_law() -> None:
    assert {*DETERMINISTIC, *STOCHASTIC, *NONLINEAR, *PATHWISE, *ADAPTIVE} == set(SAMPLERS)


def forwards_per_step(sampler: Sampler) -> int:
    model, steps = GAUSSIAN.model(PROCESSES["vp"]), 6
    x = torch.zeros(1, 2, dtype=torch.float64)
    times = uniform_logsnr(model.sde, steps, 1.0, T_TO)
    return -(-sampler.sample(model, model.sde, x, times, quiet(x.shape)).nfe // steps)


def sizes(sampler: Sampler, forwards: tuple[int, int]) -> list[int]:
    """Two numbers of steps that cost so many forwards."""
    return [budget // forwards_per_step(sampler) for budget in forwards]


def first_time(process: str, inside: bool) -> float:
    """Where a solve starts: in pure noise, or where signal and noise are one to one."""
    sde = PROCESSES[process]
    return float(sde.time(0.0)) if inside else sde.t_max


@cache
def flow_problem(process: str, inside: bool = False) -> tuple[Any, Tensor, Tensor]:
    """A model of the mixture, twelve starts and where the probability flow takes them.

    None of these lies where flows part, as one of seed 3 does: slopes come up to the order there much later.
    """
    sde, t = PROCESSES[process], first_time(process, inside)
    model, z = MIXTURE.model(sde), NoiseSource(4, (12, 2), dtype=torch.float64).normal(0)
    x = sde.perturb(MIXTURE.sample(12), t, z) if inside else MIXTURE.moments.sample(z, sde.levels([t])[0])
    return model, x, probability_flow(model, x, t, T_TO)


def deterministic_order(
    sampler: Sampler, process: str, forwards: tuple[int, int] = (256, 512), inside: bool = False
) -> float:
    model, x, truth = flow_problem(process, inside)
    steps, t = sizes(sampler, forwards), first_time(process, inside)
    default = partial(node_times, sampler, model, grid=None, interval=(t, T_TO))
    grids = [default(n) if inside else graded_angle(model.sde, n, t, T_TO) for n in steps]
    return slope(steps, [pathwise_error(sampler, model, x, times, truth) for times in grids])


def stochastic_order(
    sampler: Sampler,
    process: str,
    forwards: tuple[int, int] = (64, 128),
    times: TimesOf = uniform_logsnr,
    inside: bool = False,
) -> float:
    sde, t = PROCESSES[process], first_time(process, inside)
    steps = sizes(sampler, forwards)
    data = WithoutMoments(GAUSSIAN.means[0], GAUSSIAN.covariance)
    return slope(steps, [weak_error(sampler, data, sde, times(sde, n, t, T_TO)) for n in steps])


def first_two_powers(x: FloatArray) -> FloatArray:
    return np.stack([x, x * x], axis=-1)


def line_error(sampler: Sampler, sde: SDE, steps: int, t_from: float) -> float:
    """Error of the end's mean and variance on one-dimensional Gaussian data from an exact start, by quadrature."""
    model = LINE.model(sde)
    starts, powers = backward(
        sampler,
        model,
        uniform_logsnr(sde, steps, t_from, T_TO),
        first_two_powers,
        (hermite_rule(8), normal_rule(24)),
    )
    (mean, variance), (true_mean, true_variance) = (
        tuple(float(v) for v in moments_at(LINE, sde, t)) for t in (t_from, T_TO)
    )
    z, weights = normal_rule(64)
    first, second = weights @ CubicSpline(starts, powers)(mean + np.sqrt(variance) * z)
    return float(np.hypot(first - true_mean, second - first**2 - true_variance))


def line_order(sampler: Sampler, process: str, inside: bool = False) -> float:
    steps, t = (64, 128), first_time(process, inside)
    return slope(steps, [line_error(sampler, PROCESSES[process], n, t) for n in steps])


@pytest.mark.parametrize("process", LAW_PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic(name: str, process: str) -> None:
    sampler, forwards = DETERMINISTIC[name], ASYMPTOTIC.get(name, (256, 512))
    assert abs(deterministic_order(sampler, process, forwards) - sampler.order) < TOLERANCE


@pytest.mark.parametrize("process", INSIDE_PROCESSES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_from_inside(name: str, process: str) -> None:
    assert abs(deterministic_order(DETERMINISTIC[name], process, inside=True) - DETERMINISTIC[name].order) < TOLERANCE


@pytest.mark.parametrize("process", INSIDE_PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_from_inside(name: str, process: str) -> None:
    sampler, forwards = STOCHASTIC[name], LATER.get(name, (64, 128))
    order = stochastic_order(sampler, process, forwards, UNEQUAL.get(name, uniform_logsnr), inside=True)
    assert abs(order - sampler.order) < TOLERANCE


@pytest.mark.parametrize("process", LAW_PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic(name: str, process: str) -> None:
    sampler, forwards = STOCHASTIC[name], LATER.get(name, (64, 128))
    order = stochastic_order(sampler, process, forwards, UNEQUAL.get(name, uniform_logsnr))
    assert abs(order - sampler.order) < TOLERANCE


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(("held", "memory"), [("velocity", 1), ("velocity", 2), ("epsilon", 2), ("sample", 2)])
def test_stochastic_family(held: str, memory: int, eta: float) -> None:
    """What may be held with noise: order 1 with one value remembered, 2 with more."""
    sampler = Multistep(held, "asinh", memory, eta=eta)
    assert sampler.order == memory
    assert abs(stochastic_order(sampler, "vp") - memory) < TOLERANCE


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("process", PROCESSES)
def test_any_steps_against_the_datas_gaussian_have_its_law(process: str, eta: float) -> None:
    """With the moments known, on Gaussian data, at any eta, short of the data and down to them; no Monte Carlo. Other
    forms with noise have an error, and so has this one where it does not know the moments."""
    sde = PROCESSES[process]
    for inner, t_to in product(([], [0.6, 0.2]), (T_TO, 0.0)):
        times = torch.tensor([sde.t_max, *inner, t_to], dtype=torch.float64)
        assert weak_error(Relative(4, None, eta), GAUSSIAN, sde, times) < 1e-12
        assert weak_error(Multistep("velocity", "asinh", 4, eta=eta), GAUSSIAN, sde, times) > 1e-2
        blind = WithoutMoments(GAUSSIAN.means[0], GAUSSIAN.covariance)
        assert weak_error(Relative(4, None, eta), blind, sde, times) > 1e-3


@pytest.mark.parametrize("process", LAW_PROCESSES)
@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear(name: str, process: str) -> None:
    sampler = SAMPLERS[name]
    assert abs(line_order(sampler, process) - sampler.order) < TOLERANCE


@pytest.mark.parametrize("process", INSIDE_PROCESSES)
@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_from_inside(name: str, process: str) -> None:
    sampler = SAMPLERS[name]
    assert abs(line_order(sampler, process, inside=True) - sampler.order) < TOLERANCE


def test_quadrature_agrees_with_the_affine_map() -> None:
    """Two ways to the same law: on a linear method they must agree to the accuracy of the spline."""
    sde = PROCESSES["vp"]
    for name in ("ancestral", "euler-maruyama"):
        exact = weak_error(SAMPLERS[name], LINE, sde, uniform_logsnr(sde, 32, sde.t_max, T_TO))
        assert abs(line_error(SAMPLERS[name], sde, 32, sde.t_max) - exact) < 1e-3 * exact


def adaptive_order(sampler: Sampler, process: str, tolerances: tuple[float, ...], inside: bool = False) -> float:
    """The power of the tolerance to which the error falls."""
    model, x, truth = flow_problem(process, inside)
    ends = torch.tensor([first_time(process, inside), T_TO], dtype=torch.float64)
    variants = [replace(sampler, rtol=tolerance, atol=tolerance) for tolerance in tolerances]  # type: ignore[type-var]
    return -slope(tolerances, [pathwise_error(variant, model, x, ends, truth) for variant in variants])


@pytest.mark.parametrize("process", LAW_PROCESSES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive(name: str, process: str) -> None:
    """The error of a method of order p that bounds the error of a step falls with the tolerance to a power between
    p / (p + 1), where the steps' errors add up, and 1; the same 0.2 on either side."""
    order = ADAPTIVE[name].order
    assert order / (order + 1) - TOLERANCE < adaptive_order(ADAPTIVE[name], process, (1e-4, 1e-6, 1e-8)) < 1 + TOLERANCE


@pytest.mark.parametrize("process", INSIDE_PROCESSES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_from_inside(name: str, process: str) -> None:
    """Over more decades: there is less to do, in steps that are fewer."""
    order, tolerances = ADAPTIVE[name].order, (1e-3, 1e-6, 1e-10)
    found = adaptive_order(ADAPTIVE[name], process, tolerances, inside=True)
    assert order / (order + 1) - TOLERANCE < found < 1 + TOLERANCE


# ---- the methods of the engines that are not in the table ----------------------------------------------------


@pytest.mark.parametrize("method", torchdiffeq.FIXED_METHODS)
def test_fixed_step_engine(method: str) -> None:
    sampler = FixedODE(method)
    assert abs(deterministic_order(sampler, "vp") - sampler.order) < TOLERANCE


@pytest.mark.parametrize("method", torchdiffeq.ADAPTIVE_METHODS)
def test_adaptive_engine(method: str) -> None:
    sampler = AdaptiveODE(method)
    # many steps, for the law is asymptotic, and yet not thousands
    tolerances = (1e-4, 1e-5) if sampler.order <= 2 else (1e-4, 1e-6, 1e-8)
    low = sampler.order / (sampler.order + 1) - TOLERANCE
    assert low < adaptive_order(sampler, "vp", tolerances) < 1 + TOLERANCE


@pytest.mark.parametrize("method", torchsde.SDE_METHODS)
def test_stochastic_engine(method: str) -> None:
    sampler = ReverseSDE(method)
    assert abs(stochastic_order(sampler, "vp") - sampler.order) < TOLERANCE


# ---- what must not pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ode", "ab4", "deis3", "unipc3", "reversible"])
def test_starts_of_low_order_inside_are_caught(name: str) -> None:
    """The same methods on grids that have not been graded for their start."""
    sampler, (model, x, truth) = DETERMINISTIC[name], flow_problem("vp", True)
    steps, ends = (256, 512), (first_time("vp", True), T_TO)
    errors = [pathwise_error(sampler, model, x, GRIDS["reference"](model.sde, n, *ends), truth) for n in steps]
    assert slope(steps, errors) < sampler.order - 0.8


@pytest.mark.parametrize("broken", [HeunWithoutCorrector(), EqualStepWeights()])
def test_broken_deterministic_methods_are_caught(broken: Sampler) -> None:
    assert not abs(deterministic_order(broken, "vp") - broken.order) < TOLERANCE


def test_wrong_noise_is_caught() -> None:
    broken = AncestralWithTooMuchNoise()
    assert not abs(stochastic_order(broken, "vp") - broken.order) < TOLERANCE


def test_careless_langevin_moves_are_caught() -> None:
    broken = CorrectorWithoutProviso(snr=0.5)
    assert not abs(line_order(broken, "vp") - broken.order) < TOLERANCE


def test_correct_langevin_moves_at_the_same_size_are_not() -> None:
    sampler = PredictorCorrector(snr=0.5)
    assert abs(line_order(sampler, "vp") - sampler.order) < TOLERANCE
