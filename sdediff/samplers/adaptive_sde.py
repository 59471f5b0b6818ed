r"""Adaptive solver of the reverse SDE: per-sample steps, rejected steps refined on the same Brownian path.

In the variance-preserving frame, with ``c = cos(theta)^(eta^2)``, the reverse process is

    c' y' = c y + (1 + eta^2) int cos^(eta^2) v d theta + B(c'^2) - B(c^2)

with one Brownian motion B on [0, 1], whatever the process: noise that is additive, bounded and exact over steps of any
length (standard normal data have v = 0). A step freezes v (exponential Euler), evaluates the network once at its
end, and corrects by the line through both values (improved Euler); their difference is the error estimate, as in
Jolicoeur-Martineau et al. (2021), but as the velocity at the predicted state is kept, a step costs one forward, not
two. B is a tree of midpoints, a function of (seed, sample) and the solve's ends alone, and steps end on its coarser
nodes: a rejected step is tried again on the same path, and any tolerance solves the same realisation of the SDE.
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
from sdediff.samplers.clocks import FloatArray, IntArray, clock_of, cosine, tan_of
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.interpolation import divided_difference_weights
from sdediff.samplers.per_sample import (
    PerSampleSampler,
    advance_all,
    check_step_lengths,
    clock_of_level,
    levels_at,
    rms,
    rms_of_both,
)
from sdediff.types import Level

_PLANNED = 0.5
"""Error for which a step is planned, in units of the tolerance."""
_POWER = 1.5
"""Order of the estimate in the step: it is the noise in v, of order 1/2, over the step."""
_TREE_DEPTH = 48
"""Depth of the tree: nodes 4e-15 apart, for at t_min the variance left is 1e-12 or more."""


class Step(NamedTuple):
    """Coefficients of one step of every sample, ``(b,)`` each: ``keep y + mass v + gain dB + bend (v' - v)``."""

    keep: FloatArray
    mass: FloatArray
    gain: FloatArray
    bend: FloatArray

    @staticmethod
    def over(here: FloatArray, there: FloatArray, eta: float) -> Step:
        """Compute the coefficients between two clocks."""
        power = eta**2
        start, end = (cosine(tan_of(w)) ** power for w in (here, there))
        mass, moment = (1.0 + power) / end * divided_difference_weights(here, there, here[:, None], 2, power).T
        return Step(start / end, mass, 1.0 / end, moment / (there - here))


class EulerState(NamedTuple):
    """State of the unfinished samples.

    Attributes:
        rows: indices in the batch, ``(b,)``.
        y: states of the frame, ``(b, D)``.
        value: velocities at ``y``, ``(b, D)``.
        here: clocks, ``(b,)``.
        length: length of the next step in the clock, ``(b,)``.
    """

    rows: IntArray
    y: Tensor
    value: Tensor
    here: FloatArray
    length: FloatArray


@dataclass(frozen=True)
class AdaptiveSDE(PerSampleSampler):
    """Adaptive improved Euler for the reverse SDE, with per-sample steps.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Args:
        rtol: relative tolerance, in units of the RMS of a sample.
        atol: absolute tolerance, in units of the data.
        cap: largest NFE of a solve.
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

    def integrate(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to a less noisy one."""
        target = clock_of_level(stop)
        ends = self._brownian_clock(np.array([clock_of_level(start), target])).tolist()
        paths = [_path(noise, k, *ends) for k in range(len(y))]
        value, here = velocity(frame(y, start), start), np.full(len(y), clock_of_level(start))
        # the first step is accurate if the velocity's slope is of its own size
        turn = np.sqrt(2.0 * self.tolerance(rms(flatten(y))))
        length = here - clock_of(np.tan(np.clip(start.angle - turn, 1e-9, None)))

        def advance(state: EulerState) -> EulerState:
            self.report(frame, progress)
            return self._advance(frame, state, paths, y.shape[1:], stop, target)

        state = EulerState(np.arange(len(y)), flatten(y), flatten(value), here, length)
        return advance_all(state, advance, lambda state: state.here == target).reshape(y.shape)

    def _advance(
        self,
        frame: Frame,
        state: EulerState,
        paths: list[BrownianPath],
        shape: torch.Size,
        stop: Level[float],
        target: float,
    ) -> EulerState:
        """Try a step with every sample; rejected samples keep their state and plan a shorter one."""
        there = np.maximum(state.here - state.length, target)
        last = there == target
        low, high = paths[0].start, paths[0].end
        start, goal = (np.clip(self._brownian_clock(w), low, high) for w in (state.here, there))
        node = _to_coarse_node((start - low) / (high - low), (goal - low) / (high - low))
        goal = np.where(last, high, low + (high - low) * node)
        there = np.where(last, target, self._clock(goal))
        step = Step.over(state.here, there, self.eta)
        increments = [
            paths[k].increment(s, t) for k, s, t in zip(state.rows, start.tolist(), goal.tolist(), strict=True)
        ]
        keep, mass, gain, bend = (torch.from_numpy(c).to(state.y)[:, None] for c in step)
        guess = keep * state.y + mass * state.value + gain * flatten(torch.cat(increments))
        level = levels_at(frame.sde, there, last, stop)
        value = flatten(velocity(frame(guess.reshape(-1, *shape), level, state.rows), level))
        change = bend * (value - state.value)
        y = guess + change
        changes, states = rms_of_both(change, state.y)
        error = changes / self.tolerance(states)
        fits = error <= 1.0
        factor = np.clip((_PLANNED / np.maximum(error, 1e-12)) ** (1.0 / _POWER), 0.1, np.where(fits, 4.0, 0.7))
        length = (state.here - there) * factor
        check_step_lengths(length)
        mask = torch.from_numpy(fits).to(y.device)[:, None]
        return EulerState(
            state.rows,
            torch.where(mask, y, state.y),
            torch.where(mask, value, state.value),
            np.where(fits, there, state.here),
            length,
        )

    def _brownian_clock(self, clock: FloatArray) -> FloatArray:
        """Return ``cos^(2 eta^2)``, the variance of B at a clock."""
        found: FloatArray = cosine(tan_of(clock)) ** (2.0 * self.eta**2)
        return found

    def _clock(self, variance: FloatArray) -> FloatArray:
        """Return the clock at a variance of B."""
        return clock_of(np.sqrt(np.expm1(-np.log(variance) / self.eta**2)))


def _path(noise: NoiseSource, k: int, start: float, end: float) -> BrownianPath:
    """Return the Brownian motion of the batch's k-th sample between the solve's ends."""
    shape, samples = (1, *noise.shape[1:]), [noise.samples[k]]
    source = NoiseSource(noise.seed, shape, samples=samples, dtype=noise.dtype, device=noise.device)
    return BrownianPath(source, start, end, _TREE_DEPTH)


def _to_coarse_node(start: FloatArray, goal: FloatArray) -> FloatArray:
    """Move goals back, by at most a fifth of the way, to nodes of [0, 1] high in the tree: cheap to evaluate."""
    bits = np.minimum(np.ceil(-np.log2(0.2 * (goal - start))), _TREE_DEPTH)
    return np.floor(goal * 2.0**bits) * 2.0**-bits
