"""``solve``: a state from one time to another by any solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor
from typing_extensions import TypeIs

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.foreign import NOTHING_TO_DIFFERENTIATE, evaluating
from sdediff.grids import GRIDS, Grid, graded
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, choose, single
from sdediff.samplers import ADAPTIVE, SAMPLERS, Sampler
from sdediff.samplers.base import Progress
from sdediff.types import Solution

GridLike = str | Grid | Sequence[float] | Tensor


def resolve(
    solver: str | Sampler,
    *,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: GridLike | None = None,
) -> Sampler:
    """The sampler that a name means, with the tolerances given.

    Raises:
        ValueError: for an unknown name; for both steps and tolerances; for steps, tolerances or a grid where the solver
            has no such thing.
    """
    wants_adaptive = rtol is not None or atol is not None
    if steps is not None and not isinstance(steps, Integral):
        raise ValueError(f"steps must be a whole number, at least 1, not {steps}")
    if wants_adaptive and steps is not None:
        raise ValueError("give either steps (a fixed grid) or rtol/atol (adaptive), not both")
    name = solver if isinstance(solver, str) else type(solver).__name__
    if isinstance(solver, str):
        sampler = choose(SAMPLERS, ADAPTIVE.get(solver, solver) if wants_adaptive else solver, "solver")
    else:
        sampler = solver
    if wants_adaptive and not sampler.adaptive:
        choices = [key for key, value in SAMPLERS.items() if value.adaptive or key in ADAPTIVE]
        raise ValueError(f"solver {name!r} takes steps, not rtol/atol; adaptive ones are: {', '.join(choices)}")
    if steps is not None and sampler.adaptive:
        raise ValueError(f"solver {name!r} is adaptive: give rtol/atol, not steps")
    if grid is not None and sampler.adaptive:
        raise ValueError("an adaptive solver chooses its own steps: give it no grid")
    given = {key: value for key, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if len(given) == 1:  # one tolerance given means both
        value = next(iter(given.values()))
        given = {"rtol": value, "atol": value}
    return dataclasses.replace(sampler, **given) if given else sampler  # type: ignore[type-var]


def place(
    sampler: Sampler, model: Denoiser, steps: int | None, grid: GridLike | None, ends: tuple[float, float]
) -> Tensor:
    """The times of a solve, float64 ``(N + 1,)``.

    Raises:
        ValueError: for times that do not run one way or contradict ``steps``.
    """
    if _is_times(grid):
        times = torch.as_tensor(grid, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2 or not bool(torch.isfinite(times).all()):
            raise ValueError("a grid given as times needs at least two finite numbers in a row")
        if not bool((times.diff() > 0.0).all() or (times.diff() < 0.0).all()):
            raise ValueError("a grid given as times must rise or fall throughout")
        if steps is not None and steps != len(times) - 1:
            raise ValueError(f"the grid has {len(times) - 1} steps, but steps = {steps} was given")
        return times
    if sampler.adaptive:
        return torch.tensor(ends, dtype=torch.float64)
    chosen = sampler.grid if grid is None else grid
    rule = chosen if isinstance(chosen, Grid) else choose(GRIDS, chosen, "grid")
    count = rule.default_steps(model.sde, sampler.steps) if steps is None else steps
    times = rule(model.sde, count, *ends)
    snapped = model.snap(times)
    # Pure noise needs no start, and a network that is best asked at times of its own gets none.
    if model.sde.t_min <= ends[0] < model.sde.t_max and torch.equal(snapped, times):
        return graded(rule, model.sde, count, *ends, sampler.startup_order(count))
    return snapped


def _is_times(grid: GridLike | None) -> TypeIs[Sequence[float] | Tensor]:
    """Whether a grid is given as the times themselves."""
    return grid is not None and not isinstance(grid, str | Grid)


def _check_ends(times: Tensor, t_from: float | None, t_to: float | None) -> None:
    """Refuse times that start or end elsewhere than asked: the state would be taken for one of another level."""
    for name, wanted, there in (("t_from", t_from, float(times[0])), ("t_to", t_to, float(times[-1]))):
        if wanted is not None and not math.isclose(wanted, there, rel_tol=0.0, abs_tol=1e-9):
            raise ValueError(
                f"the grid's times run from {float(times[0]):g} to {float(times[-1]):g}: {name} is {wanted:g}"
            )


def solve(
    model: Denoiser,
    x: Tensor,
    solver: str | Sampler = "ode",
    *,
    t_from: float | None = None,
    t_to: float | None = None,
    steps: int | None = None,
    grid: GridLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    first: int = 0,
    path: bool = False,
    progress: Progress | None = None,
    condition: ConditionLike = None,
    differentiable: bool = False,
    keep_mode: bool = False,
) -> Solution:
    """Take a state from one time to another.

    Gradients flow from the result to ``x`` where it requires them, and then to the model's parameters too; to these
    alone with ``differentiable=True``. Every forward is kept in memory for them.

    Args:
        model: a denoiser with its process.
        x: the state ``(B, *shape)`` at ``t_from``, a float tensor, in the model's coordinates; one in half precision is
            solved in single precision and comes back in its own.
        solver: a name from ``SAMPLERS`` or a sampler.
        t_from: time of ``x``; ``t_max`` by default.
        t_to: time of the result; ``t_min`` by default, 0 for the data themselves. Deterministic solvers go both ways.
        steps: number of intervals of a fixed grid; the solver's default if neither this nor a tolerance is given.
        grid: a name from ``GRIDS``, a grid, or the times themselves; the solver's default if not given. Where a solve
            by a multistep method starts inside the process's interval, a grid's first step is divided into a few short
            ones out of the same number, so that the method's order holds (:func:`~sdediff.grids.graded`).
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance; one tolerance given alone stands for both.
        seed: of the solver's noise; sample k's noise depends on ``(seed, first + k, step)`` alone.
        first: index of the batch's first sample.
        path: whether to return the states at all nodes.
        progress: called as ``progress(done, total)``.
        condition: what the network is told about each item, a tensor or a tuple or dict of tensors: one row an item, or
            one for all; the network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
        differentiable: let gradients flow to the model's parameters although ``x`` requires none.
        keep_mode: leave the network in its own mode, dropout and batch statistics included, rather than putting it into
            evaluation mode for the call.

    Returns:
        A :class:`~sdediff.types.Solution`: ``x``, ``nfe``, ``times``, ``path``.

    Raises:
        ValueError: for a state that is not a finite float tensor, or options that are unknown or do not go together.
        FloatingPointError: if the result is not finite.
    """
    check_state(x)
    check_item(model, x.shape[1:])
    model = model.given(condition)
    flows = tracks_gradients(model, x, differentiable)
    sampler = resolve(solver, steps=steps, rtol=rtol, atol=atol, grid=grid)
    sde = model.sde
    ends = (_one_time("t_from", t_from, sde.t_max), _one_time("t_to", t_to, sde.t_min))
    times = place(sampler, model, steps, grid, ends)
    if _is_times(grid):
        _check_ends(times, t_from, t_to)
    if sampler.stochastic and bool((times.diff() >= 0.0).any()):
        raise ValueError("stochastic solvers only go from noise to data: t_from must be after t_to")
    y = single(x)  # steps add up what half precision would lose
    noise = NoiseSource(seed, x.shape, first=first, dtype=y.dtype, device=x.device)
    with evaluating(model, keep_mode), torch.set_grad_enabled(flows):
        found = sampler.sample(model, sde, y, times, noise, path=path, progress=progress)
        return found._replace(x=found.x.to(x.dtype), path=None if found.path is None else found.path.to(x.dtype))


def _one_time(name: str, t: float | None, usual: float) -> float:
    """Return the one time of a batch.

    Raises:
        ValueError: for anything else than one number.
    """
    try:
        return usual if t is None else float(t)
    except (TypeError, ValueError, RuntimeError):
        came = f"a tensor {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)
        raise ValueError(f"{name} must be one number, the same for the whole batch, not {came}") from None


def tracks_gradients(model: Denoiser, x: Tensor | None, differentiable: bool) -> bool:
    """Whether gradients are to flow to a state, or to the parameters of a model.

    Raises:
        ValueError: if they are asked for and there is nothing that they could flow to.
    """
    to_state = x is not None and x.requires_grad
    if differentiable and not to_state and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(NOTHING_TO_DIFFERENTIATE)
    return torch.is_grad_enabled() and (to_state or differentiable)


def check_item(model: Denoiser, item: Sequence[int]) -> None:
    """Refuse the shape of an item that is not the model's.

    Raises:
        ValueError: naming both.
    """
    if model.data is not None and tuple(item) != tuple(model.data.shape):
        raise ValueError(f"the model's items have shape {tuple(model.data.shape)}, not {tuple(item)}")


def check_state(x: Tensor) -> None:
    """Refuse what is not a batch of finite float states.

    Raises:
        ValueError: naming what came.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        came = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        hint = ""
        if isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()):
            hint = "; levels become the model's values by sdediff.data.to_values(x, model.data)"
        raise ValueError(f"a state must be a float tensor (B, *shape), not {came}{hint}")
    if x.numel() == 0:
        raise ValueError(f"a state must be a non-empty batch (B, *shape), not {tuple(x.shape)}")
    if not all_finite(x):
        raise ValueError("the state holds NaN or infinity")
