r"""The adaptive solver of the reverse SDE: each sample at its own pace, refused steps refined on the same path.

In the variance-preserving frame, with ``c = cos(theta)^(eta^2)``, the reverse process is

    c' y' = c y + (1 + eta^2) int cos^(eta^2) v d theta + B(c'^2) - B(c^2)

with one Brownian motion B on [0, 1], whatever the process: noise that is additive, bounded and exact over steps of any
length (standard normal data have v = 0). A step freezes v (exponential Euler), asks the network once at its end, and
corrects by the line through both values (improved Euler); their difference is the error estimate, as in
Jolicoeur-Martineau et al. (2021), but as the value found before the correction is kept, a step costs one forward, not
two. B is a tree of midpoints, a function of (seed, sample) and the solve's ends alone, and steps end on its coarser
nodes: a step refused is tried again on the same path, and any tolerance solves the same realisation of the SDE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.dynamics import Frame, velocity
from sdediff.noise import BrownianPath, NoiseSource
from sdediff.numerics import flatten
from sdediff.samplers.base import Progress
from sdediff.samplers.clocks import Array, Counts, clock_of, cosine, tan_of
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.interpolation import newton_integrals
from sdediff.samplers.per_sample import Paced, check_lengths, clock_at, levels_at, rms, those
from sdediff.types import Level

_AIM = 0.5
"""The part of the permitted error that a step is planned for."""
_POWER = 1.5
"""The estimate's order in the step: it is the noise in v, of order 1/2, over the step."""
_DEPTH = 48
"""Of the tree: nodes 4e-15 apart, for at t_min the variance left is 1e-12 or more."""


class Step(NamedTuple):
    """The coefficients of one step of every sample, ``(b,)`` each: ``keep y + mass v + gain dB + bend (v' - v)``."""

    keep: Array
    mass: Array
    gain: Array
    bend: Array

    @staticmethod
    def over(here: Array, there: Array, eta: float) -> Step:
        """Between two clocks."""
        power = eta**2
        start, end = (cosine(tan_of(w)) ** power for w in (here, there))
        mass, moment = (1.0 + power) / end * newton_integrals(here, there, here[:, None], 2, power).T
        return Step(start / end, mass, 1.0 / end, moment / (there - here))


class Walk(NamedTuple):
    """The samples under way.

    Attributes:
        rows: which of the batch they are, ``(b,)``.
        y: states of the frame, ``(b, D)``.
        value: velocities there, ``(b, D)``.
        here: clocks, ``(b,)``.
        length: of the next step in the clock, ``(b,)``.
    """

    rows: Counts
    y: Tensor
    value: Tensor
    here: Array
    length: Array


@dataclass(frozen=True)
class AdaptiveSDE(Paced):
    """Adaptive improved Euler for the reverse SDE, each sample at its own pace.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: the most forwards of a solve.
        eta: 1 for the reverse SDE, between 0 and 1 for the family between it and the ODE.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True

    rtol: float = 0.02
    atol: float = 0.02
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)
        if self.eta == 0.0:
            raise ValueError("eta must be above 0 here; without noise 'adaptive' is the solver")

    def cross(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to a less noisy one."""
        target = clock_at(stop)
        ends = self._brownian_clock(np.array([clock_at(start), target])).tolist()
        paths = [_path(noise, k, *ends) for k in range(len(y))]
        value, here = velocity(frame(y, start), start), np.full(len(y), clock_at(start))
        # the first step: short enough if the velocity turns as fast as it is
        turn = np.sqrt(2.0 * self.permitted(rms(flatten(y))))
        length = here - clock_of(np.tan(np.clip(start.angle - turn, 1e-9, None)))
        walk, parts = Walk(np.arange(len(y)), flatten(y), flatten(value), here, length), list[tuple[Counts, Tensor]]()
        while len(walk.rows) > 0:
            self.report(frame, progress)
            walk = self._advance(frame, walk, paths, y.shape[1:], stop, target)
            arrived = walk.here == target
            if arrived.any():
                done, walk = those(walk, arrived), those(walk, ~arrived)
                parts.append((done.rows, done.y))
        back = np.argsort(np.concatenate([rows for rows, _ in parts]))
        return torch.cat([part for _, part in parts])[torch.from_numpy(back).to(y.device)].reshape(y.shape)

    def _advance(
        self, frame: Frame, walk: Walk, paths: list[BrownianPath], shape: torch.Size, stop: Level[float], target: float
    ) -> Walk:
        """Try a step with every sample; those refused stay where they were and plan a shorter one."""
        there = np.maximum(walk.here - walk.length, target)
        last = there == target
        low, high = paths[0].start, paths[0].end
        start, goal = (np.clip(self._brownian_clock(w), low, high) for w in (walk.here, there))
        node = _coarse((start - low) / (high - low), (goal - low) / (high - low))
        goal = np.where(last, high, low + (high - low) * node)
        there = np.where(last, target, self._clock(goal))
        step = Step.over(walk.here, there, self.eta)
        read = [paths[k].increment(s, t) for k, s, t in zip(walk.rows, start.tolist(), goal.tolist(), strict=True)]
        keep, mass, gain, bend = (torch.from_numpy(c).to(walk.y)[:, None] for c in step)
        guess = keep * walk.y + mass * walk.value + gain * flatten(torch.cat(read))
        level = levels_at(frame.sde, there, last, stop)
        value = flatten(velocity(frame(guess.reshape(-1, *shape), level, walk.rows), level))
        change = bend * (value - walk.value)
        y = guess + change
        error = rms(change) / self.permitted(rms(walk.y))
        fits = error <= 1.0
        factor = np.clip((_AIM / np.maximum(error, 1e-12)) ** (1.0 / _POWER), 0.1, np.where(fits, 4.0, 0.7))
        length = (walk.here - there) * factor
        check_lengths(length)
        mask = torch.from_numpy(fits).to(y.device)[:, None]
        return Walk(
            walk.rows,
            torch.where(mask, y, walk.y),
            torch.where(mask, value, walk.value),
            np.where(fits, there, walk.here),
            length,
        )

    def _brownian_clock(self, clock: Array) -> Array:
        """``cos^(2 eta^2)``, the variance of B so far."""
        found: Array = cosine(tan_of(clock)) ** (2.0 * self.eta**2)
        return found

    def _clock(self, variance: Array) -> Array:
        """The inverse of :meth:`_brownian_clock`."""
        return clock_of(np.sqrt(np.expm1(-np.log(variance) / self.eta**2)))


def _path(noise: NoiseSource, k: int, start: float, end: float) -> BrownianPath:
    """The Brownian motion of the batch's k-th sample between the solve's ends."""
    shape, samples = (1, *noise.shape[1:]), [noise.samples[k]]
    own = NoiseSource(noise.seed, shape, samples=samples, dtype=noise.dtype, device=noise.device)
    return BrownianPath(own, start, end, _DEPTH)


def _coarse(start: Array, goal: Array) -> Array:
    """The goal moved back, by at most a fifth of the way, to a node of [0, 1] high in the tree: cheap to read."""
    bits = np.minimum(np.ceil(-np.log2(0.2 * (goal - start))), _DEPTH)
    return np.floor(goal * 2.0**bits) * 2.0**-bits
