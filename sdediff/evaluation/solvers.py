r"""How good is which solver at how many forwards: errors of several solvers on one model, from the same starts.

The truth is the probability-flow ODE solved tightly. A deterministic solver is judged start by start. A stochastic one
has no such truth, only a law: its samples are judged against the tight solve's by the energy distance (Székely & Rizzo
2013), ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` as a share of ``2 E|X - Y|``: 0 for equal laws, at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.evaluation.distances import energy_distance, errors
from sdediff.foreign import evaluating
from sdediff.gaussian import prior_moments
from sdediff.noise import NoiseSource
from sdediff.samplers import Sampler
from sdediff.samplers.base import Progress
from sdediff.sampling import resolve, solve
from sdediff.types import Solution, brief

SOLVERS = ("ode", "ddim", "dpm++2m", "unipc3", "heun", "adaptive", "dopri5")
"""The defaults and those that most know."""
JUDGE = "dopri5"
"""The reference's solver: of another family than most that it judges, so that no error is shared."""
FORWARDS = (5, 8, 10, 15, 20, 30, 50)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
Solvers = Sequence[str] | Mapping[str, str | Sampler | Callable[[int], Sampler | None]]
"""Names of ``SAMPLERS``; or any names, each with one of those, a sampler, or a function from the number of steps to a
sampler that costs as many forwards, or ``None`` where there is none of so many."""
_FIRST = 1_000_000  # index of the first start: none that a solver was tuned on, whatever the seed
_GUESS = 150  # forwards of an adaptive solve, for the progress alone


class Row(NamedTuple):
    """One solver at one cost.

    Attributes:
        solver: its name.
        budget: forwards that it might spend; ``None`` for an adaptive solver.
        rtol: tolerance of an adaptive solver, else ``None``.
        steps: of its grid; ``None`` for an adaptive solver.
        nfe: forwards that it spent (of an adaptive solver: a sample, on average over the batches).
        rms: root mean square, over starts and entries, of the distance from the reference; ``None`` for a stochastic
            solver, infinite where the solve did not stay finite.
        median: over the starts, of the root mean square over the entries.
        distance: energy distance of its samples from the reference's, a share in [0, 1]; the estimate is unbiased and
            may therefore be negative.
        distance_error: its standard error.
    """

    solver: str
    budget: int | None
    rtol: float | None
    steps: int | None
    nfe: float
    rms: float | None
    median: float | None
    distance: float
    distance_error: float


class Reference(NamedTuple):
    """The tight solve.

    Attributes:
        rtol: its tolerance.
        nfe: its forwards, a sample.
        rms: its own error, estimated by its distance from a solve at ten times the tolerance that leaves the ODE for
            the data at ``2 t_min`` instead of ``t_min``.
        median: the same as the median over the starts.
    """

    rtol: float
    nfe: float
    rms: float
    median: float


class Comparison(NamedTuple):
    """What :func:`compare` found.

    Attributes:
        rows: solvers in the order asked for, each from cheap to dear.
        reference: the tight solve.
        starts: their number.

    >>> sdediff.Comparison._fields
    ('rows', 'reference', 'starts')
    """

    rows: tuple[Row, ...]
    reference: Reference
    starts: int

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)


class _Job(NamedTuple):
    """One row's work."""

    solver: str
    sampler: Sampler
    budget: int | None = None
    rtol: float | None = None
    steps: int | None = None

    @property
    def weight(self) -> int:
        return _GUESS if self.budget is None else self.budget


def compare(
    model: Denoiser,
    shape: Sequence[int],
    solvers: Solvers = SOLVERS,
    *,
    forwards: Sequence[int] = FORWARDS,
    rtols: Sequence[float] = TOLERANCES,
    tolerance: float = 1e-6,
    seed: int = 0,
    prior: str = "moments",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    condition: ConditionLike = None,
    report: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Errors of several solvers, from noise to data, against a tight solve of the probability-flow ODE.

    States are in double precision where the device has it, so that the solvers' errors show and not the rounding; the
    network keeps its own.

    Args:
        model: a denoiser with its process.
        shape: ``(n, *shape)``, as for :func:`~sdediff.generation.sample`: the number of starts and the shape of each.
        solvers: names from ``SAMPLERS``, or a mapping; see ``Solvers``.
        forwards: budgets of the solvers on grids: each takes as many steps as it can afford.
        rtols: tolerances of the adaptive solvers.
        tolerance: of the reference.
        seed: of the starts and of the stochastic solvers' noise.
        prior: of the starts; see :func:`~sdediff.generation.sample`.
        batch_size: starts solved at a time; all by default.
        device: of the states; the network's by default.
        progress: called as ``progress(done, total)``, in forwards, roughly.
        condition: what the network is told about each start, a tensor or a tuple or dict of tensors: one row a start,
            or one for all; the network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
        report: called after every row with what is found so far.

    Returns:
        A :class:`Comparison`: ``rows``, ``reference``, ``starts``.

    Raises:
        ValueError: for options that are unknown or do not go together, or fewer than three starts.
        FloatingPointError: if the reference is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> [row.nfe for row in sdediff.compare(model, (8, 2), ["ddim"], forwards=[5, 10]).rows]
    [5.0, 10.0]
    """
    if shape[0] < 3:
        raise ValueError(f"a comparison needs at least 3 starts, not {shape[0]}")
    if any(budget < 1 for budget in forwards):
        raise ValueError(f"forwards must be at least 1, not {', '.join(map(str, forwards))}")
    if not tolerance > 0.0 or any(not rtol > 0.0 for rtol in rtols):
        raise ValueError(f"tolerances must be positive, not {tolerance:g} and {', '.join(map(str, rtols))}")
    entries = solvers if isinstance(solvers, Mapping) else {name: name for name in solvers}
    jobs = [job for name, entry in entries.items() for job in _jobs(name, entry, forwards, rtols)]
    model = model.given(condition)
    model.check_batch(shape[0])
    x = _starts(model, shape, seed, prior, device)
    batches = _Batches(model, x, batch_size, 2 * _GUESS + sum(job.weight for job in jobs), progress)
    with torch.no_grad(), evaluating(model):
        truth, nfe = batches.run(partial(_tight, tolerance), _GUESS)
        early, _ = batches.run(partial(_early, 10.0 * tolerance), _GUESS)
        result = Comparison((), Reference(tolerance, nfe, *errors(early, truth)), shape[0])
        for job in jobs:
            result = result._replace(rows=(*result.rows, _row(job, batches, truth, seed)))
            if report is not None:
                report(result)
    return result


_Work = Callable[[Denoiser, Tensor, int, Progress], Solution]


class _Batches:
    """The starts, some at a time, and how much of the whole work is done."""

    def __init__(self, model: Denoiser, x: Tensor, size: int | None, weight: int, progress: Progress | None) -> None:
        if size is not None and size < 1:
            raise ValueError(f"the batch size must be at least 1, not {size}")
        size = len(x) if size is None else size
        begins = range(0, len(x), size)
        self.parts = [(model.part(first, size, len(x)), x[first : first + size]) for first in begins]
        self.done, self.total, self.progress = 0, weight * len(self.parts), progress

    def run(self, work: _Work, weight: int) -> tuple[Tensor, float]:
        """Return the ends of all starts, and forwards a sample.

        ``work`` gets the denoiser of a batch, the batch, its first index, and whom to report to.
        """
        ends, items, forwards, before = list[Tensor](), 0, 0, self.done
        try:
            for model, part in self.parts:

                def report(i: int, of: int, start: int = before + weight * len(ends)) -> None:
                    self.tell(start + (weight * i // of if of > 0 else min(i, weight)))

                solution = work(model, part, items, report)
                ends.append(solution.x)
                items, forwards = items + len(part), forwards + solution.nfe * len(part)
        finally:  # a solve that fails is done with, too
            self.done = before + weight * len(self.parts)
        self.tell(self.done)
        return torch.cat(ends), forwards / items

    def tell(self, done: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(done, self.total)


def _jobs(
    name: str,
    entry: str | Sampler | Callable[[int], Sampler | None],
    forwards: Sequence[int],
    rtols: Sequence[float],
) -> Iterator[_Job]:
    """A solver's rows, from cheap to dear."""
    if callable(entry):
        found = ((budget, entry(budget)) for budget in sorted(forwards))
        yield from (_Job(name, sampler, budget, steps=budget) for budget, sampler in found if sampler is not None)
        return
    sampler = resolve(entry)
    if sampler.adaptive:
        yield from (_Job(name, sampler, rtol=rtol) for rtol in sorted(rtols, reverse=True))
        return
    for budget in sorted(forwards):
        steps = _affordable(sampler, budget)
        if steps > 0:
            yield _Job(name, sampler, budget, steps=steps)


def _affordable(sampler: Sampler, budget: int) -> int:
    """The most steps, from noise to data, that cost at most so many forwards; 0 if one costs more."""
    steps = 0
    while (cost := sampler.nfe(steps + 1)) is not None and cost <= budget:
        steps += 1
    return steps


def _starts(model: Denoiser, shape: Sequence[int], seed: int, prior: str, device: torch.device | str | None) -> Tensor:
    moments = prior_moments(prior, model.moments)
    place = torch.device(model.device if device is None else device)
    dtype = torch.float32 if place.type == "mps" else torch.float64
    noise = NoiseSource(seed, shape, first=_FIRST, dtype=dtype, device=place)
    return model.sde.prior_sample(shape, moments=moments, noise=noise)


def _tight(rtol: float, model: Denoiser, x: Tensor, _: int, report: Progress) -> Solution:
    """The truth: the adaptive solve."""
    return solve(model, x, JUDGE, rtol=rtol, t_to=0.0, progress=report)


def _early(rtol: float, model: Denoiser, x: Tensor, _: int, report: Progress) -> Solution:
    """The adaptive solve that denoises from twice the usual time."""
    end = 2.0 * model.sde.t_min
    solution = solve(model, x, JUDGE, rtol=rtol, t_to=end, progress=report)
    return solution._replace(x=model.denoise(solution.x, end), nfe=solution.nfe + 1)


def _row(job: _Job, batches: _Batches, truth: Tensor, seed: int) -> Row:
    """Solve and judge."""

    def work(model: Denoiser, part: Tensor, first: int, report: Progress) -> Solution:
        options = {"steps": job.steps, "rtol": job.rtol, "progress": report}
        return solve(model, part, job.sampler, t_to=0.0, seed=seed, first=_FIRST + first, **options)  # type: ignore[arg-type]

    row = Row(job.solver, job.budget, job.rtol, job.steps, math.nan, None, None, math.inf, math.inf)
    pathwise = not job.sampler.stochastic
    try:
        x, nfe = batches.run(work, job.weight)
    except FloatingPointError:  # the others still want to be seen
        return row._replace(rms=math.inf, median=math.inf) if pathwise else row
    distance, uncertainty = energy_distance(x, truth)
    row = row._replace(nfe=nfe, distance=distance, distance_error=uncertainty)
    if not pathwise:
        return row
    rms, median = errors(x, truth)
    return row._replace(rms=rms, median=median)
