"""The multistep family: its coefficients are exact, and its named members are the published formulas."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sdediff
from catalogue import MIXTURE
from sdediff.dynamics import drift, velocity
from sdediff.samplers.clocks import CLOCKS
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.interpolation import weights
from sdediff.samplers.multistep import Multistep

VP = sdediff.VPSDE()
TIMES = [0.95, 0.8, 0.55, 0.42, 0.2, 0.11, 0.03, 1e-3]  # a grid without symmetry
LEVELS = VP.levels(TIMES)


def start(n=6, dtype=torch.float64):
    return VP.prior_sample((n, 2), t=TIMES[0], dtype=dtype, seed=1)


def lagrange_integrand(integrand, clock, known, j, there):
    """The kernel in lambda times the j-th Lagrange polynomial in the clock, written out for scipy and mpmath."""
    read = {
        "logsnr": lambda lam, m: lam,
        "angle": lambda lam, m: m.atan(m.exp(-lam)),
        "asinh": lambda lam, m: m.asinh(m.exp(-lam) / 0.3),
    }[clock]
    kernel = {
        "velocity": lambda lam, m: -1 / (m.exp(lam) + m.exp(-lam)),
        "epsilon": lambda lam, m: -there.cos * m.exp(-lam),
        "sample": lambda lam, m: there.sin * m.exp(lam),
    }[integrand]
    own, others = known[j], [level for k, level in enumerate(known) if k != j]

    def value(lam, m=math):
        w = read(lam, m)
        product = kernel(lam, m)
        for other in others:
            product *= (w - read(other, m)) / (read(own, m) - read(other, m))
        return product

    return value


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_weights_are_the_integrals_of_lagrange_polynomials(integrand, clock):
    here, there, known = LEVELS[4], LEVELS[5], [LEVELS[4], LEVELS[3], LEVELS[1]]
    came = weights(INTEGRANDS[integrand](), clock, "exact", known, here, there)
    for j, weight in enumerate(came):
        f = lagrange_integrand(integrand, clock, [level.half_log_snr for level in known], j, there)
        truth, _ = quad(f, here.half_log_snr, there.half_log_snr, epsabs=0, epsrel=1e-13)
        assert weight == pytest.approx(truth, rel=1e-11)
    assert sum(came) == pytest.approx(
        INTEGRANDS[integrand]().mass(here, there), rel=1e-13
    )  # the polynomials sum to one


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_small_steps_lose_no_digits(integrand, step):
    """Against mpmath at 50 digits; a formula with exp(h) - 1 - h loses all of them at the smallest step."""
    here, *later = (VP.level_at(v) for v in (0.3, 0.3 + step, 0.3 - 2 * step))
    known = [sdediff.Level(*map(float, level)) for level in (here, later[1])]
    here, there = known[0], sdediff.Level(*map(float, later[0]))
    # A level holds lambda, its sine, cosine and angle to a few times 1e-16, each rounded by itself, so the steps
    # between two to that over the step: this much is the problem's own.
    tolerance = 1e-12 + 4e-15 / step
    with mpmath.workdps(50):
        lams = [mpmath.mpf(level.half_log_snr) for level in known]
        for j, weight in enumerate(weights(INTEGRANDS[integrand](), "logsnr", "exact", known, here, there)):
            f = lagrange_integrand(integrand, "logsnr", lams, j, there)
            truth = mpmath.quad(lambda lam, f=f: f(lam, mpmath), [lams[0], mpmath.mpf(there.half_log_snr)])
            assert abs(weight / truth - 1) < tolerance


def solve_by(name, dtype=torch.float64):
    return sdediff.solve(MIXTURE.model(VP), start(dtype=dtype), name, grid=TIMES).x


def published(prediction, order):
    """DPM-Solver (epsilon) and DPM-Solver++ (sample), multistep: Lu et al.'s updates as they are printed and coded."""
    model, x, outputs = MIXTURE.model(VP), start(), []
    for i in range(len(TIMES) - 1):
        s, t = LEVELS[i], LEVELS[i + 1]
        split = model(x, s)
        outputs.append(split.eps if prediction == "epsilon" else split.x0)
        h = t.half_log_snr - s.half_log_snr
        if prediction == "epsilon":
            keep, scale, e = t.alpha / s.alpha, -t.sigma, math.expm1(h)
            first, second = e / h - 1, (e - h) / h**2 - 0.5
        else:
            keep, scale, e = t.sigma / s.sigma, -t.alpha, math.expm1(-h)
            first, second = e / h + 1, (e + h) / h**2 - 0.5
            first = -first  # the printed signs alternate
        d0 = outputs[-1]
        x = keep * x + scale * e * d0
        if order >= 2 and i >= 1:
            r0 = (s.half_log_snr - LEVELS[i - 1].half_log_snr) / h
            slope = (d0 - outputs[-2]) / r0
            if order == 2 or i == 1:
                x = x + 0.5 * scale * e * slope
            else:
                r1 = (LEVELS[i - 1].half_log_snr - LEVELS[i - 2].half_log_snr) / h
                older = (outputs[-2] - outputs[-3]) / r1
                d1 = slope + r0 / (r0 + r1) * (slope - older)
                d2 = (slope - older) / (r0 + r1)
                x = x + scale * (first * d1 + second * d2)
    return x


@pytest.mark.parametrize(
    ("name", "prediction", "order"),
    [("dpm2", "epsilon", 2), ("dpm3", "epsilon", 3), ("dpm++2m", "sample", 2), ("dpm++3m", "sample", 3)],
)
def test_dpm_solvers_are_the_published_updates(name, prediction, order):
    assert torch.allclose(solve_by(name), published(prediction, order), rtol=1e-11, atol=1e-12)
    other = published(prediction, 5 - order)  # negative control: the other order
    assert not torch.allclose(solve_by(name), other, rtol=1e-4, atol=1e-4)


def test_the_published_third_order_update_has_half_of_its_quadratic_term():
    """With the whole term it is the exact integral, of order 3; as published it is of order 2."""
    assert (sdediff.SAMPLERS["dpm3"].order, Multistep("epsilon", "logsnr", 3).order) == (2, 3)
    levels, known = LEVELS[2:4], [LEVELS[2], LEVELS[1], LEVELS[0]]
    ours = weights(INTEGRANDS["epsilon"](), "logsnr", "exact", known, *levels)
    theirs = weights(INTEGRANDS["epsilon"](), "logsnr", "halved", known, *levels)
    nodes = np.array([level.half_log_snr for level in known]) - LEVELS[2].half_log_snr
    powers = nodes ** np.arange(3)[:, None]
    assert powers[:2] @ ours == pytest.approx(powers[:2] @ theirs, rel=1e-10)  # lines agree
    assert powers[2] @ ours == pytest.approx(2.0 * (powers[2] @ theirs), rel=1e-10)  # parabolas by half


def test_unipc_is_the_published_predictor_and_corrector():
    """UniPC-2 with B_2(h) = e^h - 1 (Zhao et al. 2023, algorithms 5 and 6, data prediction), written out."""
    model, x, outputs, before = MIXTURE.model(VP), start(), [], None

    def basis(i, known):
        s, t = LEVELS[i], LEVELS[i + 1]
        h = -(t.half_log_snr - s.half_log_snr)
        phi, factorial, b, rows = math.expm1(h) / h - 1, 1, [], []
        r = [(LEVELS[k].half_log_snr - s.half_log_snr) / -h for k in known]
        for order in range(1, len(known) + 1):
            rows.append([v ** (order - 1) for v in r])
            b.append(phi * factorial / math.expm1(h))
            factorial *= order + 1
            phi = phi / h - 1 / factorial
        return s, t, math.expm1(h), r, rows, b

    for i in range(len(TIMES) - 1):
        value = model(x, LEVELS[i]).x0
        if before is not None:
            known = [i - 2, i] if i >= 2 else [i]
            s, t, e, r, rows, b = basis(i - 1, known)
            rho = np.linalg.solve(rows, b) if len(known) > 1 else [0.5]
            values = [outputs[k] if k < i else value for k in known]
            change = sum(p * (v - outputs[i - 1]) / q for p, v, q in zip(rho, values, r, strict=True))
            x = t.sigma / s.sigma * before - t.alpha * e * (outputs[i - 1] + change)
        outputs.append(value)
        s, t, e, r, _, _ = basis(i, [i - 1] if i else [])
        change = 0.5 * (outputs[i - 1] - value) / r[0] if i else 0.0
        before = x
        x = t.sigma / s.sigma * x - t.alpha * e * (value + change)
    assert torch.allclose(solve_by("unipc2"), x, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_one_remembered_epsilon_is_ddim(integrand):
    """Order 1 of the exponential forms is DDIM; of the velocity it is Euler on the angle, which is not."""
    came, ddim = solve_by(Multistep(integrand, "logsnr", 1)), solve_by("ddim")
    assert torch.allclose(came, ddim, rtol=1e-12, atol=1e-13) == (integrand != "velocity")


@pytest.mark.parametrize("name", [n for n, s in sdediff.SAMPLERS.items() if isinstance(s, Multistep)])
def test_the_last_step_lands_on_the_data(name):
    """On the clean level log-SNR methods fall back to order 1: for every process the clean half of the last split."""
    sampler, model = sdediff.SAMPLERS[name], MIXTURE.model(VP)
    solution = sdediff.solve(model, start(), sampler, grid=[*TIMES, 0.0], path=True)
    assert bool(torch.isfinite(solution.x).all())
    last = model(solution.path[-2], LEVELS[-1]).x0
    if sampler.clock == "logsnr" and sampler.correct_from is None:
        assert torch.allclose(solution.x, last, atol=1e-13)
    assert torch.allclose(solution.x, last, atol=0.02)


MEMBERS = {
    "dpm2": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": 2}),
    "dpm3": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": 3}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpm++3m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "deis2": ("DEISMultistepScheduler", {"solver_order": 2}),
    "deis3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "unipc2": ("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
    "unipc3": ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MEMBERS)
def test_diffusers_gives_the_same_samples(name):
    """The same chain, nodes, start and exact epsilon in float32: 1e-5 at the end."""
    diffusers = pytest.importorskip("diffusers")
    kind, options = MEMBERS[name]
    if name.startswith(("dpm", "unipc")):  # the others have one way to end
        options = {**options, "final_sigmas_type": "sigma_min"}
    if name != "ddim":
        options = {**options, "lower_order_final": False}
    scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, beta_schedule="linear", **options)
    scheduler.set_timesteps(12)
    chain = sdediff.DDPM.linear(1000)
    if name != "ddim":
        scheduler.sigmas = scheduler.sigmas.double()  # from float32 ones its DEIS coefficients are 2e-5 off
    if name == "ddim":
        times = [*((int(label) + 1) / 1000 for label in scheduler.timesteps), 0.0]
    else:
        times = chain.time(-torch.log(scheduler.sigmas.double())).tolist()
        times = times[:-1] if times[-1] >= times[-2] else times  # its last two nodes may coincide
    model, start = MIXTURE.model(chain), chain.prior_sample((6, 2), t=times[0], seed=2)
    theirs = start
    for t, label in zip(times[:-1], scheduler.timesteps, strict=False):
        theirs = scheduler.step(model.epsilon(theirs, t), label, theirs).prev_sample
    ours = sdediff.solve(model, start, name, grid=times).x
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    if name != "ddim":  # negative control: another member of the family is not within the tolerance
        other = {"2": "3", "3": "2"}[next(c for c in name if c in "23")]
        changed = name.replace("2", "x").replace("3", "x").replace("x", other)
        assert not torch.allclose(sdediff.solve(model, start, changed, grid=times).x, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_stochastic_steps_are_exact_for_data_at_a_point(eta):
    """With all data at c the clean half is c at every state, so a step of any length must keep the marginal."""
    integrand = INTEGRANDS["sample"](eta)
    for here, there in ((LEVELS[0], LEVELS[-1]), (LEVELS[3], LEVELS[4])):
        keep, mass, std = integrand.keep(here, there), integrand.mass(here, there), integrand.std(here, there)
        assert keep * here.cos + mass == pytest.approx(there.cos, rel=1e-12)
        assert math.hypot(keep * here.sin, std) == pytest.approx(there.sin, rel=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "order", "integrand"),
    [
        ("sde-dpmsolver", 1, "epsilon"),
        ("sde-dpmsolver", 2, "epsilon"),
        ("sde-dpmsolver++", 1, "sample"),
        ("sde-dpmsolver++", 2, "sample"),
    ],
)
def test_diffusers_gives_the_same_stochastic_samples(kind, order, integrand):
    """The same noise too."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="linear",
        algorithm_type=kind,
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(12)
    chain = sdediff.DDPM.linear(1000)
    times = chain.time(-torch.log(scheduler.sigmas.double())).tolist()
    times = times[:-1] if times[-1] >= times[-2] else times
    model, start = MIXTURE.model(chain), chain.prior_sample((6, 2), t=times[0], seed=2)
    source, theirs = sdediff.NoiseSource(4, (6, 2)), start
    for i, (t, label) in enumerate(zip(times[:-1], scheduler.timesteps, strict=False)):
        theirs = scheduler.step(model.epsilon(theirs, t), label, theirs, variance_noise=source.normal(i)).prev_sample
    ours = sdediff.solve(model, start, Multistep(integrand, "logsnr", order, "middle", eta=1.0), grid=times, seed=4).x
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-5)
    other = sdediff.solve(model, start, Multistep(integrand, "logsnr", order, "middle", eta=0.9), grid=times, seed=4).x
    assert not torch.allclose(other, theirs, rtol=0, atol=1e-3)  # negative control


def test_noise_and_corrector_exclude_each_other():
    with pytest.raises(ValueError, match="corrector would undo the noise"):
        Multistep("sample", eta=1.0, correct_from=1)


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("here", "there"), [(LEVELS[0], LEVELS[-1]), (LEVELS[3], LEVELS[4]), (LEVELS[6], LEVELS[7])])
def test_velocity_integrand_solves_the_reverse_sde(eta, here, there):
    """The linear SDE that is left with v frozen, solved by quadrature in lambda: there ``drift = -eta^2 sin^2 y
    - (1 + eta^2) sin cos v``, which the second part checks against the drift as :mod:`sdediff.dynamics` writes it."""
    start, end = here.half_log_snr, there.half_log_snr

    def both(lam):
        return 1.0 / math.sqrt(1.0 + math.exp(2.0 * lam)), 1.0 / math.sqrt(1.0 + math.exp(-2.0 * lam))

    def decay(lam):
        return math.exp(-(eta**2) * quad(lambda m: both(m)[0] ** 2, lam, end, epsabs=0, epsrel=1e-13)[0])

    def integral(f):
        return quad(f, start, end, epsabs=0, epsrel=1e-12)[0]

    integrand = INTEGRANDS["velocity"](eta)
    assert integrand.keep(here, there) == pytest.approx(decay(start), rel=1e-12)
    mass = integral(lambda m: -(1.0 + eta**2) * math.prod(both(m)) * decay(m))
    assert integrand.mass(here, there) == pytest.approx(mass, rel=1e-9)  # one step over all levels; less is nearer
    assert integrand.std(here, there) ** 2 == pytest.approx(
        integral(lambda m: 2.0 * (eta * both(m)[0] * decay(m)) ** 2)
    )

    split = sdediff.Split(*torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    y = here.cos * split.x0 + here.sin * split.eps
    written = -(eta**2) * here.sin**2 * y - (1.0 + eta**2) * here.sin * here.cos * velocity(split, here)
    assert torch.allclose(drift(y, split, here, eta), written, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sde", [VP, sdediff.RectifiedFlow(), sdediff.VESDE()], ids=["vp", "flow", "ve"])
def test_one_step_is_exact_for_standard_normal_data(sde, eta):
    """Their velocity is zero: a step of any length keeps the marginal, from pure noise too, and the last denoises."""
    integrand = INTEGRANDS["velocity"](eta)
    first, middle, last, clean = sde.levels([sde.t_max, 0.5, 1e-3, 0.0])
    for here, there in ((first, last), (middle, last), (first, middle)):
        assert math.hypot(integrand.keep(here, there), integrand.std(here, there)) == pytest.approx(1.0, rel=1e-13)
    assert integrand.std(last, clean) == 0.0
    if eta > 0.0:  # x0 = cos y - sin v, without what was remembered
        came = weights(integrand, "asinh", "exact", [last, middle], last, clean)
        assert (integrand.keep(last, clean), *came) == (last.cos, -last.sin, 0.0)


def test_velocity_integrand_from_pure_noise():
    """Where cos = 0 the integrand ``cos^(eta^2)`` has a kink that plain quadrature would miss."""
    first, there = sdediff.RectifiedFlow().levels([1.0, 0.7])
    for eta in (0.3, 0.5, 1.0):
        truth, _ = quad(lambda u, p=eta**2: (math.sin(u) / there.cos) ** p, 0.0, math.atan2(there.cos, there.sin))
        assert INTEGRANDS["velocity"](eta).mass(first, there) == pytest.approx(-(1.0 + eta**2) * truth, rel=1e-9)


def test_a_little_noise_is_no_jump():
    """As eta goes to 0 the stochastic solve becomes the deterministic one, at the rate of eta."""
    apart = []
    for eta in (1e-3, 1e-4):
        noisy = sdediff.solve(MIXTURE.model(VP), start(), Multistep("velocity", "asinh", 4, eta=eta), grid=TIMES).x
        apart.append(float((noisy - solve_by(Multistep("velocity", "asinh", 4))).norm()))
    assert apart[0] / apart[1] == pytest.approx(10.0, rel=0.01)
