"""Solvers with nodes and weights of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from catalogue import GAUSSIAN, MIXTURE, SKEW
from sdediff import SDE, VESDE, VPSDE, ScoreModel, sample, solve
from sdediff.denoiser import Denoiser
from sdediff.samplers import SAMPLERS
from sdediff.samplers.base import Sampler
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.tuned import AdamsMethod, StepWeights, Tuned
from sdediff.tuning.parameters import Initialisation, SolverParameters


def plain(model: ScoreModel) -> ScoreModel:
    """A model that does not know its moments."""
    return ScoreModel(model.network, model.sde, model.prediction, conditioning=model.conditioning, data=model.data)


def untuned(model: Denoiser, steps: int, *, memory: int = 4, correct: bool = True, t_to: float = 1e-3) -> Tuned:
    return (
        SolverParameters.of(model, steps, t_to, Initialisation(2.5, AdamsMethod(memory, correct)))
        .tensors()
        .sampler(model)
    )


def starts(model: Denoiser, count: int = 64) -> torch.Tensor:
    return model.sde.prior_sample((count, *model.data.shape), seed=3, dtype=torch.float64)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("t_to", [1e-3, 0.0])
def test_rows_of_a_multistep_method_are_that_method(sde: SDE, correct: bool, t_to: float) -> None:
    model = plain(MIXTURE.model(sde))
    steps, x = 6, starts(model)
    method = Multistep("velocity", "asinh", 4, correct_from=1 if correct else None)
    tuned = untuned(model, steps, correct=correct, t_to=max(1e-3, sde.t_min))
    times = tuned.grid(sde, steps, sde.t_max, t_to)
    ours = solve(model, x, tuned, t_to=t_to)
    assert ours.nfe == steps
    assert torch.equal(ours.times, times)
    exact = solve(model, x, method, grid=times).x
    # sums of a few terms over a few steps; x is of the size of its scale, up to 50
    torch.testing.assert_close(ours.x, exact, rtol=0.0, atol=1e-11 * float(sde.level(sde.t_max).scale))
    fewer = Multistep("velocity", "asinh", 3, correct_from=1 if correct else None)
    assert float((solve(model, x, fewer, grid=times).x - exact).abs().max()) > 1e-5


@pytest.mark.parametrize("process", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_gaussian_data_are_solved_in_one_step(process: SDE) -> None:
    """Against the data's own Gaussian nothing is left to integrate, whatever the weights."""
    model = GAUSSIAN.model(process)
    x = starts(model)
    first, last = (float(process.half_log_snr(t)) for t in (process.t_max, 1e-3))
    tuned = Tuned((first, last), (StepWeights((5.0,), (0.0,)),), StepWeights((-3.0,), (0.0,)), moments=model.moments)
    exact = solve(model, x, "dopri5", rtol=1e-10, t_to=1e-3).x
    torch.testing.assert_close(solve(model, x, tuned, t_to=1e-3).x, exact, rtol=1e-7, atol=1e-7)
    off = solve(model, x, replace(tuned, moments=None), t_to=1e-3).x
    assert float((off - exact).abs().max()) > 0.1


def test_moments_are_turned_and_centred_in_three_dimensions() -> None:
    """As the multistep method converges, so does this one in the basis of correlated data."""
    model = SKEW.model(VPSDE())
    x = starts(model, 32)
    exact = solve(model, x, "dopri5", rtol=1e-10, t_to=1e-3).x
    errors = [float((solve(model, x, untuned(model, n), t_to=1e-3).x - exact).square().mean().sqrt()) for n in (20, 80)]
    assert errors[1] < errors[0] / 4**3.5  # of order 5 by its corrector, less what the start-up costs


def test_ends_mix_their_rows_by_the_angle() -> None:
    model = MIXTURE.model(VPSDE())
    x, tuned = starts(model), untuned(MIXTURE.model(VPSDE()), 5)
    row = tuned.rows[-1]
    tuned = replace(tuned, clean=StepWeights(tuple(w + 0.5 for w in row.step), row.back))
    sde = model.sde
    same = replace(tuned, clean=row)
    torch.testing.assert_close(solve(model, x, tuned, t_to=1e-3).x, solve(model, x, same, t_to=1e-3).x)
    angle = [float(sde.level(t).angle) for t in (1e-3, 4e-4)]
    share = angle[1] / angle[0]
    middle = replace(tuned, clean=StepWeights(tuple(w + 0.5 * (1.0 - share) for w in row.step), row.back))
    halfway = solve(model, x, tuned, t_to=4e-4).x
    by_hand = replace(
        middle,
        half_log_snr=(*tuned.half_log_snr[:-1], float(sde.half_log_snr(4e-4))),
        rows=(*tuned.rows[:-1], middle.clean),
    )
    torch.testing.assert_close(halfway, solve(model, x, by_hand, t_to=4e-4).x, rtol=0.0, atol=1e-13)
    assert float((halfway - solve(model, x, same, t_to=4e-4).x).abs().max()) > 1e-4


def test_the_model_is_asked_where_it_is_told() -> None:
    model = MIXTURE.model(VESDE())
    x, tuned = starts(model), untuned(MIXTURE.model(VESDE()), 5)
    own = replace(tuned, evaluated=tuned.half_log_snr[:-1])
    expected = solve(model, x, replace(tuned, evaluated=None), t_to=0.0).x
    assert torch.equal(solve(model, x, own, t_to=0.0).x, expected)
    told: list[float] = []
    model.register_forward_pre_hook(lambda _, inputs: told.append(float(inputs[1].half_log_snr)))
    shifted = tuple(node + 0.1 * (i > 0) for i, node in enumerate(tuned.half_log_snr[:-1]))
    other = solve(model, x, replace(tuned, evaluated=shifted), t_to=0.0).x
    assert told == pytest.approx(shifted, abs=1e-9)
    assert float((other - expected).abs().max()) > 1e-3


def test_its_own_nodes_are_used_and_no_others() -> None:
    model = MIXTURE.model(VPSDE())
    x, tuned = starts(model), untuned(MIXTURE.model(VPSDE()), 5)
    assert solve(model, x, tuned).nfe == 5  # ends at t_min by default
    assert solve(model, x, tuned, steps=5, t_to=0.0).nfe == 5
    assert sample(model, (4, 2), tuned, steps=5).shape == (4, 2)
    for options, word in (
        ({"steps": 6}, "tuned for 5 steps, not 6"),
        ({"t_to": 0.1}, "not 1 to 0.1"),
        ({"t_from": 0.5}, "tuned from t = 1"),
        ({"t_from": 1e-3, "t_to": 1.0}, "tuned from t = 1"),
        ({"grid": "logsnr"}, "own nodes"),
        ({"rtol": 1e-3}, "takes steps"),
    ):
        with pytest.raises(ValueError, match=word) as caught:
            solve(model, x, tuned, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_wrong_numbers_are_refused() -> None:
    one = StepWeights((1.0,), (0.0,))
    for nodes, rows, clean in (
        ((0.0,), (), one),
        ((0.0, 1.0, 1.0), (one, one), one),
        ((0.0, 1.0), (StepWeights((1.0, 2.0), (0.0, 0.0)),), one),
        ((0.0, 1.0), (StepWeights((1.0,), ()),), one),
        ((0.0, 1.0, 2.0), (one, StepWeights((1.0, 0.0), (0.0, 0.0))), one),
        ((0.0, math.nan), (one,), one),
    ):
        with pytest.raises(ValueError):
            Tuned(nodes, rows, clean)
    with pytest.raises(ValueError, match="evaluated 1 times"):
        Tuned((0.0, 1.0), (one,), one, evaluated=(0.0, 1.0))


def test_it_is_a_sampler_like_the_others() -> None:
    model = MIXTURE.model(VPSDE())
    tuned = untuned(model, 4)
    assert isinstance(tuned, Sampler)
    assert type(tuned) not in {type(entry) for entry in SAMPLERS.values()}  # there is none without a model
    x, seen = starts(model), list[tuple[int, int]]()
    whole = solve(model, x, tuned, t_to=0.0, path=True, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 4) for i in range(1, 5)]
    assert whole.path is not None
    assert torch.equal(whole.path[-1], whole.x)
    # each sample by itself, but for the order of sums in matrix products
    torch.testing.assert_close(solve(model, x[:3], tuned, t_to=0.0).x, whole.x[:3], rtol=0.0, atol=1e-13)
    single = solve(model, x.float(), tuned, t_to=0.0).x
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole.x, rtol=0.0, atol=1e-4)
