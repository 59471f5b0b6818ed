r"""``"auto"``: form, grid, memory, corrector and first forward chosen for one model and one number of steps.

One solve of a few trajectories is recorded (:mod:`sdediff.samplers.pilot`). It predicts the error of every method on
every usual grid without the network; the nodes of the best are then moved, smoothly, to where its predicted error is
smallest (nodes fitted to a model as in Xue et al. 2024 and GITS, Chen et al. 2024, here with errors that feed back).
What is chosen, the best of the usual pairs and the default are last compared by real solves of some of the
trajectories, so that the default is only left for something better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x
from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.numerics import flatten
from sdediff.samplers.base import Progress, Sampler, StepSampler, take_steps
from sdediff.samplers.chosen import Chosen
from sdediff.samplers.clocks import FloatArray
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.pilot import Pilot, angle_at, clock
from sdediff.samplers.relative import Relative
from sdediff.types import Solution

DEFAULT = "ode on reference"
METHODS: dict[str, StepSampler] = {
    "ode": Relative(),
    **{f"relative, memory {memory}": Relative(memory, None) for memory in (2, 3, 4, 5)},
    **{f"relative, memory {memory}, corrected": Relative(memory, 1) for memory in (3, 4, 5)},
    "ab2": Multistep("velocity", "asinh", 2),
    "ab4": Multistep("velocity", "asinh", 4),
    "deis2": Multistep("epsilon", "logsnr", 2),
    "deis3": Multistep("epsilon", "logsnr", 3),
    "dpm++2m": Multistep("sample", "logsnr", 2, "middle"),
    "dpm++3m": Multistep("sample", "logsnr", 3, "halved"),
    "sample, memory 3": Multistep("sample", "logsnr", 3),
    "unipc2": Multistep("sample", "logsnr", 2, "middle", correct_from=1),
    "unipc3": Multistep("sample", "logsnr", 3, "middle", correct_from=1),
}
"""Methods among which the choice is made; all take one forward a step."""
USUAL_GRIDS = ("reference", "quadratic", "angle", "asinh", "karras", "logsnr")

_FORWARDS = 1280
"""Forwards of one trajectory that a choice may take in all: those of 32 trajectories and 40 steps."""
_TRAJECTORIES, _PILOT_STEPS = 16, (48, 80)
"""Trajectories of the pilot; its steps up to, and beyond, ``_MANY`` steps of the solve."""
_MANY = 20
_FINALISTS, _KNOTS, _ROUNDS, _PENALTY = 2, 4, 6, 0.02
"""Pairs whose nodes are moved, knots of the move, rounds of the search, and the cost of a squared move of one unit."""
_MARGIN = 0.02
"""Share by which another choice must be better than the default."""


class Candidate(NamedTuple):
    """A sampler on its nodes, and how good it is: the mean of log RMS and mean log error, smaller is better."""

    name: str
    sampler: Chosen
    score: float


@dataclass(frozen=True)
class Auto(Sampler):
    """Multistep solver chosen for the model it meets: one forward a step.

    The choice takes at most 1,280 forwards of one trajectory (32 trajectories of 40 steps) and is kept with the model.

    Args:
        seed: seed of the recorded trajectories.
    """

    seed: int = 0

    @property
    def order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return False

    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Return ``steps``; see :meth:`~sdediff.samplers.base.Sampler.nfe`."""
        return steps

    def for_model(self, model: Denoiser, shape: tuple[int, ...], steps: int | None, interval: tuple[float, float]) -> Chosen:
        """Return the sampler chosen for a model; see :meth:`~sdediff.samplers.base.Sampler.for_model`."""
        return choose_solver(model, shape, self.steps if steps is None else steps, interval, self.seed).sampler

    def sample(
        self,
        denoise: Denoiser,
        sde: object,
        x: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        *,
        path: bool = False,
        progress: Progress | None = None,
    ) -> Solution:
        """Choose, and take the state ``x`` at ``grid[0]`` to ``grid[-1]`` on other nodes than those given."""
        interval = float(grid[0]), float(grid[-1])
        chosen = self.for_model(denoise, tuple(x.shape[1:]), len(grid) - 1, interval)
        times = torch.tensor(chosen.times, dtype=torch.float64)
        return chosen.sample(denoise, denoise.sde, x, times, noise, path=path, progress=progress)


def choose_solver(
    model: Denoiser, shape: tuple[int, ...], steps: int, interval: tuple[float, float], seed: int = 0
) -> Candidate:
    """Choose method, nodes and first forward for a model.

    Args:
        model: denoiser, in evaluation mode.
        shape: shape of an item.
        steps: forwards of a solve.
        interval: times at which solves start and end.
        seed: seed of the recorded trajectories.
    """
    pilot = Pilot(model, shape, _TRAJECTORIES, _PILOT_STEPS[int(steps > _MANY)], seed)
    found = sorted(_usual(pilot, steps, interval), key=lambda each: each.score)
    default = next((each for each in found if each.name == DEFAULT), found[0])
    best = _distinct(found)[:_FINALISTS]
    moved = min((_move_nodes(pilot, each) for each in best), key=lambda each: each.score)
    return _judge(pilot, [default, moved, found[0]], steps)


def _usual(pilot: Pilot, steps: int, interval: tuple[float, float]) -> Iterator[Candidate]:
    """Score every method on every usual grid, and with the first forward for nothing."""
    model, free = pilot.model, pilot.model.moments is not None and interval[0] == pilot.model.sde.t_max
    for grid in USUAL_GRIDS:
        for extra in (0, 1) if free else (0,):
            try:
                times = model.snap(GRIDS[grid](model.sde, steps + extra, *interval)).tolist()
            except ValueError:  # two nodes coincide, or the grid has no such end
                continue
            for name, method in METHODS.items():
                candidate = Chosen(method, tuple(times), bool(extra))
                score = _score(pilot, candidate)
                if math.isfinite(score):
                    yield Candidate(f"{name} on {grid}" + ", first forward free" * extra, candidate, score)


def _score(pilot: Pilot, sampler: Chosen) -> float:
    try:
        return score(pilot.errors(sampler, pilot.model.sde.levels(sampler.times)) + pilot.resolution)
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):  # a method that cannot take these steps
        return math.inf


def score(squared: FloatArray) -> float:
    """Return the mean of log RMS and mean log error, of squared errors ``(n,)``; infinite where one is not finite."""
    if not np.isfinite(squared).all():
        return math.inf
    squared = np.maximum(squared, 1e-30)
    return 0.25 * float(np.log(squared.mean()) + np.log(squared).mean())


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Return the best candidate of each method."""
    best: dict[StepSampler, Candidate] = {}
    for each in found:
        best.setdefault(each.sampler.method, each)
    return list(best.values())


def _move_nodes(pilot: Pilot, candidate: Candidate) -> Candidate:
    """Move the nodes to where the predicted error is smallest: log-widths of the steps by a line through few knots."""
    sampler, sde = candidate.sampler, pilot.model.sde
    angles = np.array([level.angle for level in sde.levels(sampler.times)])
    inner = clock(angles[angles > 0.0])
    knots = min(_KNOTS, len(inner) - 1)
    if knots < 1:
        return candidate
    places = np.linspace(0.0, 1.0, len(inner) - 1)

    def moved(shift: FloatArray) -> Chosen:
        widths = np.log(np.abs(np.diff(inner))) + np.interp(places, np.linspace(0.0, 1.0, knots), shift[:knots])
        end = inner[-1] + shift[-1] * float(angles[-1] == 0.0)
        steps = np.exp(widths) / np.exp(widths).sum() * (end - inner[0])
        tan = np.tan(angle_at(inner[0] + np.cumsum(steps[: len(inner) - 1 if angles[-1] == 0.0 else -1]))[0])
        times = sde.time(-torch.from_numpy(np.log(tan))).clamp(sde.t_min, sde.t_max)
        whole = [sampler.times[0], *times.tolist(), sampler.times[-1]]
        return Chosen(sampler.method, tuple(pilot.model.snap(torch.tensor(whole, dtype=torch.float64)).tolist()), sampler.free)

    def objective(shift: FloatArray) -> float:
        nodes = moved(shift)
        rising = all(a > b for a, b in zip(nodes.times, nodes.times[1:], strict=False))
        return _score(pilot, nodes) + _PENALTY * float(shift @ shift) if rising else math.inf

    shift = _descend(objective, knots + 1)
    found = moved(shift)
    return Candidate(f"{candidate.name}, nodes moved", found, _score(pilot, found))


def _descend(objective: Callable[[FloatArray], float], count: int) -> FloatArray:
    """Minimise by steps along the axes, each of which grows with success and is halved without."""
    place, width = np.zeros(count), np.full(count, 0.4)
    best = objective(place)
    for _ in range(_ROUNDS):
        for axis in range(count):
            for sign in (1.0, -1.0):
                tried = place.copy()
                tried[axis] += sign * width[axis]
                value = objective(tried)
                if value < best - 1e-3:
                    place, best = tried, value
                    width[axis] *= 1.3
                    break
            else:
                width[axis] *= 0.5
    return place


def _judge(pilot: Pilot, candidates: list[Candidate], steps: int) -> Candidate:
    """Compare candidates by real solves of some of the trajectories, the first of them being the default."""
    left = _FORWARDS - _TRAJECTORIES * _PILOT_STEPS[int(steps > _MANY)]
    unique = list({each.sampler: each for each in candidates}.values())
    count = min(_TRAJECTORIES, left // max(1, steps * len(unique)))
    if count < 4 or unique[0].sampler.times[-1] != 0.0:
        judged = unique
    else:
        judged = [each._replace(score=_real_score(pilot, each.sampler, count)) for each in unique]
    best = min(judged, key=lambda each: each.score)
    return best if best.score < judged[0].score + math.log1p(-_MARGIN) else judged[0]


def _real_score(pilot: Pilot, sampler: Chosen, count: int) -> float:
    model, x = pilot.model.rows(slice(count)), pilot.start[:count]
    levels = model.sde.levels(sampler.times)
    with torch.no_grad():
        y, _, _ = take_steps(sampler, Frame(model, model.sde), x, levels, NoiseSource(0, x.shape), False, None)
    errors = flatten(to_x(y, levels[-1]) - pilot.end[:count]).double().square().mean(dim=1).cpu().numpy()
    return score(errors + pilot.resolution[:count])
