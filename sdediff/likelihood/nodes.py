"""Where a likelihood's path runs: its ends, its nodes, and who solves it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping

from typing_extensions import TypeIs

from sdediff.denoiser import Denoiser
from sdediff.grids import Grid, LogSNR, Reference
from sdediff.integrators.torchdiffeq import ADAPTIVE_METHODS
from sdediff.likelihood.flow.adaptive_ode import AugmentedODE, within
from sdediff.likelihood.flow.path import asks_once_a_node
from sdediff.numerics import choose
from sdediff.options import GridLike
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.samplers.base import Crossing, StepSampler
from sdediff.samplers.external import AdaptiveODE
from sdediff.samplers.relative import Relative
from sdediff.sampling import node_times
from sdediff.sde import SDE
from sdediff.types import Level

STEPS = 40
"""Steps of the default path: 41 forwards."""

DEFAULT_SOLVER = Relative(4, correct_from=0)
"""The solver of the path towards the noise, where shorter memories are better than on the way down."""
GRID, CHAIN_GRID = Reference(3.5), LogSNR()
"""Denser near the data than on the way down: there the fields of trained networks are rough, and paths start there.
Those of networks trained on a chain have a kink at every instant, and the first instants cover most noise levels:
even steps in log-SNR are the ones that see them all."""


def find_ends(sde: SDE, t_from: float | None, t_to: float | None) -> tuple[float, float]:
    """The times between which the path runs."""
    first, last = sde.t_data if t_from is None else t_from, sde.t_max if t_to is None else t_to
    if not sde.t_min <= first < last <= sde.t_max:
        raise ValueError(
            f"the path needs {sde.t_min:g} <= t_from < t_to <= {sde.t_max:g}, not t_from = {first:g}, t_to = {last:g}"
        )
    return first, last


def find_method(
    solver: str | Sampler | None, steps: int | None, rtol: float | None, atol: float | None, grid: GridLike | None
) -> StepSampler | AugmentedODE:
    """Return how the path is solved.

    Raises:
        ValueError: for a solver that cannot, naming those that can; for options that do not go together.
    """
    tolerances = [value for value in (rtol, atol) if value is not None]
    if solver is None:
        method: Sampler = AdaptiveODE() if tolerances else DEFAULT_SOLVER
    else:
        method = choose(SOLVERS, solver, "solver of the likelihood's path") if isinstance(solver, str) else solver
    if is_adaptive_ode(method):
        if steps is not None or grid is not None:
            raise ValueError("give either steps and a grid, or rtol/atol (adaptive), not both")
        if not all(value > 0.0 for value in tolerances):
            raise ValueError(f"rtol and atol must be positive, not {tolerances[0]} and {tolerances[-1]}")
        return AugmentedODE(within(method, tolerances[0], tolerances[-1]) if tolerances else method)
    if tolerances:
        raise ValueError(
            f"rtol and atol need one of the adaptive solvers {', '.join(_names(is_adaptive_ode))}, not {solver}"
        )
    if asks_once_a_node(method):
        return method
    raise ValueError(
        f"the likelihood's path cannot be solved by {solver if isinstance(solver, str) else type(method).__name__}: it "
        f"needs a deterministic solver of one forward a step ({', '.join(_names(asks_once_a_node))}), or an adaptive "
        f"one ({', '.join(_names(is_adaptive_ode))})"
    )


def is_adaptive_ode(method: object) -> TypeIs[Crossing]:
    """Tell whether the log-density can ride along with a method: one that keeps its errors small by itself."""
    return isinstance(method, Crossing) and not method.stochastic


SOLVERS: Mapping[str, Sampler] = ChainMap(SAMPLERS, {name: AdaptiveODE(name) for name in ADAPTIVE_METHODS})
"""By name: the entries of ``SAMPLERS``, and the adaptive methods of torchdiffeq."""


def _names(fits: Callable[[object], bool]) -> list[str]:
    return [name for name, method in SOLVERS.items() if fits(method)]


def find_levels(
    model: Denoiser,
    method: StepSampler | AugmentedODE,
    steps: int | None,
    grid: GridLike | None,
    ends: tuple[float, float],
) -> list[Level[float]]:
    """Of the nodes, rising in noise; of an adaptive path its two ends."""
    if isinstance(method, AugmentedODE):
        return model.sde.levels(list(ends))
    own = GRID if model.sde.instants is None else CHAIN_GRID
    times = node_times(method, model, usual_steps(steps, grid), own if grid is None else grid, ends)
    if float(times[0]) > float(times[-1]):
        raise ValueError("the likelihood's path runs from the data to the noise: its times must rise")
    return model.sde.levels(times)


def usual_steps(steps: int | None, grid: GridLike | None) -> int | None:
    """The number of steps of a call, ``STEPS`` where it leaves it open; none where the grid is the times themselves."""
    return STEPS if steps is None and by_rule(grid) else steps


def by_rule(grid: GridLike | None) -> bool:
    """Whether a grid knows where any number of steps go."""
    return grid is None or isinstance(grid, str | Grid)
