"""``solve``: the state at one time from that at another, by any solver."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeIs, Unpack

from sdediff.data.entries import kind_of
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.foreign import NOTHING_TO_DIFFERENTIATE, evaluating
from sdediff.grids import GRIDS, Grid, graded
from sdediff.guidance import guided
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, choose, single
from sdediff.options import GridLike, GuidanceOptions, SolveOptions, StepOptions, check_count, check_options, subset
from sdediff.parametrization import check_signal
from sdediff.progress import reporter
from sdediff.samplers import ADAPTIVE, SAMPLERS, SOLVERS, Sampler
from sdediff.samplers.auto import Auto
from sdediff.samplers.stability import check_stability
from sdediff.types import Solution

_MOST_STEPS = 1 << 31


def resolve(solver: str | Sampler, **options: Unpack[StepOptions]) -> Sampler:
    """Return the sampler of a name, with the tolerances given.

    Args:
        solver: a name from ``SAMPLERS``, ``"auto"``, or a sampler.
        **options: the steps, see :class:`~sdediff.options.StepOptions`.

    Raises:
        ValueError: for an unknown name; for both steps and tolerances; for steps, tolerances or a grid where the solver
            has no such thing.
    """
    check_options(options, StepOptions)
    steps, tolerances = options.get("steps"), {"rtol": options.get("rtol"), "atol": options.get("atol")}
    given = {key: value for key, value in tolerances.items() if value is not None}
    if steps is not None and not isinstance(steps, Integral):
        raise ValueError(f"steps must be a whole number, at least 1, not {steps!r}")
    if steps is not None and steps >= _MOST_STEPS:
        raise ValueError(f"steps must be below {_MOST_STEPS:,}")
    if given and steps is not None:
        raise ValueError("give either steps (a fixed grid) or rtol/atol (adaptive), not both")
    name = solver if isinstance(solver, str) else type(solver).__name__
    if isinstance(solver, Sampler):
        sampler = solver
    else:
        replaced = isinstance(solver, str) and given
        sampler = choose(SOLVERS, ADAPTIVE.get(solver, solver) if replaced else solver, "solver")
    if given and not sampler.adaptive:
        choices = [key for key, value in SAMPLERS.items() if value.adaptive or key in ADAPTIVE]
        raise ValueError(f"solver {name!r} takes steps, not rtol/atol; adaptive ones are: {', '.join(choices)}")
    if steps is not None and sampler.adaptive:
        raise ValueError(f"solver {name!r} is adaptive: give rtol/atol, not steps")
    if options.get("grid") is not None and sampler.adaptive:
        raise ValueError("an adaptive solver chooses its own steps: give it no grid")
    if options.get("grid") is not None and isinstance(sampler, Auto):
        raise ValueError("the solver 'auto' chooses its own nodes: give it no grid")
    if len(given) == 1:  # one tolerance given means both
        given = dict.fromkeys(tolerances, next(iter(given.values())))
    return dataclasses.replace(sampler, **given) if given else sampler  # type: ignore[type-var]


def told(model: Denoiser, options: SolveOptions) -> Denoiser:
    """Return the model under the condition, the execution and the guidance of a call."""
    conditional = model.given(options.get("condition")).with_execution(options.get("execution"))
    return guided(conditional, options.get("guidance"), options.get("null"), options.get("guidance_interval"))


def untold(options: SolveOptions) -> SolveOptions:
    """Return the options of a call but for those of condition, execution and guidance."""
    own = {"condition", "execution", *GuidanceOptions.__annotations__}
    return cast("SolveOptions", {name: value for name, value in options.items() if name not in own})


def node_times(
    sampler: Sampler, model: Denoiser, steps: int | None, grid: GridLike | None, interval: tuple[float, float]
) -> Tensor:
    """Return the times of the nodes of a solve, float64 ``(N + 1,)``.

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
        return torch.tensor(interval, dtype=torch.float64)
    chosen = sampler.grid_for(model.prediction) if grid is None else grid
    rule = chosen if isinstance(chosen, Grid) else choose(GRIDS, chosen, "grid")
    count = rule.default_steps(model.sde, sampler.steps) if steps is None else steps
    times = rule(model.sde, count, *interval)
    snapped = model.snap(times)
    # Neither pure noise nor a network with times of its own needs short first steps.
    if model.sde.t_min <= interval[0] < model.sde.t_max and torch.equal(snapped, times):
        return graded(rule, model.sde, count, *interval, sampler.startup_order(count))
    return snapped


def _is_times(grid: GridLike | None) -> TypeIs[Sequence[float] | Tensor]:
    """Return whether a grid is given as the times themselves."""
    return grid is not None and not isinstance(grid, str | Grid)


def _check_ends(times: Tensor, t_from: float | None, t_to: float | None) -> None:
    """Refuse times that contradict ``t_from`` or ``t_to``: the state would be taken for one of another level."""
    for name, wanted, found in (("t_from", t_from, float(times[0])), ("t_to", t_to, float(times[-1]))):
        if wanted is not None and not math.isclose(wanted, found, rel_tol=0.0, abs_tol=1e-9):
            verb, data = ("begin" if name == "t_from" else "end"), (" (the data)" if wanted == 0.0 else "")
            raise ValueError(
                f"the grid's times run from {float(times[0]):g} to {float(times[-1]):g}, but must {verb} at "
                f"{name} = {wanted:g}{data}"
            )


def solve(
    model: Denoiser,
    x: Tensor,
    solver: str | Sampler = "ode",
    *,
    t_from: float | None = None,
    t_to: float | None = None,
    seed: int = 0,
    first: int = 0,
    path: bool = False,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Solve for the state at one time, given the state at another.

    Gradients flow from the result to ``x`` where it requires them, and then to the model's parameters too; to these
    alone with ``differentiable=True``. Every forward is kept in memory for them.

    Args:
        model: a denoiser with its process.
        x: the state ``(B, *shape)`` at ``t_from``, a float tensor, in the model's coordinates; one in half precision is
            solved in single precision and comes back in its own.
        solver: a name from ``SAMPLERS`` or a sampler.
        t_from: time of ``x``; ``t_max`` by default.
        t_to: time of the result; ``t_min`` by default, 0 for the data themselves. Deterministic solvers go both ways.
        seed: seed of the solver's noise; sample k's noise depends on ``(seed, first + k, step)`` alone.
        first: index of the batch's first sample.
        path: whether to return the states at all nodes.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``progress``, ``condition``, ``execution``, ``guidance``,
            ``null``, ``guidance_interval``, ``differentiable`` and ``keep_mode``, see
            :class:`~sdediff.options.SolveOptions`.

    Returns:
        A :class:`~sdediff.types.Solution`: ``x``, ``nfe``, ``times``, ``path``.

    Raises:
        ValueError: for a state that is not a finite float tensor, options that are unknown or do not go together, or
            a named grid whose steps are so long that the method would take even Gaussian data off.
        FloatingPointError: if the result is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> x = sdediff.solve(model, torch.zeros(1, 2), "ddim", steps=50, t_to=0.0).x
    >>> x.round(decimals=1)
    tensor([[2., 0.]])
    """
    check_denoiser(model)
    check_options(options, SolveOptions)
    check_state(x)
    check_item(model, x.shape[1:])
    model = told(model, options)
    flows = tracks_gradients(model, x, options.get("differentiable", False))
    sampler, grid = resolve(solver, **subset(options, StepOptions)), options.get("grid")
    sde = model.sde
    interval = (one_time("t_from", t_from, sde.t_max), one_time("t_to", t_to, sde.t_min))
    with evaluating(model, options.get("keep_mode", False)):
        sampler = sampler.for_model(model, x.shape, options.get("steps"), interval)
    times = node_times(sampler, model, options.get("steps"), grid, interval)
    if sampler.stochastic and bool((times.diff() >= 0.0).any()):
        raise ValueError("stochastic solvers only go from noise to data: t_from must be after t_to")
    check_signal(model.prediction, sde, float(times.max()))
    if _is_times(grid):
        _check_ends(times, t_from, t_to)
    elif grid is not None:  # who gives the times themselves has chosen them for the solver
        check_stability(sampler, sde, times)
    y = single(x)  # steps add up what half precision would lose
    noise = NoiseSource(seed, x.shape, first=first, dtype=y.dtype, device=x.device)
    report = reporter(options.get("progress"), "solving", "step")
    with evaluating(model, options.get("keep_mode", False)), torch.set_grad_enabled(flows):
        found = sampler.sample(model, sde, y, times, noise, path=path, progress=report)
        return found._replace(x=found.x.to(x.dtype), path=None if found.path is None else found.path.to(x.dtype))


def one_time(name: str, t: float | None, default: float) -> float:
    """Return one time as a float.

    Raises:
        ValueError: for anything else than one number.
    """
    try:
        return default if t is None else float(t)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        came = f"a tensor {tuple(t.shape)}" if isinstance(t, Tensor) else repr(t)[:80]
        raise ValueError(f"{name} must be one number, the same for the whole batch, not {came}") from None


def tracks_gradients(model: Denoiser, x: Tensor | None, differentiable: bool) -> bool:
    """Return whether gradients flow to a state, or to the parameters of a model.

    Raises:
        ValueError: if they are asked for and nothing requires a gradient.
    """
    to_state = x is not None and x.requires_grad
    if differentiable and not to_state and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(NOTHING_TO_DIFFERENTIATE)
    return torch.is_grad_enabled() and (to_state or differentiable)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a batch, ``(n, *shape)``.

    Raises:
        ValueError: for anything but whole numbers, or no items.
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) else ()
    if not sizes or not all(isinstance(size, Integral) for size in sizes):
        raise ValueError(f"the shape must be (n, *item) in whole numbers, as (64, 2) for 64 points, not {shape!r}")
    check_count(f"the number of items, the first in {sizes},", sizes[0])
    return tuple(int(size) for size in sizes)


def check_item(model: Denoiser, item: Sequence[int]) -> None:
    """Refuse the shape of an item that is not the model's.

    Raises:
        ValueError: naming both shapes.
    """
    if model.data is not None and tuple(item) != tuple(model.data.shape):
        raise ValueError(f"the model's items have shape {tuple(model.data.shape)}, not {tuple(item)}")


def check_state(x: Tensor) -> None:
    """Refuse anything but a batch of finite float states.

    Raises:
        ValueError: naming the type and shape.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        came = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        hint = ""
        if isinstance(x, np.ndarray):
            came = f"a NumPy array of {kind_of(x.dtype)}"
            hint = "; torch.from_numpy makes a tensor of it" if x.dtype.kind in "biuf" else ""
        if isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()):
            hint = "; levels become the model's values by sdediff.data.to_values(x, model.data)"
        raise ValueError(f"a state must be a float tensor (B, *shape), not {came}{hint}")
    if x.numel() == 0:
        raise ValueError(f"a state must be a non-empty batch (B, *shape), not {tuple(x.shape)}")
    if not all_finite(x):
        raise ValueError("the state holds NaN or infinity")
