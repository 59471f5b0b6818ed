r"""``"auto"``: form, grid, memory, corrector and first forward chosen for one model and one number of steps.

One solve of a few trajectories is recorded (:mod:`sdediff.samplers.pilot`). It predicts the error of every method on
every usual grid without the network; the nodes of the best are then moved, smoothly, to where its predicted error is
smallest (nodes fitted to a model as in Xue et al. 2024 and GITS, Chen et al. 2024, here with errors that feed back).
What is chosen, the best of the usual pairs and the default are last compared by real solves of some of the
trajectories, so that the default is only left for something better; so is the default without the moments of the data,
which may not be those of what the network learned. Where the first forward is free it is the data's
Gaussian that answers in its place (:mod:`sdediff.samplers.chosen`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame
from sdediff.noise import NoiseSource
from sdediff.parametrization import check_signal
from sdediff.samplers.base import take_steps
from sdediff.samplers.candidates import (
    HANDICAP,
    MANY,
    WITHOUT_MOMENTS,
    Choice,
    Pair,
    best_of_methods,
    move_nodes,
    pair_on_grid,
    score,
    usual_pairs,
)
from sdediff.samplers.chosen import Chosen, ChosenForModel
from sdediff.samplers.pilot import PilotPaths

_LOG = logging.getLogger(__name__)

_FORWARDS = 1280
"""Forwards of one trajectory that a choice may take in all: those of 32 trajectories and 40 steps."""
_TRAJECTORIES, _PILOT_STEPS = 16, (40, 80)
"""Trajectories of the pilot; its steps up to, and beyond, ``MANY`` steps of the solve."""
_PROMISING, _FEWEST, _JUDGED = 12, 4, (3, 6)
"""Pairs that are tried with the first forward free; fewest trajectories of a comparison by real solves; and the fewest
and most choices that are so compared."""
_FINALISTS, _MARGIN = 2, 0.15
"""Pairs whose nodes are moved, and log of the factor by which another than the default must win in real solves."""


@dataclass(frozen=True)
class Auto(ChosenForModel):
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

    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Return ``steps``; see :meth:`~sdediff.samplers.base.Sampler.nfe`."""
        return steps

    def for_model(
        self, model: Denoiser, shape: Sequence[int], steps: int | None, interval: tuple[float, float]
    ) -> Chosen:
        """Return the sampler chosen for a model; see :meth:`~sdediff.samplers.base.Sampler.for_model`."""
        return choice_for(model, shape, self.steps if steps is None else steps, interval, self.seed).sampler


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
        pilot = PilotPaths(model.rows(rows), shape[1:], _TRAJECTORIES, _pilot_steps(steps), seed)
        kept[key] = _choose(pilot, steps, interval)
        _LOG.info("chose %s for %d steps", kept[key].name, steps)
    return kept[key]


def _pilot_steps(steps: int) -> int:
    return _PILOT_STEPS[int(steps > MANY)]


def _choose(pilot: PilotPaths, steps: int, interval: tuple[float, float]) -> Choice:
    found = sorted(usual_pairs(pilot, steps, interval), key=Pair.handicapped)
    if not found:
        raise ValueError(f"no solver takes {steps} steps from t = {interval[0]:g} to {interval[1]:g}")
    default = next((each for each in found if each.is_default), found[0])
    if interval[0] == pilot.model.sde.t_max:
        free = [pair_on_grid(pilot, each.method, each.grid, steps, interval, free=True) for each in found[:_PROMISING]]
        found = sorted([*found, *(each for each in free if each is not None)], key=Pair.handicapped)
    finalists = [
        next(each for each in found if each.is_default or each == default),
        *best_of_methods(found)[:_FINALISTS],
    ]
    moved = min((move_nodes(pilot, each) for each in dict.fromkeys(finalists)), key=lambda pair: pair[1])[0]
    others = {each.grid: each.choice() for each in reversed(found)}.values()  # the best of each grid, last the best
    plain = [each.choice() for each in found if each.method == WITHOUT_MOMENTS and each.usual and not each.sampler.free]
    return _judge(pilot, [default.choice(), moved, *plain, *sorted(others, key=lambda each: each.score)], steps)


def _judge(pilot: PilotPaths, candidates: list[Choice], steps: int) -> Choice:
    """Compare choices by real solves of the trajectories, as many as the budget allows; the first is the default.

    Where it allows none the default is left for what is predicted to be better.
    """
    left = (_FORWARDS - _TRAJECTORIES * _pilot_steps(steps)) // steps  # solves of one trajectory
    found: dict[Chosen, Choice] = {}
    for each in candidates:
        found.setdefault(each.sampler, each)
    unique = list(found.values())
    unique = unique[: min(max(left // _TRAJECTORIES, _JUDGED[0]), _JUDGED[1])]
    count, margin = min(_TRAJECTORIES, left // len(unique)), HANDICAP
    if len(unique) > 1 and count >= _FEWEST and unique[0].sampler.times[0] == pilot.model.sde.t_max:
        unique, margin = [each._replace(score=_real_score(pilot, each.sampler, count)) for each in unique], _MARGIN
    best = min(unique, key=lambda each: each.score)
    return best if best.score < unique[0].score - margin else unique[0]


def _real_score(pilot: PilotPaths, sampler: Chosen, count: int) -> float:
    """Score real solves of the first trajectories, from ``t_max``."""
    model, x = pilot.model.rows(slice(count)), pilot.start[:count]
    levels = model.sde.levels(sampler.times)
    with torch.no_grad():
        y, _, _ = take_steps(sampler, Frame(model, model.sde), x, levels, NoiseSource(0, x.shape), False, None)
    return score(pilot.distances(y, levels[-1]) + pilot.resolution[:count])
