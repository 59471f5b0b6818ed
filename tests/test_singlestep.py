"""The singlestep family: its named members are the published formulas and, on their nodes, diffusers' samples."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import sdediff
from catalogue import MIXTURE
from sdediff.dynamics import to_x, to_y
from sdediff.samplers.clocks import CLOCKS
from sdediff.samplers.heun import Heun
from sdediff.samplers.singlestep import Singlestep

VP = sdediff.VPSDE()
TIMES = [0.95, 0.8, 0.55, 0.42, 0.2, 0.11, 0.03, 1e-3]  # a grid without symmetry
LEVELS = VP.levels(TIMES)
KINDS = {"dpm2s": ("epsilon", 2), "dpm3s": ("epsilon", 3), "dpm++2s": ("sample", 2), "dpm++3s": ("sample", 3)}


def start():
    return VP.prior_sample((6, 2), t=TIMES[0], dtype=torch.float64, seed=1)


def solve_by(solver):
    return sdediff.solve(MIXTURE.model(VP), start(), solver, grid=TIMES).x


def published(integrand, order):
    """DPM-Solver-2 and -3 (Lu et al. 2022a, algorithms 1 and 2, at r1 = 1/2; r1, r2 = 1/3, 2/3), and their counterparts
    in data prediction (Lu et al. 2022b and the authors' code), update by update."""
    model, x = MIXTURE.model(VP), start()
    own, other, sign = ("alpha", "sigma", 1.0) if integrand == "epsilon" else ("sigma", "alpha", -1.0)

    def value(state, level):
        split = model(state, level)
        return split.eps if integrand == "epsilon" else split.x0

    def move(x, s, t, first, slope=0.0):
        """The first-order update from s to t, and the term that the third-order methods add."""
        h = t.half_log_snr - s.half_log_snr
        growth = math.expm1(sign * h)
        scale = getattr(t, other)
        return (
            getattr(t, own) / getattr(s, own) * x - scale * growth * first - sign * scale * (growth / h - sign) * slope
        )

    for s, t in pairwise(LEVELS):
        h, first = t.half_log_snr - s.half_log_snr, value(x, s)
        third, half, late = (VP.level_at(s.half_log_snr + r * h) for r in (1 / 3, 1 / 2, 2 / 3))
        if order == 2:
            change = value(move(x, s, half, first), half) - first
            x = move(x, s, t, first) - getattr(t, other) * math.expm1(sign * h) * change  # 1 / (2 r1) = 1
        else:
            change = value(move(x, s, third, first), third) - first
            change = value(move(x, s, late, first, 2.0 * change), late) - first  # r2 / r1 = 2
            x = move(x, s, t, first, 1.5 * change)  # 1 / r2
    return x


@pytest.mark.parametrize("name", KINDS)
def test_dpm_solvers_are_the_published_updates(name):
    integrand, order = KINDS[name]
    assert torch.allclose(solve_by(name), published(integrand, order), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(solve_by(name), published(integrand, 5 - order), rtol=1e-4, atol=1e-4)  # the other order


def test_exact_integrals_are_of_the_same_order_and_not_the_same():
    for name, rule in (("dpm2s", "exact"), ("dpm3s", "middle")):
        known = sdediff.SAMPLERS[name]
        assert not torch.allclose(solve_by(name), solve_by(Singlestep(known.integrand, "logsnr", known.stages, rule)))


def test_no_stages_are_ddim():
    for integrand in ("epsilon", "sample"):
        came = solve_by(Singlestep(integrand, "logsnr", ()))
        assert torch.allclose(came, solve_by("ddim"), rtol=1e-12, atol=1e-13)
    assert not torch.allclose(solve_by(Singlestep("velocity", "angle", ())), came, atol=1e-3)  # Euler on the angle


def test_the_velocity_on_the_angle_with_its_end_as_stage_is_heun():
    came = solve_by(Singlestep("velocity", "angle", (1.0,)))
    assert torch.allclose(came, solve_by(Heun()), rtol=1e-12, atol=1e-13)
    assert not torch.allclose(solve_by(Singlestep("velocity", "angle", (0.5,))), came, atol=1e-3)  # the midpoint rule


@pytest.mark.parametrize("sde", [VP, sdediff.VESDE(sigma_max=150.0), sdediff.RectifiedFlow()], ids=["vp", "ve", "flow"])
def test_edm_is_heun_in_sigma(sde):
    """Karras et al. 2022, algorithm 1, written out: ``x / alpha`` against ``sigma / alpha``."""
    model = MIXTURE.model(sde)
    times = sde.time(VP.half_log_snr(torch.tensor(TIMES, dtype=torch.float64))).tolist()
    levels = sde.levels(times)
    x = sde.prior_sample((6, 2), t=times[0], dtype=torch.float64, seed=1)
    ours = sdediff.solve(model, x, "edm", grid=times).x
    z = x / levels[0].alpha

    def slope(state, level):
        sigma = level.sigma / level.alpha
        return (state - model(level.alpha * state, level).x0) / sigma

    for here, there in pairwise(levels):
        step = there.sigma / there.alpha - here.sigma / here.alpha
        d = slope(z, here)
        z = z + step * (d + slope(z + step * d, there)) / 2
    assert torch.allclose(ours, levels[-1].alpha * z, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(sdediff.solve(model, x, "heun", grid=times).x, ours, atol=1e-3)  # Heun on the angle


DIFFUSERS = {
    "dpm2s": ("dpmsolver", 2, "midpoint", sdediff.SAMPLERS["dpm2s"]),
    "dpm++2s": ("dpmsolver++", 2, "midpoint", sdediff.SAMPLERS["dpm++2s"]),
    "dpm2s, exact": ("dpmsolver", 2, "heun", Singlestep("epsilon", "logsnr", (1 / 2,))),
    "dpm3s, parabola": ("dpmsolver", 3, "heun", Singlestep("epsilon", "logsnr", (1 / 3, 2 / 3), values=3)),
    "dpm++3s, parabola": ("dpmsolver++", 3, "heun", Singlestep("sample", "logsnr", (1 / 3, 2 / 3), values=3)),
}
"""diffusers puts stages on nodes of its own grid: equal shares of a step if that is uniform in log-SNR. Its third-order
update is the published one with the parabola for the last line (``heun``), or with another second stage."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_gives_the_same_samples(name):
    """The same chain, nodes, start and exact epsilon in float32: 1e-5 at the end."""
    diffusers = pytest.importorskip("diffusers")
    kind, order, rule, solver = DIFFUSERS[name]
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        beta_schedule="linear",
        algorithm_type=kind,
        solver_order=order,
        solver_type=rule,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
        use_exponential_sigmas=True,
    )
    scheduler.set_timesteps(13)  # the last interval is empty
    chain = sdediff.DDPM.linear(1000)
    times = chain.time(-torch.log(scheduler.sigmas[:13].double())).tolist()
    model, x = MIXTURE.model(chain), chain.prior_sample((6, 2), t=times[0], seed=2)
    theirs = x
    for t, label in zip(times[:-1], scheduler.timesteps, strict=False):
        theirs = scheduler.step(model.epsilon(theirs, t), label, theirs).prev_sample
    ours = sdediff.solve(model, x, solver, grid=times[::order]).x
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    other = replace(solver, rule="exact" if solver.rule == "middle" else "middle")  # negative control
    assert not torch.allclose(sdediff.solve(model, x, other, grid=times[::order]).x, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_process_does_not_matter(clock):
    """The same noise levels on another process: the same samples, rescaled."""
    solver, other = Singlestep("velocity", clock, (1 / 3, 2 / 3)), sdediff.VESDE(sigma_max=150.0)
    ends = []
    for sde in (VP, other):
        levels = sde.levels(sde.time(VP.half_log_snr(torch.tensor(TIMES, dtype=torch.float64))))
        x = to_x(to_y(start(), VP.levels(TIMES)[0]), levels[0])
        ends.append(to_y(sdediff.solve(MIXTURE.model(sde), x, solver, grid=[v.t for v in levels]).x, levels[-1]))
    assert torch.allclose(*ends, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages": (0.2, 0.4, 0.6)}, "at most two"),
        ({"stages": (0.6, 0.4)}, "increasing"),
        ({"stages": (1.2,)}, r"in \(0, 1\]"),
        ({"stages": (0.0,)}, "increasing"),
        ({"values": 1}, "2 or 3"),
        ({"integrand": "score"}, "choose one of"),
        ({"rule": "nope"}, "choose one of"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Singlestep(**given)
