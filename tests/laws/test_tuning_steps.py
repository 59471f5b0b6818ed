"""Learning a solver, step by step: the fair gradient of drawn trajectories, the best that was seen, who judges."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from catalogue import MIXTURE
from sdediff import VPSDE, tuning
from sdediff.evaluation.distances import Errors
from sdediff.samplers.tuned import AdamsMethod
from sdediff.tuning import optimize as module
from sdediff.tuning.parameters import Initialisation, SolverParameters
from sdediff.tuning.trajectories import Pilot, solve_pilot, starts

MODEL = MIXTURE.model(VPSDE())


@pytest.fixture(scope="module")
def paths() -> Pilot:
    return solve_pilot(MODEL, starts(MODEL, 48, seed=0), 1e-3, lambda done, total: None)


def learned(paths: Pilot, draft: SolverParameters, iterations: int = 1) -> SolverParameters:
    quiet = partial(module.learn, batch_size=32, seed=0, progress=lambda done, total: None)
    return quiet(MODEL, draft, paths, iterations=iterations)


def draft(steps: int = 4) -> SolverParameters:
    return SolverParameters.of(MODEL, steps, 1e-3, Initialisation(2.5, AdamsMethod(2)))


def test_trajectories_drawn_often_count_for_less(paths: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of a batch, each with its weight, is that of all: within 4.5 standard errors of 12 batches of 32 (false
    alarm 7e-6), and far from the mean without weights."""
    seen: list[tuple[Tensor, Tensor]] = []
    whole = module.objective

    def watched(errors: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is not None:
            seen.append((errors.detach(), weights))
        return whole(errors, weights)

    monkeypatch.setattr(module, "objective", watched)
    monkeypatch.setattr(module, "RATE", 0.0)  # the draft stays what it is
    learned(paths, draft(), iterations=12)
    with torch.no_grad():
        truth = module.squared_errors(MODEL, draft().tensors(), paths)[0].sqrt()
    ends = seen[::2]  # at t_to; the others are at the data
    assert len(ends) == 12
    weighted = torch.stack([w * e.sqrt() for e, w in ends]).flatten() / len(truth)
    error = float(weighted.std()) / math.sqrt(len(weighted))
    assert abs(float(weighted.mean() - truth.mean())) < 4.5 * error
    plain = torch.stack([e.sqrt() for e, _ in ends]).flatten()
    assert float(plain.mean() - truth.mean()) > 4.5 * error


def test_the_best_that_was_seen_is_kept(paths: Pilot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps so long that they only spoil: what comes back is the draft as it was."""
    monkeypatch.setattr(module, "RATE", 1.0)
    found = learned(paths, draft(), iterations=2)
    assert all(torch.equal(*pair) for pair in zip(found.parameters(), draft().parameters(), strict=True))


def test_the_first_guess_is_the_best_of_those_tried(paths: Pilot) -> None:
    found = module.solver_objective(MODEL, module.best_initialisation(MODEL, 4, 1e-3, paths), paths)
    tried = [
        module.solver_objective(MODEL, SolverParameters.of(MODEL, 4, 1e-3, start), paths)
        for start in module.INITIALISATIONS
    ]
    assert found == pytest.approx(min(tried), rel=1e-9)
    assert max(tried) > min(tried) + 0.1


def test_who_judges_was_not_learned_from() -> None:
    """Starts learned from and held out are, together, those of the seed in their order."""
    pilot = tuning.pilot(MODEL, trajectories=5, held_out=3, seed=2)
    torch.testing.assert_close(torch.cat([pilot.learned.start, pilot.held_out.start]), starts(MODEL, 8, seed=2))
    assert (len(pilot.learned.start), len(pilot.held_out.start)) == (5, 3)


def test_the_gain_is_the_geometric_mean_of_both() -> None:
    solver = draft(2).tensors().sampler(MODEL)
    for before, after, gain in (
        (Errors(4.0, 3.0), Errors(1.0, 3.0), 0.5),
        (Errors(4.0, 3.0), Errors(4.0, 0.75), 0.5),
        (Errors(1.0, 1.0), Errors(2.0, 0.5), 1.0),
    ):
        assert tuning.Tuning(solver, before, after, 0.0).gain == pytest.approx(gain, rel=1e-12)
