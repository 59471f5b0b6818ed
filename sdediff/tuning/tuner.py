"""Tuning of a solver for one model and one number of steps, and its errors before and after."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.evaluation.distances import Errors
from sdediff.foreign import evaluating
from sdediff.progress import ProgressLike, reporter
from sdediff.samplers.auto import choice_for
from sdediff.samplers.base import Progress, Sampler
from sdediff.samplers.chosen import Chosen
from sdediff.samplers.relative import Relative
from sdediff.samplers.tuned import Tuned
from sdediff.sampling import node_times, resolve, solve
from sdediff.tuning.optimize import best_initialisation, learn
from sdediff.tuning.trajectories import BATCH, Pilot, solve_pilot, starts
from sdediff.types import brief

_GUARD = 512
"""Training trajectories on which a tuned solver must be better than untuned ones."""


@dataclass(frozen=True)
class Tuning:
    """Result of tuning.

    Attributes:
        solver: tuned sampler; where it is no better on the training trajectories, the best untuned one: that of
            ``"auto"``, or ``"ode"`` on its own nodes.
        before: errors of the default ``"ode"`` at the data, on the held-out trajectories.
        after: errors of the tuned sampler there.
        seconds: duration of the tuning, without the pilot.
    """

    solver: Tuned | Chosen
    before: Errors
    after: Errors
    seconds: float

    __repr__ = brief

    @property
    def gain(self) -> float:
        """Geometric mean of both errors' ratios, after over before: below 1 is better."""
        return math.sqrt(self.after.rms / self.before.rms * self.after.median / self.before.median)


@dataclass(frozen=True)
class Trajectories:
    """Pilot trajectories of one model, for training and held out; common to several numbers of steps.

    Attributes:
        learned: training trajectories.
        held_out: held-out trajectories, for evaluation.
        t_to: time of the end other than the data themselves.
    """

    learned: Pilot
    held_out: Pilot
    t_to: float


def pilot(
    model: Denoiser,
    *,
    trajectories: int = 1024,
    held_out: int = 256,
    t_to: float | None = None,
    seed: int = 0,
    condition: ConditionLike = None,
    progress: ProgressLike = None,
) -> Trajectories:
    """Solve accurately from random starts.

    Half of the starts come from the Gaussian with the data's moments, as in sampling, half from the standard normal.

    Args:
        model: denoiser with its process and ``data``.
        trajectories: number of training trajectories.
        held_out: number of other trajectories, for evaluation.
        t_to: end of solves other than the data themselves; by default 1e-3, or ``t_min`` if that is more.
        seed: seed of the starts.
        condition: condition of the network: one row a trajectory, those held out last, or one for all.
        progress: true for a bar, or a function called as ``progress(done, total)``.

    Raises:
        ValueError: for counts below 1, or a model that does not say what its data are.
    """
    if trajectories < 1 or held_out < 1:
        raise ValueError(f"tuning needs trajectories to learn from and to judge by, not {trajectories} and {held_out}")
    model, t_to = model.given(condition), max(1e-3, model.sde.t_min) if t_to is None else t_to
    model.check_batch(trajectories + held_out)
    with evaluating(model):
        report = reporter(progress, "solving", "batch") or _silent
        solved = solve_pilot(model, starts(model, trajectories + held_out, seed), t_to, report)
    return Trajectories(solved.select(slice(trajectories)), solved.select(slice(trajectories, None)), t_to)


def tune(
    model: Denoiser,
    steps: int,
    *,
    trajectories: int | Trajectories = 1024,
    held_out: int = 256,
    iterations: int = 400,
    batch_size: int = 128,
    t_to: float | None = None,
    seed: int = 0,
    condition: ConditionLike = None,
    progress: ProgressLike = None,
) -> Tuning:
    """Learn nodes and weights of a multistep solver for one model and one number of steps.

    Args:
        model: denoiser with its process and ``data``, through which gradients flow to the state.
        steps: NFE of a solve.
        trajectories: number of training trajectories, or the result of :func:`pilot`.
        held_out: number of held-out trajectories.
        iterations: number of steps of the optimiser; each costs about three solves of a batch.
        batch_size: number of trajectories an iteration.
        t_to: end as for :func:`pilot`; solves with the result may end anywhere from there to 0.
        seed: seed of starts and batches.
        condition: condition as for :func:`pilot`, the same as given there.
        progress: true for a bar, or a function called as ``progress(done, total)``; over the iterations.

    Returns:
        The sampler, to be given as ``solver=``, and its errors on held-out trajectories beside those of ``"ode"``.

    Raises:
        ValueError: for steps or iterations below 1, or a model that cannot be tuned.
    """
    for name, value in (("steps", steps), ("iterations", iterations), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    model = model.given(condition)
    if isinstance(trajectories, int):
        trajectories = pilot(model, trajectories=trajectories, held_out=held_out, t_to=t_to, seed=seed)
    with evaluating(model):
        report = reporter(progress, "tuning", "iteration") or _silent
        return _tune(model, steps, trajectories, iterations, batch_size, seed, report)


def _tune(
    model: Denoiser,
    steps: int,
    trajectories: Trajectories,
    iterations: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> Tuning:
    begin = time.perf_counter()
    initial = best_initialisation(model, steps, trajectories.t_to, trajectories.learned)
    learned = learn(
        model,
        initial,
        trajectories.learned,
        iterations=iterations,
        batch_size=min(batch_size, len(trajectories.learned.start)),
        seed=seed,
        progress=progress,
    )
    solver = _best(model, steps, learned.tensors().sampler(model), trajectories.learned)
    seconds = time.perf_counter() - begin
    before, after = (held_out_errors(model, each, trajectories.held_out, steps) for each in ("ode", solver))
    return Tuning(solver, before, after, seconds)


def _best(model: Denoiser, steps: int, tuned: Tuned, pilot: Pilot) -> Tuned | Chosen:
    """Return the tuned sampler, or an untuned one that is better on the training trajectories."""
    some, interval = pilot.select(slice(_GUARD)), (model.sde.t_max, 0.0)
    default = node_times(resolve("ode"), model, steps, None, interval)
    untuned = [
        choice_for(model.rows(some.row), some.start.shape, steps, interval).sampler,
        Chosen(Relative(), tuple(default.tolist())),
    ]

    def size(solver: Tuned | Chosen) -> float:
        errors = held_out_errors(model, solver, some, steps)
        return errors.rms * errors.median

    best = min(untuned, key=size)
    return tuned if size(tuned) < size(best) else best


def held_out_errors(model: Denoiser, solver: str | Sampler, held_out: Pilot, steps: int) -> Errors:
    """Compute the errors of a solver at the data, ``t = 0``."""
    with torch.no_grad():
        pairs = zip(torch.split(held_out.start, BATCH), torch.split(held_out.row, BATCH), strict=True)
        states = [solve(model.rows(rows), x, solver, t_to=0.0, steps=steps).x for x, rows in pairs]
    return Errors.of(torch.cat(states), held_out.clean)


def _silent(done: int, total: int) -> None:
    """Ignore progress."""
