"""The reversible solver: undone to rounding in either direction, for the price of the solve; and what cannot be."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import sdediff
from catalogue import MIXTURE, PROCESSES, SKEW
from sdediff import SDE, Level, NoiseSource, ScoreModel
from sdediff.analytic import GaussianMixture
from sdediff.samplers.reversible import Reversible, ReversibleBackward, ReversibleForward

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Relative RMS of a round trip, as promised. Undoing multiplies the rounding of a state, 1e-16 and 6e-8, by at most
``growth`` = 100 and what the flow itself stretches, a few times here."""
STEPS = (6, 20, 50)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


class Counted(ScoreModel):
    """An exact model that counts what it is asked, and knows no shape of its items."""

    def __init__(self, sde: SDE, law: GaussianMixture = MIXTURE) -> None:
        exact = law.model(sde)
        super().__init__(self._answer, sde, prediction="v_prediction", conditioning="level", moments=exact.moments)
        self.exact, self.asked = exact, 0

    def _answer(self, x: Tensor, level: Level) -> Tensor:
        self.asked += 1
        return self.exact.network(x, level)


def data(sde: SDE, count: int = 16) -> Tensor:
    return sde.alpha(sde.t_min) * MIXTURE.sample(count)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("process", PROCESSES)
def test_decode_undoes_encode(process: str, dtype: torch.dtype) -> None:
    model = MIXTURE.model(PROCESSES[process])
    x = data(model.sde).to(dtype)
    for steps in STEPS:
        z = sdediff.encode(model, x, "reversible", steps=steps)
        assert (z.shape, z.dtype) == ((16, 5, 2), dtype)
        assert relative(sdediff.decode(model, z, "reversible", steps=steps), x) < PRECISION[dtype]


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("process", PROCESSES)
def test_encode_undoes_decode(process: str, dtype: torch.dtype) -> None:
    model = MIXTURE.model(PROCESSES[process])
    z = model.sde.prior_sample((16, 2), moments=model.moments, dtype=dtype, noise=NoiseSource(0, (16, 2), dtype=dtype))
    for steps in STEPS:
        x = sdediff.decode(model, z, "reversible", steps=steps)
        assert relative(sdediff.encode(model, x, "reversible", steps=steps), z) < PRECISION[dtype]


def test_other_solvers_do_not_come_back() -> None:
    """The negative control: as many steps of an ordinary method miss by what they err."""
    model = MIXTURE.model(PROCESSES["vp"])
    x = data(model.sde)
    for solver in ("ode", "ab4", "ddim"):
        back = sdediff.decode(model, sdediff.encode(model, x, solver, steps=20), solver, steps=20)
        assert relative(back, x) > 1e6 * PRECISION[torch.float64]


def test_a_solve_is_undone_by_its_own_method_and_nodes_alone() -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x = data(model.sde)
    z = sdediff.encode(model, x, "reversible", steps=20)
    wrong = [(Reversible(growth=90.0), {}), ("reversible", {"steps": 21}), ("reversible", {"grid": "quadratic"})]
    for solver, options in wrong:
        back = sdediff.decode(model, z, solver, **{"steps": 20, **options})
        assert relative(back, x) > 1e6 * PRECISION[torch.float64]


def test_the_price_is_a_forward_a_step_either_way() -> None:
    model = Counted(PROCESSES["vp"])
    x = data(model.sde)
    z = sdediff.encode(model, x, "reversible", steps=20)
    assert model.asked == ReversibleForward(Reversible()).nfe(20) == 20
    sdediff.decode(model, z, "reversible", steps=20)
    assert (
        ReversibleBackward(Reversible()).nfe(20) == 19
    )  # the slope of the oldest state is what the relation does without
    assert model.asked == 20 + 19


@pytest.mark.parametrize("process", ["vp", "ve", "ddpm"])
@pytest.mark.parametrize("grid", ["reference", "logsnr", "chain", "times"])
def test_any_grid(process: str, grid: str) -> None:
    """Undone on the very nodes of the solve, also where a rule rounds differently on the way back."""
    model = MIXTURE.model(PROCESSES[process])
    x, sde = data(model.sde), model.sde
    times = sdediff.GRIDS["logsnr"](sde, 12, sde.t_min, sde.t_max)
    up, down = (times, times.flip(0)) if grid == "times" else (grid, grid)
    z = sdediff.encode(model, x, "reversible", steps=12, grid=up)
    assert relative(sdediff.decode(model, z, "reversible", steps=12, grid=down), x) < PRECISION[torch.float64]


def test_the_first_state_is_the_solve_s_own_end() -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x, sde = data(model.sde), model.sde
    z = sdediff.encode(model, x, "reversible", steps=12)
    solution = sdediff.solve(model, x, "reversible", t_from=sde.t_min, t_to=sde.t_max, steps=12, path=True)
    assert solution.path is not None
    assert torch.equal(z, solution.path.flip(0)[:5].transpose(0, 1))


def test_both_paths_are_one() -> None:
    """Undoing passes through the nodes of the solve."""
    model = MIXTURE.model(PROCESSES["vp"])
    x, sde, method = data(model.sde), model.sde, Reversible()
    there = sdediff.solve(model, x, ReversibleForward(method), t_from=sde.t_min, t_to=1.0, steps=12, path=True)
    grid = there.times.flip(0)
    back = sdediff.solve(model, there.x, ReversibleBackward(method), t_from=1.0, t_to=sde.t_min, grid=grid, path=True)
    assert there.path is not None
    assert back.path is not None
    assert relative(back.path, there.path.flip(0)) < PRECISION[torch.float64]


@pytest.mark.parametrize("angles", [(0.6, 2.4), (1.6,), (0.5, 1.5, 2.5)])
def test_relations_are_exact_for_polynomials(angles: tuple[float, ...]) -> None:
    """States that are the integral of a polynomial of degree k - 2 in the clock satisfy all but the starting relations,
    which see too few slopes."""
    method = Reversible(angles=angles, clock="angle")
    levels = PROCESSES["vp"].levels(torch.linspace(0.2, 1.0, 13, dtype=torch.float64))
    degree = method.states - 2
    integral = [level.angle ** (degree + 1) / (degree + 1) for level in levels]
    slope = [level.angle**degree for level in levels]
    for i, relation in enumerate(method.relations(levels)):
        states, slopes = integral[i::-1], slope[i::-1]
        ahead = sum(k * y for k, y in zip(relation.keep, states, strict=False))
        ahead += sum(w * v for w, v in zip(relation.weights, slopes, strict=False))
        full = len(relation.weights) == degree + 1
        assert (abs(ahead - integral[i + 1]) < 1e-12) == full
        assert math.isclose(sum(relation.keep), 1.0, abs_tol=1e-12)


@pytest.mark.parametrize(("angles", "order"), [((1.6,), 2), ((0.6, 2.4), 4)])
def test_orders_of_the_family(angles: tuple[float, ...], order: int) -> None:
    """The declared order is that of the number of angles. The nodes are dense at both ends, as in the law of orders, so
    that the low-order start does not show."""
    model, method = SKEW.model(PROCESSES["vp"]), Reversible(angles=angles)
    x = SKEW.moments.sample(NoiseSource(3, (6, 3), dtype=torch.float64).normal(0), model.sde.levels([1.0])[0])
    ends = torch.exp(-model.sde.half_log_snr(torch.tensor([1.0, 1e-2], dtype=torch.float64)))
    start, end = torch.asinh(ends / 0.3)

    def solved(steps: int) -> Tensor:
        share = 0.5 - 0.5 * torch.cos(torch.linspace(0.0, math.pi, steps + 1, dtype=torch.float64))
        grid = model.sde.time(-torch.log(0.3 * torch.sinh(start + (end - start) * share)))
        grid[0], grid[-1] = 1.0, 1e-2
        return sdediff.solve(model, x, method, t_to=1e-2, grid=grid).x

    ends_at = [solved(n) for n in (256, 512, 1024)]
    first, second = (float((a - b).norm()) for a, b in pairwise(ends_at))
    assert method.order == order
    assert abs(math.log2(first / second) - order) < 0.2


@pytest.mark.parametrize("steps", [10, 40])
def test_growth_bounds_what_rounding_becomes(steps: int) -> None:
    """Without a velocity undoing is a linear recursion: errors of the states grow as the powers of the roots do.

    The companion matrix of distinct roots r e^(i phi) has powers below ``cond(V) r^-n``, V the roots' Vandermonde."""
    model = ScoreModel(lambda x, level: torch.zeros_like(x), PROCESSES["vp"], "v_prediction", conditioning="level")
    rng = torch.Generator().manual_seed(0)
    error = torch.randn(200, 5, 1, generator=rng, dtype=torch.float64)
    amplified = {}
    for growth in (1.0, 100.0, 1e4):
        method = Reversible(growth=growth)
        back = sdediff.decode(model, error, method, steps=steps)
        amplified[growth] = float(back.norm() / error.norm())
        radius = growth ** (-1.0 / steps)
        roots = [1.0] + [radius * np.exp(1j * sign * angle) for angle in method.angles for sign in (1.0, -1.0)]
        condition = float(np.linalg.cond(np.vander(roots)))
        assert amplified[growth] < math.sqrt(5.0) * condition * growth
    assert amplified[1e4] > 10.0 * amplified[100.0] > 10.0 * amplified[1.0]  # the bound is no empty one


def test_interpolation_ends_at_the_very_data() -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x = data(model.sde, 8)
    path = sdediff.interpolate(model, x[:4], x[4:], points=5, solver="reversible", steps=20)
    assert path.shape == (5, 4, 2)
    for end, wanted in ((path[0], x[:4]), (path[-1], x[4:])):
        assert relative(end, wanted) < PRECISION[torch.float64]
    tight = sdediff.interpolate(model, x[:4], x[4:], points=5)
    errors = [relative(path[i], tight[i]) for i in (1, 2, 3)]
    assert max(errors) < 0.05  # and between them is where the exact flow puts it
    assert relative(path[1], tight[2]) > 0.2


def test_states_are_told_from_a_state_by_the_model_s_shape() -> None:
    """Five channels are no five states where the model knows its items; where it does not, they are taken for such."""
    law = GaussianMixture(torch.zeros(1, 10, dtype=torch.float64), 0.5, shape=(5, 2))
    model = law.model(PROCESSES["vp"])
    z = sdediff.encode(model, law.sample(3), "reversible", steps=8)
    assert z.shape == (3, 5, 5, 2)
    unknown = Counted(PROCESSES["vp"])
    states = sdediff.encode(unknown, data(unknown.sde), "reversible", steps=8)
    assert sdediff.decode(unknown, states, "reversible", steps=8).shape == (16, 2)
    with pytest.raises(ValueError, match=r"items have shape \(5, 2\)"):
        sdediff.decode(model, z[:, :4], "reversible", steps=8)


def test_what_cannot_be_is_refused() -> None:
    model = MIXTURE.model(PROCESSES["vp"])
    x = data(model.sde)
    with pytest.raises(ValueError, match="at least 5 steps, not 4"):
        sdediff.encode(model, x, "reversible", steps=4)
    with pytest.raises(ValueError, match="takes steps, not rtol"):
        sdediff.encode(model, x, "reversible", rtol=1e-3)
    with pytest.raises(ValueError, match="between 0 and pi"):
        Reversible(angles=())
    with pytest.raises(ValueError, match="between 0 and pi"):
        Reversible(angles=(4.0,))
    with pytest.raises(ValueError, match="at least 1"):
        replace(Reversible(), growth=0.5)
    with pytest.raises(ValueError, match="unknown clock"):
        Reversible(clock="sundial")


@pytest.mark.parametrize("steps", [7, 40])
def test_undoing_a_solve_amplifies_rounding_by_the_growth_at_most(steps: int) -> None:
    """The roots other than 1 have the size r with ``r^-N = growth``; their product is the oldest state's factor."""
    method = Reversible(growth=50.0)
    oldest = method.relations(sdediff.VPSDE().levels(torch.linspace(1.0, 1e-3, steps + 1, dtype=torch.float64)))[
        -1
    ].keep[-1]
    assert abs(oldest) ** (-steps / (method.states - 1)) == pytest.approx(50.0)
