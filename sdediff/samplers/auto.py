r"""``"auto"``: form, grid, memory, corrector and first forward chosen for one model and one number of steps.

One solve of a few trajectories is recorded (:mod:`sdediff.samplers.pilot`). It predicts the error of every method on
every usual grid without the network; the nodes of the best are then moved, smoothly, to where its predicted error is
smallest (nodes fitted to a model as in Xue et al. 2024 and GITS, Chen et al. 2024, here with errors that feed back).
What is chosen, the best of the usual pairs and the default are last compared by real solves of some of the
trajectories, so that the default is only left for something better. Where the first forward is free it is the data's
Gaussian that answers in its place (:mod:`sdediff.samplers.chosen`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame
from sdediff.grids import GRIDS
from sdediff.noise import NoiseSource
from sdediff.parametrization import check_signal
from sdediff.samplers.base import Progress, Sampler, StepSampler, take_steps
from sdediff.samplers.chosen import Chosen
from sdediff.samplers.clocks import FloatArray
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.pilot import Pilot, angle_at, clock
from sdediff.samplers.relative import Relative
from sdediff.sde import SDE
from sdediff.types import Solution

DEFAULT = "ode"
"""Method of the default solver, which has its grid by the prediction."""
METHODS: dict[str, StepSampler] = {
    "ode": Relative(),
    **{f"relative, memory {memory}": Relative(memory, None) for memory in (2, 3, 4)},
    **{f"relative, memory {memory}, corrected": Relative(memory, 1) for memory in (3, 4, 5)},
    "ab2": Multistep("velocity", "asinh", 2),
    "ab4": Multistep("velocity", "asinh", 4),
    "deis2": Multistep("epsilon", "logsnr", 2),
    "deis3": Multistep("epsilon", "logsnr", 3),
    "dpm++2m": Multistep("sample", "logsnr", 2, "middle"),
    "dpm++3m": Multistep("sample", "logsnr", 3, "halved"),
    "sample, memory 3": Multistep("sample", "logsnr", 3),
    "ipndm2": Multistep("epsilon", "logsnr", 2, "equal"),
    "ipndm3": Multistep("epsilon", "logsnr", 3, "equal"),
    "ipndm4": Multistep("epsilon", "logsnr", 4, "equal"),
    "unipc2": Multistep("sample", "logsnr", 2, "middle", correct_from=1),
    "unipc3": Multistep("sample", "logsnr", 3, "middle", correct_from=1),
}
"""Methods among which the choice is made; all take one forward a step."""
HIGH_ORDER = ("ode", "relative, memory 4, corrected", "ab4", "deis3", "unipc3")
"""Those among which it is made for many steps."""
UNUSUAL_GRIDS = ("time", "cubic", "exponential", "chain")
"""Grids on which none of them is tried: even or coarse near the data, or another's twin."""

_FORWARDS = 1280
"""Forwards of one trajectory that a choice may take in all: those of 32 trajectories and 40 steps."""
_TRAJECTORIES, _PILOT_STEPS, _MANY = 16, (40, 80), 20
"""Trajectories of the pilot; its steps up to, and beyond, this many steps of the solve."""
_PROMISING, _FEWEST, _JUDGED = 12, 4, (3, 6)
"""Pairs that are tried with the first forward free; fewest trajectories of a comparison by real solves; and the fewest
and most choices that are so compared."""
_FINALISTS, _KNOTS, _ROUNDS, _PENALTY = 2, 4, 6, 0.02
"""Pairs whose nodes are moved, knots of the move, rounds of the search, and the cost of a squared move of one unit."""
_HANDICAP, _MARGIN = math.log(1.3), 0.15
"""Handicap of all but the default in predictions, and log of the factor by which another must win in real solves."""


class Choice(NamedTuple):
    """A sampler on its nodes, and how good it is.

    Attributes:
        name: method and grid from which it was made, in words.
        sampler: the sampler, to be given as ``solver=``.
        score: mean of the log RMS error and the mean log error on the recorded trajectories; smaller is better.
    """

    name: str
    sampler: Chosen
    score: float


@dataclass(frozen=True)
class Auto(Sampler):
    """Multistep solver chosen for the model that it meets: one forward a step.

    A choice takes at most 1,280 forwards of one item (32 trajectories of 40 steps) and is kept with the model, for its
    weights, the interval and the number of steps; under a condition it is made anew in every call.

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

    def for_model(
        self, model: Denoiser, shape: Sequence[int], steps: int | None, interval: tuple[float, float]
    ) -> Chosen:
        """Return the sampler chosen for a model; see :meth:`~sdediff.samplers.base.Sampler.for_model`."""
        return choice_for(model, shape, self.steps if steps is None else steps, interval, self.seed).sampler

    def sample(
        self,
        denoise: Denoiser,
        sde: SDE,
        x: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        *,
        path: bool = False,
        progress: Progress | None = None,
    ) -> Solution:
        """Choose, and take the state ``x`` at ``grid[0]`` to ``grid[-1]`` on other nodes than those given."""
        chosen = self.for_model(denoise, x.shape, len(grid) - 1, (float(grid[0]), float(grid[-1])))
        times = torch.tensor(chosen.times, dtype=torch.float64)
        return chosen.sample(denoise, sde, x, times, noise, path=path, progress=progress)


_KEPT: WeakKeyDictionary[Denoiser, dict[object, Choice]] = WeakKeyDictionary()
"""Choices by model; those for other weights are dropped with the model."""


def choice_for(
    model: Denoiser, shape: Sequence[int], steps: int, interval: tuple[float, float], seed: int = 0
) -> Choice:
    """Choose method, nodes and first forward for a model, or return the choice that was made before.

    Args:
        model: denoiser, in evaluation mode.
        shape: shape of the states, ``(B, *shape)``; its first row has the condition of the first trajectory, and so on.
        steps: forwards of a solve, at least 1.
        interval: times at which solves start and end.
        seed: seed of the recorded trajectories.

    Raises:
        ValueError: if no method can take this number of steps, or the network says nothing at the noisy end.
    """
    check_signal(model.prediction, model.sde, max(interval))
    weights = tuple((tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers()))
    key = weights, id(model.moments), tuple(shape[1:]), steps, interval, seed
    kept = _KEPT.setdefault(model, {})
    if key not in kept:
        rows = torch.arange(_TRAJECTORIES, device=model.device) % shape[0]
        pilot = Pilot(model.rows(rows), shape[1:], _TRAJECTORIES, _pilot_steps(steps), seed)
        kept[key] = _choose(pilot, steps, interval)
    return kept[key]


def _pilot_steps(steps: int) -> int:
    return _PILOT_STEPS[int(steps > _MANY)]


def _choose(pilot: Pilot, steps: int, interval: tuple[float, float]) -> Choice:
    found = sorted(_usual(pilot, steps, interval), key=Pair.handicapped)
    if not found:
        raise ValueError(f"no solver takes {steps} steps from t = {interval[0]:g} to {interval[1]:g}")
    default = next((each for each in found if each.is_default), found[0])
    if interval[0] == pilot.model.sde.t_max:
        free = [_on_grid(pilot, each.method, each.grid, steps, interval, free=True) for each in found[:_PROMISING]]
        found = sorted([*found, *(each for each in free if each is not None)], key=Pair.handicapped)
    finalists = [next(each for each in found if each.is_default or each == default), *_distinct(found)[:_FINALISTS]]
    moved = min((_move_nodes(pilot, each) for each in dict.fromkeys(finalists)), key=lambda pair: pair[1])[0]
    others = {each.grid: each.choice() for each in reversed(found)}.values()  # the best of each grid, last the best
    return _judge(pilot, [default.choice(), moved, *sorted(others, key=lambda each: each.score)], steps)


class Pair(NamedTuple):
    """A method on a usual grid, with its score.

    Attributes:
        method: name in ``METHODS``.
        grid: name in ``GRIDS``.
        usual: whether this is the grid of the default solver.
        sampler: the method on the nodes.
        score: score by prediction.
    """

    method: str
    grid: str
    usual: bool
    sampler: Chosen
    score: float

    @property
    def name(self) -> str:
        """Method and grid in words."""
        return f"{self.method} on {self.grid}" + (", the first forward free" if self.sampler.free else "")

    @property
    def is_default(self) -> bool:
        """Tell whether this is the default solver, with its first forward free or not."""
        return self.method == DEFAULT and self.usual

    def handicapped(self) -> float:
        """Return the score by which pairs are compared: a few trajectories do not show the rare bad ones."""
        return self.score + _HANDICAP * float(not self.is_default)

    def choice(self) -> Choice:
        """Return the pair as a choice."""
        return Choice(self.name, self.sampler, self.score)


def usual_grids() -> list[str]:
    """Return the names of the grids on which methods are tried."""
    return [name for name in GRIDS if name not in UNUSUAL_GRIDS]


def _usual(pilot: Pilot, steps: int, interval: tuple[float, float]) -> Iterator[Pair]:
    """Score every method on every usual grid."""
    for grid in usual_grids():
        for method in METHODS if steps <= _MANY else HIGH_ORDER:
            pair = _on_grid(pilot, method, grid, steps, interval)
            if pair is not None:
                yield pair


def _on_grid(
    pilot: Pilot, method: str, grid: str, steps: int, interval: tuple[float, float], *, free: bool = False
) -> Pair | None:
    """Return a method on a grid, with the first forward free or not; ``None`` where it cannot take these steps."""
    try:
        times = pilot.model.snap(GRIDS[grid](pilot.model.sde, steps + int(free), *interval))
    except ValueError:  # two nodes coincide
        return None
    sampler = Chosen(METHODS[method], tuple(times.tolist()), free)
    value = _score(pilot, sampler)
    usual = grid == Relative().grid_for(pilot.model.prediction)
    return Pair(method, grid, usual, sampler, value) if math.isfinite(value) else None


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


def _distinct(found: list[Pair]) -> list[Pair]:
    """Return the best pair of each method."""
    best: dict[str, Pair] = {}
    for each in found:
        best.setdefault(each.method, each)
    return list(best.values())


def _move_nodes(pilot: Pilot, pair: Pair) -> tuple[Choice, float]:
    """Move the nodes to where the predicted error is smallest: log-widths of the steps by a line through few knots.

    The first node stays, and the last; that before the data is free, too.

    Returns:
        The choice, and the score by which it is compared.
    """
    sampler, sde = pair.sampler, pilot.model.sde
    angles = np.array([level.angle for level in sde.levels(sampler.times)])
    to_data = bool(angles[-1] == 0.0)
    inner = clock(angles[:-1] if to_data else angles)
    knots = min(_KNOTS, len(inner) - 1)
    if knots < 1 or angles[0] == 0.0:
        return pair.choice(), pair.handicapped()
    widths, places = np.log(np.abs(np.diff(inner))), np.linspace(0.0, 1.0, len(inner) - 1)

    def moved(shift: FloatArray) -> Chosen:
        scaled = np.exp(widths + np.interp(places, np.linspace(0.0, 1.0, knots), shift[:knots]))
        length = inner[-1] + shift[-1] * float(to_data) - inner[0]
        nodes = inner[0] + length * np.cumsum(scaled) / scaled.sum()
        log_tan = np.log(np.tan(angle_at(nodes if to_data else nodes[:-1])[0]))
        times = sde.time(torch.from_numpy(-log_tan)).clamp(sde.t_min, sde.t_max).tolist()
        whole = torch.tensor([sampler.times[0], *times, sampler.times[-1]], dtype=torch.float64)
        return Chosen(sampler.method, tuple(pilot.model.snap(whole).tolist()), sampler.free)

    def objective(shift: FloatArray) -> float:
        nodes, sign = moved(shift), math.copysign(1.0, sampler.times[0] - sampler.times[-1])
        runs = all(sign * (a - b) > 0.0 for a, b in pairwise(nodes.times))
        return _score(pilot, nodes) + _PENALTY * float(shift @ shift) if runs else math.inf

    found = moved(_descend(objective, knots + 1, _ROUNDS if len(angles) <= _MANY + 1 else _ROUNDS // 2))
    value = _score(pilot, found)
    return Choice(f"{pair.name}, nodes moved", found, value), pair._replace(score=value).handicapped()


def _descend(objective: Callable[[FloatArray], float], count: int, rounds: int) -> FloatArray:
    """Minimise by steps along the axes, each of which grows with success and is halved without."""
    place, width = np.zeros(count), np.full(count, 0.4)
    best = objective(place)
    for _ in range(rounds):
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


def _judge(pilot: Pilot, candidates: list[Choice], steps: int) -> Choice:
    """Compare choices by real solves of the trajectories, as many as the budget allows; the first is the default.

    Where it allows none the default is left for what is predicted to be better.
    """
    left = (_FORWARDS - _TRAJECTORIES * _pilot_steps(steps)) // steps  # solves of one trajectory
    found: dict[Chosen, Choice] = {}
    for each in candidates:
        found.setdefault(each.sampler, each)
    unique = list(found.values())
    unique = unique[: min(max(left // _TRAJECTORIES, _JUDGED[0]), _JUDGED[1])]
    count, margin = min(_TRAJECTORIES, left // len(unique)), _HANDICAP
    if len(unique) > 1 and count >= _FEWEST and unique[0].sampler.times[0] == pilot.model.sde.t_max:
        unique, margin = [each._replace(score=_real_score(pilot, each.sampler, count)) for each in unique], _MARGIN
    best = min(unique, key=lambda each: each.score)
    return best if best.score < unique[0].score - margin else unique[0]


def _real_score(pilot: Pilot, sampler: Chosen, count: int) -> float:
    """Score real solves of the first trajectories, from ``t_max``."""
    model, x = pilot.model.rows(slice(count)), pilot.start[:count]
    levels = model.sde.levels(sampler.times)
    with torch.no_grad():
        y, _, _ = take_steps(sampler, Frame(model, model.sde), x, levels, NoiseSource(0, x.shape), False, None)
    return score(pilot.distances(y, levels[-1]) + pilot.resolution[:count])
