"""What tuning minimises does not depend on how trajectories are drawn: a weight stands for so many of them."""

from __future__ import annotations

import math

import torch

from catalogue import MIXTURE
from sdediff import VPSDE
from sdediff.samplers.tuned import AdamsMethod
from sdediff.tuning.optimize import RMS, _chances, objective, squared_errors
from sdediff.tuning.parameters import Initialisation, SolverParameters
from sdediff.tuning.trajectories import solve_pilot, starts


def test_a_weight_is_so_many_samples() -> None:
    """In both parts: errors counted 1, 2 and 5 times have the objective of all eight, whatever the unit of weights."""
    values, counts = torch.tensor([0.01, 3.0, 1e-5], dtype=torch.float64), torch.tensor([1.0, 2.0, 5.0])
    whole = objective(values.repeat_interleave(counts.long()))
    for unit in (1.0, 1e-3):
        torch.testing.assert_close(objective(values, unit * counts.double()), whole, rtol=1e-12, atol=0.0)
    assert float((objective(values) - whole).abs()) > 0.1  # unweighted, it is another


def test_the_objective_is_a_mean_of_two_logarithms() -> None:
    """Log of ``RMS^w typical^(1 - w)``, typical the geometric mean: between, in proportion to the unit of length."""
    values = torch.tensor([0.04, 0.09, 0.25], dtype=torch.float64)
    rms, typical = math.sqrt(0.38 / 3.0), (0.2 * 0.3 * 0.5) ** (1.0 / 3.0)
    found = math.exp(float(objective(values)))
    assert math.isclose(found, rms**RMS * typical ** (1.0 - RMS), rel_tol=1e-9)
    assert typical < found < rms
    assert math.isclose(math.exp(float(objective(100.0 * values))), 10.0 * found, rel_tol=1e-9)


def test_trajectories_are_drawn_half_evenly_and_half_by_their_error() -> None:
    """By its root mean square, so that squares weighted by the inverse chance have less variance than drawn evenly."""
    model = MIXTURE.model(VPSDE())
    pilot = solve_pilot(model, starts(model, 100, seed=0), 1e-3, lambda done, total: None)
    draft = SolverParameters.of(model, 5, 1e-3, Initialisation(2.5, AdamsMethod(3)))
    chance = _chances(model, draft, pilot)
    with torch.no_grad():
        squares = squared_errors(model, draft.tensors(), pilot)[0]
    expected = 0.5 / 100 + 0.5 * squares.sqrt() / squares.sqrt().sum()
    torch.testing.assert_close(chance, expected, rtol=1e-6, atol=0.0)
    mean = squares.mean()
    drawn, even = ((share * (squares / (100 * share) - mean).square()).sum() for share in (chance, 1.0 / 100))
    assert float(drawn) < 0.5 * float(even)
