"""Comparing solvers: the truth, the cost, the two kinds of error, and what each figure is worth."""

import math
from dataclasses import replace

import pytest
import torch

import sdediff
from catalogue import GAUSSIAN, MIXTURE
from sdediff.evaluation.distances import Errors, energy_distance
from sdediff.evaluation.solvers import compare

VP = sdediff.VPSDE()
MODEL = MIXTURE.model(VP)


def by_solver(result, name):
    return [row for row in result.rows if row.solver == name]


@pytest.fixture(scope="module")
def result():
    return compare(
        MODEL, (64, 2), ("ode", "ddim", "heun", "dopri5", "ancestral"), forwards=(20, 10, 40), rtols=(1e-4, 1e-2)
    )


def test_errors_are_those_of_the_solves(result):
    """Start by start against the library's own ``solve``, with a reference a hundred times as tight."""
    noise = sdediff.NoiseSource(0, (64, 2), first=1_000_000, dtype=torch.float64)
    x = VP.prior_sample((64, 2), moments=MODEL.moments, noise=noise)
    truth = sdediff.solve(MODEL, x, "dopri5", rtol=1e-8, t_to=0.0).x
    for row in result.rows:
        if row.rms is not None:
            given = {"steps": row.steps} if row.rtol is None else {"rtol": row.rtol}
            solution = sdediff.solve(MODEL, x, row.solver, t_to=0.0, **given)
            assert solution.nfe == row.nfe
            for came, true, own in zip(
                (row.rms, row.median), Errors.of(solution.x, truth), result.reference[2:], strict=True
            ):
                assert abs(came - true) <= 2.0 * own


def test_the_reference_states_its_own_error():
    """Gaussian data have the flow in closed form: the true error is at most twice the estimate, and more than a
    hundredth of it; on eight sets of starts it was 0.05 to 1.44 of it."""
    model = GAUSSIAN.model(VP)
    noise = sdediff.NoiseSource(5, (32, 2), first=1_000_000, dtype=torch.float64)
    x = VP.prior_sample((32, 2), moments=model.moments, noise=noise)
    level = VP.levels([1.0])[0]
    moments = GAUSSIAN.moments
    spread = (moments.variances / (level.alpha**2 * moments.variances + level.sigma**2)).sqrt()
    flow = moments.basis @ torch.diag(spread) @ moments.basis.T
    exact = moments.mean + (x - level.alpha * moments.mean) @ flow
    for tolerance in (1e-4, 1e-6, 1e-10):  # of the steps, and at last of the end at t_min
        own = compare(model, (32, 2), (), seed=5, tolerance=tolerance).reference
        true = Errors.of(sdediff.solve(model, x, "dopri5", rtol=tolerance, t_to=0.0).x, exact)
        for estimate, error in zip((own.rms, own.median), true, strict=True):
            assert 0.5 * error < estimate < 100.0 * error


def test_the_order_is_seen(result):
    """DDIM's error halves with twice the steps, Heun's falls to a quarter, the default's to less."""
    for name, ratio in (("ddim", 2.0), ("heun", 4.0)):
        _, second, third = by_solver(result, name)
        assert second.rms / third.rms == pytest.approx(ratio, rel=0.25)
    _, second, third = by_solver(result, "ode")
    assert second.rms > 1.25 * 4.0 * third.rms


def test_budgets_are_kept_and_used(result):
    """No solver spends more, and none could have taken another step; rows rise in cost."""
    for name, each in (("ode", 1), ("ddim", 1), ("heun", 2), ("ancestral", 1)):
        rows = by_solver(result, name)
        assert [row.budget for row in rows] == [10, 20, 40]
        assert all(row.budget - each < row.nfe <= row.budget for row in rows)
    assert [row.rtol for row in by_solver(result, "dopri5")] == [1e-2, 1e-4]
    too_few = compare(MODEL, (4, 2), {"rk4": "rk4", "x": lambda steps: None}, forwards=(1, 4), tolerance=1e-2)
    assert [(row.steps, row.nfe) for row in too_few.rows] == [(1, 1), (1, 1)]  # one step is the posterior mean


def test_a_start_is_judged_the_same_in_any_batch(result):
    """Solvers on grids, to rounding; noise is a function of the start, so stochastic ones too."""
    again = compare(MODEL, (64, 2), ("heun", "ancestral"), forwards=(10,), batch_size=24)
    for row in again.rows:
        before = next(r for r in result.rows if (r.solver, r.budget) == (row.solver, 10))
        assert row.distance == pytest.approx(before.distance, abs=1e-4)  # the reference's steps depend on the batch
        assert row.rms is None or row.rms == pytest.approx(before.rms, rel=1e-3)


def test_stochastic_solvers_have_a_law_and_no_path(result):
    for row in result.rows:
        assert (row.rms is None) == (row.median is None) == sdediff.SAMPLERS[row.solver].stochastic
        assert row.distance_error > 0.0


def test_solves_that_blow_up_do_not_stop_the_others():
    class Broken(type(sdediff.SAMPLERS["ddim"])):
        def step(self, denoise, y, here, there, noise, carry):
            return y * 1e200, carry  # of nothing, nothing; of a state, infinity in two steps

    rows = compare(MODEL, (4, 2), {"broken": Broken(), "ddim": "ddim"}, forwards=(4,), tolerance=1e-2).rows
    assert (rows[0].rms, rows[0].distance) == (math.inf, math.inf)
    assert rows[1].rms < 1.0


def test_samplers_under_any_name_and_by_number_of_steps():
    plain = sdediff.SAMPLERS["ode"]
    entries = {"mine": replace(plain, memory=2), "made": lambda steps: plain if steps == 8 else None, "known": "ode"}
    rows = compare(MODEL, (8, 2), entries, forwards=(6, 8), tolerance=1e-3).rows
    assert [(row.solver, row.budget) for row in rows] == [
        ("mine", 6), ("mine", 8), ("made", 8), ("known", 6), ("known", 8)
    ]  # fmt: skip
    assert rows[2][4:] == rows[4][4:]
    assert rows[1].rms != rows[4].rms


def test_progress_runs_to_its_end():
    seen = []
    compare(
        MODEL, (5, 2), ("ddim", "dopri5"), forwards=(3,), rtols=(0.1,), tolerance=1e-2, batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]
    assert len(set(seen)) > 3 * (2 + 1 + 1)  # within the solves too, of three batches


# ---- the energy distance -----------------------------------------------------------------------------------------


def normals(n, seed, shift=0.0, dim=3):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=rng, dtype=torch.float64) + shift


def test_energy_distance_of_equal_laws_is_nothing():
    """200 pairs of sets of 64 draws: the mean of the unbiased estimate lies within 4.5 standard errors of 0 (false
    alarm 7e-6); that of a biased one, with every pair counted, does not. Its stated error is of the right size."""
    estimates = torch.tensor([energy_distance(normals(64, 2 * k), normals(64, 2 * k + 1)) for k in range(200)])
    mean, spread = float(estimates[:, 0].mean()), float(estimates[:, 0].std())
    assert abs(mean) < 4.5 * spread / math.sqrt(200)
    biased = mean + 2.0 / 64 * 0.5  # the zeros of the diagonals make E|X - X'| too small by 1/n of it, twice
    assert not abs(biased) < 4.5 * spread / math.sqrt(200)
    assert 0.5 < float(estimates[:, 1].square().mean().sqrt()) / spread < 3.0


def test_the_error_of_an_energy_distance_is_the_jackknife_s():
    """By leaving out one start after another, each with its pairs, of the share of the mean ``2 E|X - Y|``."""
    x, y, n = normals(7, 1), normals(7, 2, 0.5), 7

    def mean_of(kept, of):
        return sum(of(i, j) for i in kept for j in kept if i != j) / (len(kept) * (len(kept) - 1))

    def cross(i, j):
        return float((x[i] - y[j]).norm() + (x[j] - y[i]).norm())

    def pair(i, j):
        return cross(i, j) - float((x[i] - x[j]).norm() + (y[i] - y[j]).norm())

    scale = mean_of(range(n), cross)
    without = torch.tensor([mean_of([i for i in range(n) if i != k], pair) for k in range(n)], dtype=torch.float64)
    wanted = mean_of(range(n), pair) / scale, math.sqrt((n - 1) ** 2 / n * float(without.var())) / scale
    assert energy_distance(x, y) == pytest.approx(wanted, rel=1e-9)


def test_energy_distance_of_shifted_laws_is_theirs():
    """On a line ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` has a closed form for normals a shift apart; 4.5 stated standard
    errors (false alarm 7e-6)."""
    shift = 0.8
    phi, cdf = math.exp(-(shift**2) / 4) / math.sqrt(math.pi), math.erf(shift / 2)
    cross, own = 2 * phi + shift * cdf, 2 / math.sqrt(math.pi)
    true = (2 * cross - 2 * own) / (2 * cross)
    value, error = energy_distance(normals(2000, 1, dim=1), normals(2000, 2, shift, dim=1))
    assert abs(value - true) < 4.5 * error
    assert abs(0.0 - true) > 4.5 * error


def test_energy_distance_is_unbiased_for_draws_in_pairs():
    """Each of one set near one of the other, as of one start by two solvers: no distance, and hardly any error."""
    x = normals(64, 1)
    value, error = energy_distance(x, x + 1e-3 * normals(64, 2))
    assert abs(value) < 1e-6
    assert error < 1e-6
    far, noise = energy_distance(x, normals(64, 3))
    assert max(abs(far), noise) > 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (2, 2)}, "at least 3 starts"),
        ({"solvers": ("nope",)}, "unknown solver 'nope'"),
        ({"tolerance": 0.0}, "must be positive"),
        ({"rtols": (-1.0,)}, "must be positive"),
        ({"forwards": (0,)}, "at least 1"),
        ({"prior": "nope"}, "unknown prior"),
        ({"batch_size": 0}, "at least 1"),
        ({"shape": (4, 3)}, r"items \(2,\), not \(3,\)"),
    ],
)
def test_wrong_options_are_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        compare(MODEL, **{"shape": (4, 2), "solvers": ("ddim",), **given})
    assert "\n" not in str(caught.value)
