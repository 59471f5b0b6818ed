"""Tuning: trajectories, gradients, learning, and the file of what was learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE
from sdediff import SDE, VESDE, VPSDE, DataInfo, Level, RectifiedFlow, ScoreModel, load, save, solve, tuning
from sdediff.config import Config, build
from sdediff.evaluation.distances import Errors
from sdediff.samplers.candidates import METHODS
from sdediff.samplers.exponential import VelocityIntegrand
from sdediff.samplers.heun import Heun
from sdediff.samplers.interpolation import weights
from sdediff.samplers.tuned import AdamsMethod, Tuned, lagrange_averages
from sdediff.tuning.optimize import learn, objective, rollout, squared_errors
from sdediff.tuning.parameters import Initialisation, SolverParameters
from sdediff.tuning.trajectories import solve_pilot, starts
from sdediff.wrappers import Wrapper


def disturbed(model: ScoreModel, steps: int = 4, t_to: float = 1e-3) -> SolverParameters:
    """A draft whose every number is off."""
    draft = SolverParameters.of(model, steps, t_to, Initialisation(2.5, AdamsMethod(3, correct=True)))
    rng = torch.Generator().manual_seed(0)
    names = ("shares", "step", "back", "offsets")
    noise = {n: 0.05 * torch.randn(getattr(draft, n).shape, generator=rng, dtype=torch.float64) for n in names}
    return replace(draft, **{name: getattr(draft, name) + noise[name] for name in names})


# ---- trajectories --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("global_generators_untouched")
def test_starts_are_half_as_sampling_draws_and_half_standard() -> None:
    """Four estimates of a variance from 10,000 draws each, standard error 1.4 %: 6 % misses by chance below 1e-4."""
    model = GAUSSIAN.model(RectifiedFlow())
    cut = replace(model.moments, variances=400.0 * model.moments.variances)
    wide = ScoreModel(model.network, VPSDE(), model.prediction, conditioning="level", moments=cut, data=model.data)
    x = starts(wide, 20_000, seed=1)
    level = wide.sde.levels([1.0])[0]
    by_moments = level.alpha**2 * cut.variances + level.sigma**2
    torch.testing.assert_close((x[::2] @ cut.basis).var(dim=0), by_moments, rtol=0.06, atol=0.0)
    torch.testing.assert_close(x[1::2].var(dim=0), torch.full((2,), level.sigma**2, dtype=x.dtype), rtol=0.06, atol=0.0)
    torch.testing.assert_close(starts(wide, 7, seed=1), x[:7], rtol=1e-12, atol=1e-12)
    assert float((starts(wide, 7, seed=2) - x[:7]).abs().min()) > 1e-6


@pytest.mark.parametrize(("process", "last"), [(VPSDE(), 1e-5), (VESDE(), 3e-4)], ids=["vp", "ve"])
def test_trajectories_end_where_the_exact_flow_ends(process: SDE, last: float) -> None:
    model = MIXTURE.model(process)
    paths = solve_pilot(model, starts(model, 24, seed=0), 1e-3, lambda done, total: None)
    exact = solve(model, paths.start, "dopri5", rtol=1e-10, t_to=1e-3).x
    clean = solve(model, paths.start, "dopri5", rtol=1e-10, t_to=0.0).x
    assert Errors.of(paths.end, exact).rms < 1e-5
    # The exploding process has no time between its sigma_min = 0.01 and the data: dopri5 ends there with one step.
    assert Errors.of(paths.clean, clean).rms < last
    assert Errors.of(paths.clean, exact).rms > 1e-4  # the two ends are not the same


def test_errors_are_rms_and_the_median_sample_s() -> None:
    exact = torch.zeros(3, 1, 2, dtype=torch.float64)
    x = torch.tensor([[[1.0, 1.0]], [[3.0, 4.0]], [[0.0, 0.0]]], dtype=torch.float64)
    assert Errors.of(x, exact) == pytest.approx((math.sqrt(27.0 / 6.0), 1.0))


# ---- gradients -----------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_multistep_generator() -> None:
    levels = VPSDE().levels([0.9, 0.6, 0.35, 0.2, 0.1])
    clock = torch.tensor([math.asinh(math.tan(level.angle) / 0.3) for level in levels], dtype=torch.float64)
    ours = lagrange_averages(clock[3], clock[4], clock[:4].flip(0), torch.ones(1, dtype=torch.float64))[:, 0]
    theirs = weights(VelocityIntegrand(), "asinh", "exact", levels[:4][::-1], levels[3], levels[4])
    mass = levels[4].angle - levels[3].angle
    torch.testing.assert_close(ours * mass, torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lean", [False, True])
def test_what_is_learned_is_what_is_sampled(lean: bool, sde: SDE) -> None:
    model = MIXTURE.model(sde)
    t_to = max(1e-3, sde.t_min)
    draft, x = disturbed(model, t_to=t_to), starts(model, 16, seed=0)
    end, clean = rollout(model, draft.tensors(), x, lean=lean)
    tuned = draft.tensors().sampler(model)
    scale = float(sde.level(sde.t_max).scale)
    torch.testing.assert_close(solve(model, x, tuned, t_to=t_to).x, end, rtol=0.0, atol=1e-9 * scale)
    torch.testing.assert_close(solve(model, x, tuned, t_to=0.0).x, clean, rtol=0.0, atol=1e-9 * scale)


def test_gradients_are_those_of_differences() -> None:
    model = MIXTURE.model(VPSDE())
    paths = solve_pilot(model, starts(model, 8, seed=0), 1e-3, lambda done, total: None)
    draft = disturbed(model)
    names = ("shares", "step", "back", "offsets")

    def loss(*numbers: Tensor, lean: bool = False) -> Tensor:
        shape = replace(draft, **dict(zip(names, numbers, strict=True))).tensors()
        return sum((objective(e) for e in squared_errors(model, shape, paths, lean=lean)), torch.zeros(()))

    numbers = [getattr(draft, name).clone().requires_grad_() for name in names]
    found = torch.autograd.grad(loss(*numbers), numbers)
    again = torch.autograd.grad(loss(*numbers, lean=True), numbers)
    rng, step = torch.Generator().manual_seed(1), 1e-6
    ways = [torch.randn(n.shape, generator=rng, dtype=torch.float64) for n in numbers]
    for i in range(len(names)):
        assert torch.equal(found[i], again[i])
        ends = []
        for sign in (1.0, -1.0):
            moved = [n.detach() + sign * step * ways[j] if i == j else n.detach() for j, n in enumerate(numbers)]
            ends.append(float(loss(*moved)))
        slope = float((found[i] * ways[i]).sum())
        assert abs(slope) > 1e-3
        assert (ends[0] - ends[1]) / (2.0 * step) == pytest.approx(slope, rel=1e-5)


# ---- learning ------------------------------------------------------------------------------------------------------


def test_a_tuned_solver_beats_the_default_on_fresh_starts() -> None:
    model = MIXTURE.model(VPSDE())
    paths = tuning.pilot(model, trajectories=128, held_out=64, seed=0)
    found = tuning.tune(model, 5, trajectories=paths, iterations=80, batch_size=64)
    assert found.solver.steps == 5
    fresh = solve_pilot(model, starts(model, 256, seed=9), 1e-3, lambda done, total: None)
    for t_to, exact in ((1e-3, fresh.end), (0.0, fresh.clean)):
        ours, default = (
            Errors.of(solve(model, fresh.start, solver, t_to=t_to, steps=5).x, exact)
            for solver in (found.solver, "ode")
        )
        assert ours.rms < 0.5 * default.rms
        assert ours.median < 0.5 * default.median
    # hardly learned, it is hardly better than its first guess
    hardly = tuning.tune(model, 5, trajectories=paths, iterations=1, batch_size=64)
    assert found.gain < 0.5 * hardly.gain
    assert found.after.rms < hardly.after.rms


def test_tuning_is_reproducible_and_leaves_the_model_alone() -> None:
    model = ScoreModel(Affine(), VPSDE(), data=DataInfo((2,)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[tuple[int, int]] = []
    options = {"trajectories": 16, "held_out": 8, "iterations": 2, "batch_size": 8}
    one = tuning.tune(model, 3, **options, progress=lambda done, total: seen.append((done, total)))  # type: ignore[arg-type]
    two, other = (tuning.tune(model, 3, **options, seed=seed) for seed in (0, 1))  # type: ignore[arg-type]
    assert seen == [(1, 2), (2, 2)]
    assert one.solver == two.solver
    assert one.before != other.before
    assert (one.before, one.after) == (two.before, two.after)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Closed(Wrapper):
    """A denoiser through which no gradient comes."""

    def change(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        return x0.detach()


class Affine(torch.nn.Module):
    """The least network with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.factor * x * (1.0 + t[:, None]) + 0.3 * torch.sin(3.0 * x)


def test_wrong_input_is_told_in_one_line() -> None:
    model = MIXTURE.model(VPSDE())
    for options, word in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2, "iterations": 0}, "iterations"),
        ({"steps": 2, "batch_size": 0}, "batch_size"),
        ({"steps": 2, "trajectories": 0}, "trajectories"),
        ({"steps": 2, "held_out": 0}, "judge"),
    ):
        with pytest.raises(ValueError, match=word):
            tuning.tune(model, **options)  # type: ignore[arg-type]
    unknown = ScoreModel(lambda x, t: x, VPSDE())
    with pytest.raises(ValueError, match="does not say what its data are"):
        tuning.tune(unknown, 2)
    closed = Closed(model)
    draft = SolverParameters.of(model, 2, 1e-3, Initialisation(2.5, AdamsMethod(2)))
    paths = solve_pilot(model, starts(model, 4, seed=0), 1e-3, lambda done, total: None)
    with pytest.raises(ValueError, match="no gradient"):
        learn(closed, draft, paths, iterations=1, batch_size=4, seed=0, progress=lambda done, total: None)


# ---- the file ------------------------------------------------------------------------------------------------------


def run(seed: int = 0) -> ScoreModel:
    """A model that can be saved."""
    changes = {
        "data.name": "moons",
        "network.name": "mlp",
        "network.width": 8,
        "network.blocks": 1,
        "training.seed": seed,
    }
    return build(Config().updated(changes), DataInfo((2,)), MIXTURE.moments)


def result(model: ScoreModel, steps: int) -> tuning.Tuning:
    return tuning.Tuning(disturbed(model, steps).tensors().sampler(model), Errors(0.2, 0.1), Errors(0.1, 0.05), 1.0)


def same(one: Tuned, other: Tuned) -> bool:
    """Equal to the last bit, apart from the identity of the moments."""
    return replace(one, moments=None) == replace(other, moments=None)


def test_what_is_kept_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    model = run()
    save(model, tmp_path)
    made = {steps: result(model, steps) for steps in (3, 20, 5)}
    tuning.save(tmp_path, model, made.values())
    again = load(tmp_path)
    x = starts(again, 8, seed=0)
    for steps, found in made.items():
        read = tuning.load(tmp_path, again, steps)
        assert same(read, found.solver)
        assert torch.equal(solve(again, x, read, t_to=0.0).x, solve(model, x, found.solver, t_to=0.0).x)
    assert same(tuning.load(tmp_path, again), made[20].solver)
    newer = replace(made[5], solver=disturbed(model, 5, t_to=2e-3).tensors().sampler(model))
    tuning.save(tmp_path, again, [newer])
    assert same(tuning.load(tmp_path, model, 5), newer.solver)
    assert same(tuning.load(tmp_path, model, 3), made[3].solver)
    assert [file.name for file in tmp_path.glob("*tuned*")] == [tuning.FILE]


def test_what_a_solver_was_tuned_under_is_kept(tmp_path: Path) -> None:
    model = run()
    save(model, tmp_path)
    told = "label=[3]; guidance 2 against label=[10]"
    tuning.save(tmp_path, model, [result(model, 5)], told)
    tuning.save(tmp_path, model, [result(model, 3)])
    assert [tuning.tuned_setting(tmp_path, model, steps) for steps in (5, 3)] == [told, ""]
    with pytest.raises(ValueError, match="no solver of 4 steps"):
        tuning.tuned_setting(tmp_path, model, 4)


def test_a_solver_that_tuning_did_not_better_is_kept_too(tmp_path: Path) -> None:
    model = run()
    save(model, tmp_path)
    nodes, t_max = (0.6, 0.3, 0.1, 0.0), model.sde.t_max
    untuned = {
        4: tuning.Chosen(METHODS["ode"], (t_max, *nodes)),
        3: tuning.Chosen(METHODS["deis3"], (t_max, *nodes), True),
    }
    made = [tuning.Tuning(solver, Errors(0.2, 0.1), Errors(0.1, 0.05), 1.0) for solver in untuned.values()]
    tuning.save(tmp_path, model, [result(model, 5), *made])
    assert [tuning.load(tmp_path, model, steps) for steps in (3, 4)] == [untuned[3], untuned[4]]
    assert tuning.load(tmp_path, model).steps == 5
    wrong = tuning.Tuning(tuning.Chosen(Heun(), (t_max, 0.5, 0.0)), Errors(0.2, 0.1), Errors(0.1, 0.05), 1.0)
    with pytest.raises(ValueError, match="only the methods that are chosen from can be kept, not Heun"):
        tuning.save(tmp_path, model, [wrong])


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = run()
    with pytest.raises(FileNotFoundError, match="no solver was tuned"):
        tuning.load(tmp_path, model, 5)
    path = tuning.save(tmp_path, model, [result(model, 5)])
    others = [run(seed=1), run(), run()]
    others[1].sde = VESDE()
    others[2].moments = GAUSSIAN.moments
    for other in others:
        with pytest.raises(ValueError, match="another model"):
            tuning.load(tmp_path, other, 5)
    with pytest.raises(ValueError, match="no solver of 6 steps, only of 5"):
        tuning.load(tmp_path, model, 6)
    good = json.loads(path.read_text())
    row = good["solvers"]["5"]["rows"][0]
    for wrong in (
        {**good, "format": 0},
        {"format": 1},
        [],
        {**good, "solvers": {"5": {}}},
        {**good, "solvers": {"5": {**good["solvers"]["5"], "rows": [row] * 4}}},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"tuned\.json") as caught:
            tuning.load(tmp_path, model, 5)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        tuning.load(tmp_path, model, 5)
    tuning.save(tmp_path, others[0], [result(others[0], 4)])  # a new model's solvers take the place of the old one's
    with pytest.raises(ValueError, match="another model"):
        tuning.load(tmp_path, model, 5)
    with pytest.raises(ValueError, match="only of 4"):
        tuning.load(tmp_path, others[0], 5)


def test_models_that_cannot_be_saved_have_no_file(tmp_path: Path) -> None:
    model = MIXTURE.model(VPSDE())
    with pytest.raises(ValueError, match="only networks that are torch modules can be saved, not method"):
        tuning.save(tmp_path, model, [result(model, 3)])
    assert list(tmp_path.iterdir()) == []
