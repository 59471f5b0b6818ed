"""Where a likelihood's path runs: its ends, its nodes, and who solves it."""

from __future__ import annotations

from sdediff.denoiser import Denoiser
from sdediff.grids import Grid, LogSNR, Reference
from sdediff.integrators.torchdiffeq import ADAPTIVE_METHODS
from sdediff.likelihood.augmented import Augmented
from sdediff.likelihood.path import asks_once_a_node
from sdediff.numerics import choose
from sdediff.samplers import SAMPLERS
from sdediff.samplers.base import StepSampler
from sdediff.samplers.relative import Relative
from sdediff.sampling import GridLike, place
from sdediff.sde import SDE
from sdediff.types import Level

STEPS = 40
"""Steps of the default path: 41 forwards."""

CLIMBER = Relative(4, correct_from=0)
"""The solver of the path towards the noise, where shorter memories are better than on the way down."""
GRID, CHAIN_GRID = Reference(3.5), LogSNR()
"""Denser near the data than on the way down: there the fields of trained networks are rough, and paths start there.
Those of networks trained on a chain have a kink at every instant, and the first instants cover most noise levels:
even steps in log-SNR are the ones that see them all."""
_TOLERANCE = 1e-5


def find_ends(sde: SDE, t_from: float | None, t_to: float | None) -> tuple[float, float]:
    """The times between which the path runs."""
    first, last = sde.t_data if t_from is None else t_from, sde.t_max if t_to is None else t_to
    if not sde.t_min <= first < last <= sde.t_max:
        raise ValueError(
            f"the path needs {sde.t_min:g} <= t_from < t_to <= {sde.t_max:g}, not t_from = {first:g}, t_to = {last:g}"
        )
    return first, last


def find_method(
    solver: str | StepSampler | None, steps: int | None, rtol: float | None, atol: float | None, grid: GridLike | None
) -> StepSampler | Augmented:
    """How the path is solved."""
    tolerances = [value for value in (rtol, atol) if value is not None]
    if solver in ADAPTIVE_METHODS or (solver is None and tolerances):
        if steps is not None or grid is not None:
            raise ValueError("give either steps and a grid, or rtol/atol (adaptive), not both")
        tolerances = (tolerances or [_TOLERANCE]) * 2
        if not all(value > 0.0 for value in tolerances):
            raise ValueError(f"rtol and atol must be positive, not {tolerances[0]} and {tolerances[-1]}")
        return Augmented("dopri5" if solver is None else str(solver), tolerances[0], tolerances[1])
    if tolerances:
        raise ValueError(f"rtol and atol need one of the adaptive solvers {', '.join(ADAPTIVE_METHODS)}, not {solver}")
    if solver is None:
        return CLIMBER
    allowed = {name: method for name, method in SAMPLERS.items() if asks_once_a_node(method)}
    method = choose(allowed, solver, "solver of the likelihood's path") if isinstance(solver, str) else solver
    if not asks_once_a_node(method):
        raise ValueError(
            f"the path needs a deterministic solver of one forward a step, not {type(method).__name__}; "
            f"for example one of: {', '.join(allowed)}"
        )
    return method


def find_levels(
    model: Denoiser,
    method: StepSampler | Augmented,
    steps: int | None,
    grid: GridLike | None,
    ends: tuple[float, float],
) -> list[Level[float]]:
    """Of the nodes, rising in noise; of an adaptive path its two ends."""
    if isinstance(method, Augmented):
        return model.sde.levels(list(ends))
    own = GRID if model.sde.instants is None else CHAIN_GRID
    times = place(method, model, usual_steps(steps, grid), own if grid is None else grid, ends)
    if float(times[0]) > float(times[-1]):
        raise ValueError("the likelihood's path runs from the data to the noise: its times must rise")
    return model.sde.levels(times)


def usual_steps(steps: int | None, grid: GridLike | None) -> int | None:
    """The number of steps of a call, ``STEPS`` where it leaves it open; none where the grid is the times themselves."""
    return STEPS if steps is None and by_rule(grid) else steps


def by_rule(grid: GridLike | None) -> bool:
    """Whether a grid knows where any number of steps go."""
    return grid is None or isinstance(grid, str | Grid)
