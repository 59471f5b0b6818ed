"""Candidates of ``"auto"``: methods on grids, scored by a pilot, and nodes moved to where the error is smallest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from sdediff.grids import GRIDS
from sdediff.samplers.base import StepSampler
from sdediff.samplers.chosen import Chosen
from sdediff.samplers.clocks import FloatArray
from sdediff.samplers.multistep import Multistep
from sdediff.samplers.pilot import PilotPaths, angle_at, clock
from sdediff.samplers.relative import Relative

DEFAULT, WITHOUT_MOMENTS = "ode", "ode without moments"
"""Method of the default solver, which has its grid by the prediction, and the same where moments mislead."""
METHODS: dict[str, StepSampler] = {
    DEFAULT: Relative(),
    WITHOUT_MOMENTS: Relative(use_moments=False),
    **{f"relative, memory {memory}": Relative(memory, None) for memory in (2, 3, 4)},
    **{f"relative, memory {memory}, corrected": Relative(memory, 1, gradual=False) for memory in (3, 4, 5)},
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
HIGH_ORDER = (DEFAULT, WITHOUT_MOMENTS, "relative, memory 4, corrected", "ab4", "deis3", "unipc3")
"""Those among which it is made for many steps."""
UNUSUAL_GRIDS = ("time", "cubic", "exponential", "chain")
"""Grids on which none of them is tried: even or coarse near the data, or another's twin."""

MANY = 20
"""Number of steps beyond which fewer methods are tried, and nodes moved less."""
_KNOTS, _ROUNDS, _PENALTY = 4, 6, 0.02
"""Knots of the move of the nodes, rounds of the search, and the cost of a squared move of one unit."""
HANDICAP = math.log(1.3)
"""Handicap of all but the default in predictions."""


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
        return self.score + HANDICAP * float(not self.is_default)

    def choice(self) -> Choice:
        """Return the pair as a choice."""
        return Choice(self.name, self.sampler, self.score)


def usual_grids() -> list[str]:
    """Return the names of the grids on which methods are tried."""
    return [name for name in GRIDS if name not in UNUSUAL_GRIDS]


def usual_pairs(pilot: PilotPaths, steps: int, interval: tuple[float, float]) -> Iterator[Pair]:
    """Score every method on every usual grid."""
    methods = [
        each for each in (METHODS if steps <= MANY else HIGH_ORDER) if pilot.weighs_moments or each != WITHOUT_MOMENTS
    ]
    for grid in usual_grids():
        for method in methods:
            pair = pair_on_grid(pilot, method, grid, steps, interval)
            if pair is not None:
                yield pair


def pair_on_grid(
    pilot: PilotPaths, method: str, grid: str, steps: int, interval: tuple[float, float], *, free: bool = False
) -> Pair | None:
    """Return a method on a grid, with the first forward free or not; ``None`` where it cannot take these steps."""
    try:
        times = pilot.model.snap(GRIDS[grid](pilot.model.sde, steps + int(free), *interval))
    except ValueError:  # two nodes coincide
        return None
    sampler = Chosen(METHODS[method], tuple(times.tolist()), free)
    value = predicted_score(pilot, sampler)
    usual = grid == Relative().grid_for(pilot.model.prediction)
    return Pair(method, grid, usual, sampler, value) if math.isfinite(value) else None


def predicted_score(pilot: PilotPaths, sampler: Chosen) -> float:
    """Return the score that the pilot predicts; infinite for a method that cannot take these steps."""
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


def best_of_methods(found: list[Pair]) -> list[Pair]:
    """Return the best pair of each method."""
    best: dict[str, Pair] = {}
    for each in found:
        best.setdefault(each.method, each)
    return list(best.values())


def move_nodes(pilot: PilotPaths, pair: Pair) -> tuple[Choice, float]:
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
        return predicted_score(pilot, nodes) + _PENALTY * float(shift @ shift) if runs else math.inf

    found = moved(_descend(objective, knots + 1, _ROUNDS if len(angles) <= MANY + 1 else _ROUNDS // 2))
    value = predicted_score(pilot, found)
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
