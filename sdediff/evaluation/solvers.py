r"""Errors of several solvers against their numbers of forwards, on one model from the same starts.

The reference is the probability-flow ODE solved to a small tolerance. A deterministic solver is compared start by
start, a stochastic one in distribution: its samples are compared with the reference's by the energy distance (Székely &
Rizzo 2013), ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` as a share of ``2 E|X - Y|``: 0 for equal laws, at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.evaluation.comparison import Comparison, ComparisonRow, ReferenceSolve
from sdediff.evaluation.distances import Errors, energy_distance
from sdediff.foreign import evaluating
from sdediff.gaussian import prior_moments
from sdediff.noise import NoiseSource
from sdediff.numerics import widest
from sdediff.progress import ProgressLike, reporter
from sdediff.samplers import Sampler
from sdediff.samplers.base import Progress
from sdediff.sampling import check_shape, resolve, solve
from sdediff.types import Solution

SOLVERS = ("ode", "ddim", "dpm++2m", "unipc3", "heun", "adaptive", "dopri5")
"""Default solvers of a comparison: the library's own and the best known."""
JUDGE = "dopri5"
"""Solver of the reference, of another family than most compared solvers, so that no error is common to both."""
NFE_BUDGETS = (5, 8, 10, 15, 20, 30, 50)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
Solvers = Sequence[str] | Mapping[str, str | Sampler | Callable[[int], Sampler | None]]
"""Names of ``SAMPLERS``; or any names, each with one of those, a sampler, or a function from the number of steps to a
sampler of as many forwards, or ``None`` where there is none."""
_FIRST = 1_000_000  # index of the first start, apart from those of tuning, whatever the seed
_GUESS = 150  # estimated forwards of an adaptive solve, for progress only


class _Task(NamedTuple):
    """The settings of one row."""

    solver: str
    sampler: Sampler
    budget: int | None = None
    rtol: float | None = None
    steps: int | None = None

    @property
    def cost(self) -> int:
        return _GUESS if self.budget is None else self.budget


def compare(
    model: Denoiser,
    shape: Sequence[int],
    solvers: Solvers = SOLVERS,
    *,
    forwards: Sequence[int] = NFE_BUDGETS,
    rtols: Sequence[float] = TOLERANCES,
    tolerance: float = 1e-6,
    seed: int = 0,
    prior: str = "moments",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: ProgressLike = None,
    condition: ConditionLike = None,
    report: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Compare several solvers, from noise to data, with an accurate solve of the probability-flow ODE.

    States are in double precision where the device has it, so that errors are those of the solvers and not rounding;
    the network keeps its own.

    Args:
        model: denoiser with its process.
        shape: number of starts and shape of each, ``(n, *shape)``, as for :func:`~sdediff.generation.sample`.
        solvers: names from ``SAMPLERS``, or a mapping; see ``Solvers``.
        forwards: budgets of the solvers on grids: each takes the largest number of steps within them.
        rtols: tolerances of the adaptive solvers.
        tolerance: relative tolerance of the reference.
        seed: seed of the starts and of the stochastic solvers' noise.
        prior: distribution of the starts; see :func:`~sdediff.generation.sample`.
        batch_size: number of starts solved at a time; all by default.
        device: device of the states; the network's by default.
        progress: true for a bar, or a function called as ``progress(done, total)``; in forwards, roughly.
        condition: condition of each start, one row a start or one for all, as in :func:`~sdediff.sampling.solve`.
        report: function called after every row with the comparison so far.

    Returns:
        A :class:`Comparison`: ``rows``, ``reference``, ``starts``.

    Raises:
        ValueError: for options that are unknown or do not go together, or fewer than three starts.
        FloatingPointError: if the reference is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> [row.nfe for row in sdediff.compare(model, (8, 2), ["ddim"], forwards=[5, 10]).rows]
    [5.0, 10.0]
    """
    shape = check_shape(shape)
    if shape[0] < 3:
        raise ValueError(f"a comparison needs at least 3 starts, not {shape[0]}")
    if isinstance(solvers, str) or isinstance(forwards, int):
        raise ValueError('solvers and forwards are lists, as ["ode", "auto"] and [5, 10]')
    if any(budget < 1 for budget in forwards):
        raise ValueError(f"forwards must be at least 1, not {', '.join(map(str, forwards))}")
    if not tolerance > 0.0 or any(not rtol > 0.0 for rtol in rtols):
        raise ValueError(f"tolerances must be positive, not {tolerance:g} and {', '.join(map(str, rtols))}")
    entries = solvers if isinstance(solvers, Mapping) else {name: name for name in solvers}
    tasks = [task for name, entry in entries.items() for task in _tasks(name, entry, forwards, rtols)]
    check_denoiser(model)
    model = model.given(condition)
    model.check_batch(shape[0])
    x = _starts(model, shape, seed, prior, device)
    batches = _Batches(model, x, batch_size, 2 * _GUESS + sum(task.cost for task in tasks), progress)
    with torch.no_grad(), evaluating(model):
        truth, nfe = batches.run(partial(_solve_reference, tolerance), _GUESS)
        shorter, _ = batches.run(partial(_solve_shorter, 10.0 * tolerance), _GUESS)
        result = Comparison((), ReferenceSolve(tolerance, nfe, *Errors.of(shorter, truth)), shape[0])
        for task in tasks:
            result = result._replace(rows=(*result.rows, _row(task, batches, truth, seed)))
            if report is not None:
                report(result)
    return result


_BatchSolve = Callable[[Denoiser, Tensor, int, Progress], Solution]


class _Batches:
    """The starts in batches, with the progress over all solves."""

    def __init__(self, model: Denoiser, x: Tensor, size: int | None, cost: int, progress: ProgressLike) -> None:
        if size is not None and size < 1:
            raise ValueError(f"the batch size must be at least 1, not {size}")
        size = len(x) if size is None else size
        begins = range(0, len(x), size)
        self.batches = [(model.part(first, size, len(x)), x[first : first + size]) for first in begins]
        self.done, self.total = 0, cost * len(self.batches)
        self.progress = reporter(progress, "comparing", "forward")

    def run(self, solve_batch: _BatchSolve, cost: int) -> tuple[Tensor, float]:
        """Return the results of all starts, and the NFE of a sample; ``solve_batch`` solves and reports on a batch."""
        results, items, nfe, before = list[Tensor](), 0, 0, self.done
        try:
            for model, x in self.batches:

                def progress(i: int, of: int, start: int = before + cost * len(results)) -> None:
                    self.report(start + (cost * i // of if of > 0 else min(i, cost)))

                solution = solve_batch(model, x, items, progress)
                results.append(solution.x)
                items, nfe = items + len(x), nfe + solution.nfe * len(x)
        finally:  # a solve that fails counts as done, too
            self.done = before + cost * len(self.batches)
        self.report(self.done)
        return torch.cat(results), nfe / items

    def report(self, done: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(done, self.total)


def _tasks(
    name: str,
    entry: str | Sampler | Callable[[int], Sampler | None],
    forwards: Sequence[int],
    rtols: Sequence[float],
) -> Iterator[_Task]:
    """Yield the settings of a solver's rows by rising cost."""
    if callable(entry):
        samplers = ((budget, entry(budget)) for budget in sorted(forwards))
        yield from (_Task(name, sampler, budget, steps=budget) for budget, sampler in samplers if sampler is not None)
        return
    sampler = resolve(entry)
    if sampler.adaptive:
        yield from (_Task(name, sampler, rtol=rtol) for rtol in sorted(rtols, reverse=True))
        return
    for budget in sorted(forwards):
        steps = _most_steps(sampler, budget)
        if steps > 0:
            yield _Task(name, sampler, budget, steps=steps)


def _most_steps(sampler: Sampler, budget: int) -> int:
    """Return the largest number of steps, from noise to data, within a budget of forwards; 0 if one step costs more."""
    steps = 0
    while (nfe := sampler.nfe(steps + 1)) is not None and nfe <= budget:
        steps += 1
    return steps


def _starts(model: Denoiser, shape: Sequence[int], seed: int, prior: str, device: torch.device | str | None) -> Tensor:
    moments = prior_moments(prior, model.moments)
    device = torch.device(model.device if device is None else device)
    dtype = widest(device)
    noise = NoiseSource(seed, shape, first=_FIRST, dtype=dtype, device=device)
    return model.sde.prior_sample(shape, moments=moments, noise=noise)


def _solve_reference(rtol: float, model: Denoiser, x: Tensor, _: int, report: Progress) -> Solution:
    """Solve the probability-flow ODE adaptively."""
    return solve(model, x, JUDGE, rtol=rtol, t_to=0.0, progress=report)


def _solve_shorter(rtol: float, model: Denoiser, x: Tensor, _: int, report: Progress) -> Solution:
    """Solve adaptively to twice ``t_min``, and denoise there."""
    end = 2.0 * model.sde.t_min
    solution = solve(model, x, JUDGE, rtol=rtol, t_to=end, progress=report)
    return solution._replace(x=model.denoise(solution.x, end), nfe=solution.nfe + 1)


def _row(task: _Task, batches: _Batches, truth: Tensor, seed: int) -> ComparisonRow:
    """Return the row of a task, by its solves and their errors."""

    def solve_batch(model: Denoiser, x: Tensor, first: int, report: Progress) -> Solution:
        options = {"steps": task.steps, "rtol": task.rtol, "progress": report}
        return solve(model, x, task.sampler, t_to=0.0, seed=seed, first=_FIRST + first, **options)  # type: ignore[arg-type]

    row = ComparisonRow(task.solver, task.budget, task.rtol, task.steps, math.nan, None, None, math.inf, math.inf)
    pathwise = not task.sampler.stochastic
    try:
        x, nfe = batches.run(solve_batch, task.cost)
    except FloatingPointError:  # the other solvers are still compared
        return row._replace(rms=math.inf, median=math.inf) if pathwise else row
    distance, uncertainty = energy_distance(x, truth)
    row = row._replace(nfe=nfe, distance=distance, distance_error=uncertainty)
    if not pathwise:
        return row
    return row._replace(**Errors.of(x, truth)._asdict())
