"""``solve`` and ``sample``: options, times, batches, and that samples have the data's law."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

import sdediff
from sdediff.grids import Power
from sdediff.samplers.heun import Heun
from sdediff.sampling import resolve

MIXTURE = sdediff.analytic.GaussianMixture([[-1.5, 0.0], [1.0, 1.0]], [0.05, 0.2], [0.4, 0.6])
MODEL = MIXTURE.model(sdediff.VPSDE())


def start(n=8, **options):
    return MODEL.sde.prior_sample((n, 2), dtype=torch.float64, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "nope"}, "unknown solver 'nope'; choose one of: ode, sde"),
        ({"steps": 10, "rtol": 1e-3}, "either steps .* or rtol/atol"),
        (
            {"solver": "heun", "rtol": 1e-3},
            "takes steps, not rtol/atol; adaptive ones are: ode, sde, adaptive, ",
        ),
        ({"solver": "dopri5", "steps": 10}, "is adaptive: give rtol/atol, not steps"),
        ({"rtol": -1.0}, "rtol and atol must be positive"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": -3}, "steps must be at least 1, not -3"),
        ({"grid": "nope"}, "unknown grid 'nope'"),
        ({"grid": [1.0]}, "at least two finite numbers"),
        ({"grid": [1.0, 0.5, 1e-3], "steps": 7}, "the grid has 2 steps, but steps = 7"),
        ({"grid": [1.0, 0.5, 0.7, 1e-3]}, "must rise or fall throughout"),
        ({"grid": [1.0, 0.5, 0.5, 1e-3]}, "must rise or fall throughout"),
        ({"grid": [0.5, 1e-3], "t_from": 1.0}, "run from 0.5 to 0.001, but must begin at t_from = 1"),
        ({"grid": [1.0, 0.5], "t_to": 1e-3}, "run from 1 to 0.5, but must end at t_to = 0.001"),
        ({"grid": "logsnr", "solver": "dopri5"}, "chooses its own steps: give it no grid"),
        ({"steps": 2.5}, "steps must be a whole number, at least 1, not 2.5"),
        ({"t_from": 1.5}, "time 1.5 is outside"),
        ({"t_from": 0.5, "t_to": 0.5}, "must differ"),
        ({"solver": "sde", "t_from": 1e-3, "t_to": 1.0}, "only go from noise to data"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        sdediff.solve(MODEL, start(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.full((3, 2), torch.nan), [[0.0]]]
)
def test_a_state_must_be_a_finite_float_batch(x):
    with pytest.raises(ValueError, match=r"state"):
        sdediff.solve(MODEL, x)


def test_a_diverging_model_is_reported():
    broken = sdediff.ScoreModel(lambda x, t: x / 0.0, sdediff.VPSDE())
    with pytest.raises(FloatingPointError, match="did not stay finite"):
        sdediff.solve(broken, start())


def test_one_tolerance_stands_for_both_and_names_switch_to_the_adaptive_twin():
    assert (resolve("ode", rtol=1e-3).rtol, resolve("ode", rtol=1e-3).atol) == (1e-3, 1e-3)
    assert (resolve("ode", rtol=1e-3, atol=1e-8).rtol, resolve("ode", rtol=1e-3, atol=1e-8).atol) == (1e-3, 1e-8)
    assert resolve("ode").adaptive is False
    assert resolve("ode", atol=1e-8).adaptive is True


def test_steps_are_forwards_and_times_are_returned():
    x = start()
    for name in ("ode", "sde", "ancestral", "ddim"):
        solution = sdediff.solve(MODEL, x, name, steps=7, t_to=1e-3)
        assert solution.nfe == 7
        assert (len(solution.times), solution.times[0], solution.times[-1]) == (8, 1.0, 1e-3)


def test_a_grid_may_be_a_name_a_rule_or_times():
    x = start()
    by_name = sdediff.solve(MODEL, x, "heun", grid="quadratic", steps=6, t_to=1e-3)
    by_rule = sdediff.solve(MODEL, x, Heun(), grid=Power(2.0), steps=6, t_to=1e-3)
    by_times = sdediff.solve(MODEL, x, "heun", grid=by_name.times)
    assert torch.equal(by_name.x, by_rule.x)
    assert torch.equal(by_name.x, by_times.x)


def test_a_path_holds_every_node():
    solution = sdediff.solve(MODEL, start(), steps=5, path=True, t_to=1e-3)
    assert solution.path.shape == (6, 8, 2)
    assert torch.equal(solution.path[0], start())
    assert torch.equal(solution.path[-1], solution.x)
    # every node of the path is where a solve that stops there ends
    stopped = sdediff.solve(MODEL, start(), grid=solution.times[:4])
    assert torch.allclose(stopped.x, solution.path[3], rtol=0, atol=1e-14)


def test_progress_reports_every_step():
    seen = []
    sdediff.sample(MODEL, (5, 2), steps=3, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize("solver", ["ode", "sde", "ancestral", "pc", "euler-maruyama", "torchsde-srk"])
def test_sample_k_does_not_depend_on_the_batch(solver):
    options = {"solver": solver, "steps": 6, "dtype": torch.float64, "seed": 3}
    whole = sdediff.sample(MODEL, (7, 2), **options)
    chunked = sdediff.sample(MODEL, (7, 2), batch_size=3, **options)
    alone = sdediff.sample(MODEL, (1, 2), first=5, **options)
    assert torch.allclose(whole, chunked, rtol=0, atol=1e-12)  # rounding of batched products
    assert torch.allclose(whole[5], alone[0], rtol=0, atol=1e-12)
    assert not torch.allclose(whole, sdediff.sample(MODEL, (7, 2), **{**options, "seed": 4}), atol=1e-2)


def test_the_matched_prior_is_the_data_s_gaussian():
    """Mean of 20,000 draws at t = 0.3: z-test a coordinate at 5 standard errors (false alarm 1e-6)."""
    z = MODEL.sde.prior_sample((20_000, 2), t=0.3, moments=MODEL.moments, dtype=torch.float64)
    alpha, sigma = float(MODEL.sde.alpha(0.3)), float(MODEL.sde.sigma(0.3))
    covariance = alpha**2 * MIXTURE.covariance + sigma**2 * torch.eye(2)
    error = (z.mean(0) - alpha * MIXTURE.mean) / (covariance.diagonal() / len(z)).sqrt()
    assert error.abs().max() < 5.0
    spread = (torch.cov(z.T) - covariance) / covariance.diagonal().max()
    assert spread.abs().max() < 5.0 * (2.0 / len(z)) ** 0.5
    standard = MODEL.sde.prior_sample((20_000, 2), t=0.3, dtype=torch.float64)  # negative control
    assert (standard.mean(0) - alpha * MIXTURE.mean).abs().max() > 0.05


@pytest.mark.parametrize("solver", ["ode", "sde", "ancestral"])
@pytest.mark.parametrize(
    "sde", [sdediff.VPSDE(), sdediff.VESDE(), sdediff.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_samples_have_the_law_of_the_data(solver, sde):
    """Kolmogorov-Smirnov on the first coordinate, 4,000 draws, level 1e-6; a shifted mixture must be caught."""
    draws = sdediff.sample(MIXTURE.model(sde), (4000, 2), solver, steps=100, dtype=torch.float64)[:, 0].numpy()

    def cdf(v, shift=0.0):
        return sum(
            float(w) * stats.norm.cdf(v, float(m[0]) + shift, s**0.5)
            for w, m, s in zip(MIXTURE.weights, MIXTURE.means, (0.05, 0.2), strict=True)
        )

    assert stats.kstest(draws, cdf).pvalue > 1e-6
    assert stats.kstest(draws, lambda v: cdf(v, 0.1)).pvalue < 1e-6


def test_the_global_generators_are_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    sdediff.sample(MODEL, (4, 2), "sde", steps=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_gradients_flow_when_asked_for():
    x = start().requires_grad_()
    out = sdediff.solve(MODEL, x, steps=4, t_to=1e-3).x
    (grad,) = torch.autograd.grad(out.sum(), x)
    bumped = x.detach().clone()
    bumped[0, 0] += 1e-6
    difference = sdediff.solve(MODEL, bumped, steps=4, t_to=1e-3).x.sum() - out.detach().sum()
    assert float(difference / 1e-6) == pytest.approx(float(grad[0, 0]), rel=1e-4)
    assert not sdediff.solve(MODEL, start(), steps=4).x.requires_grad


def test_items_of_another_shape_are_refused_and_so_are_samples_that_do_not_start_at_the_prior():
    for shape in ((4, 3), (4,), (4, 2, 1)):
        with pytest.raises(ValueError, match=r"the model's items have shape \(2,\), not"):
            sdediff.sample(MODEL, shape)
    with pytest.raises(ValueError, match=r"the model's items have shape \(2,\), not \(1, 2\)"):
        sdediff.solve(MODEL, torch.zeros(4, 1, 2))
    with pytest.raises(ValueError, match="must begin at t_from = 1"):
        sdediff.sample(MODEL, (4, 2), grid=[0.5, 0.25, 0.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sdediff.SAMPLERS)
def test_a_state_in_half_precision_is_solved_in_single(name, dtype):
    """To the bit, and comes back in its own; every step in half would lose digits that the next ones need."""
    x = start(4).to(dtype)
    options = {} if sdediff.SAMPLERS[name].adaptive else {"steps": 6}
    half, full = (sdediff.solve(MODEL, y, name, t_to=0.0, path=True, **options) for y in (x, x.float()))
    assert (half.x.dtype, half.path.dtype, full.x.dtype) == (dtype, dtype, torch.float32)
    assert torch.equal(half.x, full.x.to(dtype))
    assert torch.equal(half.path, full.path.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_calls_take_half_precision_too(dtype):
    x, chain = MIXTURE.sample(4).to(dtype), MIXTURE.model(sdediff.DDPM.linear(20))
    for call in (sdediff.encode, sdediff.decode):
        assert torch.equal(call(MODEL, x), call(MODEL, x.float()).to(dtype))
    assert torch.equal(sdediff.log_likelihood(MODEL, x).log_prob, sdediff.log_likelihood(MODEL, x.float()).log_prob)
    assert torch.equal(sdediff.elbo(chain, x).total, sdediff.elbo(chain, x.float()).total)
    drawn, density = sdediff.sample(MODEL, (4, 2), dtype=dtype, return_log_prob=True)
    assert drawn.dtype == dtype
    assert torch.equal(density, sdediff.sample(MODEL, (4, 2), dtype=torch.float32, return_log_prob=True)[1])


EMPTY = torch.zeros(0, 2)


@pytest.mark.parametrize(
    "call",
    [
        *(partial(sdediff.solve, MODEL, EMPTY, name) for name in sdediff.SAMPLERS),
        partial(sdediff.encode, MODEL, EMPTY),
        partial(sdediff.decode, MODEL, EMPTY),
        partial(sdediff.encode, MODEL, EMPTY, "reversible"),
        partial(sdediff.interpolate, MODEL, EMPTY, EMPTY),
        partial(sdediff.log_likelihood, MODEL, EMPTY),
        partial(sdediff.elbo, MODEL, EMPTY, steps=float("inf")),
        partial(sdediff.bits_per_dim, MODEL, EMPTY.long(), levels=4),
        partial(sdediff.sample, MODEL, (0, 2)),
        partial(sdediff.compare, MODEL, (0, 2)),
    ],
)
def test_an_empty_batch_is_refused_in_words(call):
    with pytest.raises(ValueError, match=r"non-empty batch|at least \d"):
        call()


def test_a_denoiser_splits_an_empty_batch():
    assert MODEL.denoise(EMPTY, 0.5).shape == MODEL.score(EMPTY, 0.5).shape == (0, 2)


@pytest.mark.parametrize("name", ["t_from", "t_to"])
@pytest.mark.parametrize("time", [torch.tensor([0.5, 0.4, 0.3]), [0.5, 0.4], "noon", (0.5,)])
def test_one_time_for_the_whole_batch(name, time):
    with pytest.raises(ValueError, match=f"{name} must be one number, the same for the whole batch"):
        sdediff.solve(MODEL, start(3), **{name: time})


@pytest.mark.parametrize("name", [name for name, sampler in sdediff.SAMPLERS.items() if sampler.adaptive])
def test_an_adaptive_solve_has_a_cap(name):
    sampler = replace(sdediff.SAMPLERS[name], rtol=1e-2, atol=2e-2)
    nfe = sdediff.solve(MODEL, start(), replace(sampler, cap=10**9), t_to=1e-3).nfe
    assert sdediff.solve(MODEL, start(), replace(sampler, cap=nfe), t_to=1e-3).nfe == nfe
    with pytest.raises(FloatingPointError, match=f"rtol = 0.01 and atol = 0.02 are not met by {nfe - 1} "):
        sdediff.solve(MODEL, start(), replace(sampler, cap=nfe - 1), t_to=1e-3)
    with pytest.raises(ValueError, match="cap on forwards must be at least 1, not 0"):
        replace(sampler, cap=0)
