"""The interval, the nodes and the solver of a likelihood's path."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping

from typing_extensions import TypeIs

from sdediff.denoiser import Denoiser
from sdediff.grids import Grid, LogSNR, Reference
from sdediff.integrators.torchdiffeq import ADAPTIVE_METHODS
from sdediff.likelihood.flow.adaptive_ode import AugmentedODE, with_tolerances
from sdediff.likelihood.flow.path import evaluates_once_per_node
from sdediff.numerics import choose
from sdediff.options import GridLike
from sdediff.parametrization import check_signal
from sdediff.samplers import AUTO, SAMPLERS, SOLVERS, Sampler
from sdediff.samplers.base import StepSampler
from sdediff.samplers.external import AdaptiveODE
from sdediff.samplers.relative import Relative
from sdediff.samplers.tolerance import AdaptiveSampler
from sdediff.sampling import node_times
from sdediff.sde import SDE
from sdediff.types import Level

DEFAULT_STEPS = 40
"""Number of steps of the default path: 41 forwards."""

DEFAULT_SOLVER = Relative(4, correct_from=0, gradual=False)
"""Solver of the path towards the noise, where lower orders are better than towards the data."""
GRID, CHAIN_GRID = Reference(3.5), LogSNR()
"""Grids of the path. Denser near the data than for sampling: there the fields of trained networks are rough, and paths
start there. Fields of networks trained on a chain have a kink at every instant, and the first instants cover most noise
levels: even steps in log-SNR resolve them all."""


def find_interval(sde: SDE, t_from: float | None, t_to: float | None) -> tuple[float, float]:
    """Return the times between which the path is solved."""
    first, last = sde.t_data if t_from is None else t_from, sde.t_max if t_to is None else t_to
    if not sde.t_min <= first < last <= sde.t_max:
        raise ValueError(
            f"the path needs {sde.t_min:g} <= t_from < t_to <= {sde.t_max:g}, not t_from = {first:g}, t_to = {last:g}"
        )
    return first, last


def find_method(
    solver: str | Sampler | None, steps: int | None, rtol: float | None, atol: float | None, grid: GridLike | None
) -> StepSampler | AugmentedODE:
    """Return the solver of the path.

    Raises:
        ValueError: for an unsuitable solver, naming the suitable ones; for options that do not go together.
    """
    tolerances = [value for value in (rtol, atol) if value is not None]
    if solver is None:
        method: Sampler = AdaptiveODE() if tolerances else DEFAULT_SOLVER
    else:
        method = _named(solver) if isinstance(solver, str) else solver
    if is_adaptive_ode(method):
        if steps is not None or grid is not None:
            raise ValueError("give either steps and a grid, or rtol/atol (adaptive), not both")
        if not all(value > 0.0 for value in tolerances):
            raise ValueError(f"rtol and atol must be positive, not {tolerances[0]} and {tolerances[-1]}")
        return AugmentedODE(with_tolerances(method, tolerances[0], tolerances[-1]) if tolerances else method)
    if tolerances:
        raise ValueError(
            f"rtol and atol need one of the adaptive solvers {', '.join(_solver_names(is_adaptive_ode))}, not {solver}"
        )
    if evaluates_once_per_node(method):
        return method
    raise ValueError(
        f"the likelihood's path cannot be solved by {solver if isinstance(solver, str) else type(method).__name__}: it "
        "needs a deterministic solver of one forward a step "
        f"({', '.join(_solver_names(evaluates_once_per_node))}), or an adaptive one "
        f"({', '.join(_solver_names(is_adaptive_ode))})"
    )


def is_adaptive_ode(method: object) -> TypeIs[AdaptiveSampler]:
    """Tell whether a method is an adaptive ODE solver, which can integrate the log-density too."""
    return isinstance(method, AdaptiveSampler) and not method.stochastic


PATH_SOLVERS: Mapping[str, Sampler] = ChainMap(
    SAMPLERS, {name: AdaptiveODE(name) for name in ADAPTIVE_METHODS}, {AUTO: SOLVERS[AUTO]}
)
"""Solvers by name: the entries of ``SAMPLERS``, the adaptive methods of torchdiffeq, and ``"auto"``, to be refused with
those that work."""


def _named(name: str) -> Sampler:
    """Return a solver by name; an unknown one is refused with those that work."""
    if name in PATH_SOLVERS:
        return PATH_SOLVERS[name]
    suitable = _solver_names(lambda method: evaluates_once_per_node(method) or is_adaptive_ode(method))
    return choose({each: PATH_SOLVERS[each] for each in suitable}, name, "solver of the likelihood's path")


def _solver_names(suits: Callable[[object], bool]) -> list[str]:
    return [name for name, method in PATH_SOLVERS.items() if suits(method)]


def find_levels(
    model: Denoiser,
    method: StepSampler | AugmentedODE,
    steps: int | None,
    grid: GridLike | None,
    interval: tuple[float, float],
) -> list[Level[float]]:
    """Return the levels of the nodes, rising in noise; for an adaptive solver the two end levels."""
    check_signal(model.prediction, model.sde, interval[1])
    if isinstance(method, AugmentedODE):
        return model.sde.levels(list(interval))
    default = GRID if model.sde.instants is None else CHAIN_GRID
    times = node_times(method, model, path_steps(steps, grid), default if grid is None else grid, interval)
    if float(times[0]) > float(times[-1]):
        raise ValueError("the likelihood's path runs from the data to the noise: its times must rise")
    return model.sde.levels(times)


def path_steps(steps: int | None, grid: GridLike | None) -> int | None:
    """Return the number of steps, by default ``DEFAULT_STEPS``; ``None`` where the grid is the times themselves."""
    return DEFAULT_STEPS if steps is None and takes_any_steps(grid) else steps


def takes_any_steps(grid: GridLike | None) -> bool:
    """Tell whether a grid is a rule for any number of steps, not the times themselves."""
    return grid is None or isinstance(grid, str | Grid)
