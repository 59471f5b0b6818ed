"""Samplers: their interface and the loop over the levels of a grid.

A sampler takes a state from the first to the last time of a grid. It is a frozen dataclass of hyper-parameters and
holds neither model nor state. A step sees two levels and the state in the variance-preserving frame of
:mod:`sdediff.dynamics`; the loop translates from time, schedule and scale.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.grids import Grid
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite
from sdediff.parametrization import Prediction
from sdediff.samplers.plausible import PlausibleFrame, has_long_steps
from sdediff.sde import SDE
from sdediff.types import Level, Solution

Noise = Callable[[int], Tensor]
"""Standard normals of the current step; the argument numbers the draws of a step."""
Progress = Callable[[int, int], None]
"""Callback ``progress(done, total)`` after every step (``total`` is 0 where it is unknown)."""


class Sampler(ABC):
    """A numerical method that takes a state from one time to another.

    Its properties are read by the law tests and the command line; one that depends on no hyper-parameter may be a
    ``ClassVar``.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence in the step: strong for deterministic methods, weak for stochastic ones."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Tell whether noise is drawn after the start."""

    @property
    def adaptive(self) -> bool:
        """Tell whether the steps are chosen by ``rtol`` and ``atol`` rather than by a grid."""
        return False

    @property
    def needs_short_steps(self) -> bool:
        """Tell whether the method was made for steps over which the noise falls by a small factor.

        On longer ones clean halves are held against the data (:mod:`sdediff.samplers.plausible`), and grids on which
        it diverges are refused (:mod:`sdediff.samplers.stability`).
        """
        return False

    @property
    def grid(self) -> str | Grid:
        """Default grid: a name in ``GRIDS``, or a grid."""
        return "reference"

    def grid_for(self, prediction: Prediction) -> str | Grid:
        """Return the default grid for networks of a prediction."""
        return self.grid

    @property
    def steps(self) -> int:
        """Default number of steps."""
        return 20

    def startup_order(self, steps: int) -> int:
        """Return the order that the first of ``steps`` steps build up to, from 1, one a step.

        It is 1 where every step has the method's own order.
        """
        return 1

    def for_model(
        self, model: Denoiser, shape: Sequence[int], steps: int | None, interval: tuple[float, float]
    ) -> Sampler:
        """Return the sampler of a solve by one model: itself, unless it is chosen for the model.

        Args:
            model: denoiser.
            shape: shape of the states, ``(B, *shape)``.
            steps: number of steps, where the user gives one.
            interval: times at which the solve starts and ends.
        """
        return self

    @abstractmethod
    def nfe(self, steps: int, *, clean: bool = True) -> int | None:
        """Return the NFE of a solve, or ``None`` where it depends on the tolerance.

        One evaluation of the denoiser is one forward of the network, except for networks that are interpolated between
        the instants of a chain.

        Args:
            steps: number of intervals of the grid.
            clean: whether the last interval ends on the data.
        """

    @abstractmethod
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
        """Take the state ``x`` at ``grid[0]`` to ``grid[-1]``.

        Args:
            denoise: denoiser; every call is counted in ``nfe``.
            sde: forward process.
            x: state ``(B, *shape)`` at the first time.
            grid: float64 times ``(N + 1,)``; a last time of 0 means the data themselves.
            noise: source of this solve's normals.
            path: whether to return the states at all nodes.
            progress: callback after every step.

        Raises:
            ValueError: if the method cannot start or end where the grid does.
            FloatingPointError: if the result is not finite.
        """


class StepSampler(Sampler):
    """A sampler that steps from node to node of a grid."""

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the denoiser in a step."""
        return 1

    @property
    def ends_clean(self) -> bool:
        """Tell whether a step may end on the clean level.

        Methods that evaluate the network there, or divide by the step in lambda, may not: their last step returns the
        clean half of the last state.
        """
        return True

    @final
    def frame(self, denoise: Denoiser, sde: SDE, levels: list[Level[float]]) -> Frame:
        """Return the denoiser of a solve in the frame, with clean halves held against the data on long steps."""
        return (PlausibleFrame if self.needs_short_steps and has_long_steps(levels) else Frame)(denoise, sde)

    @final
    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Return the NFE of a solve; see :meth:`Sampler.nfe`."""
        return self.evaluations * steps - (self.evaluations - 1 if clean and not self.ends_clean else 0)

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> Any:
        """Return the value carried from step to step, before the first: coefficients of the grid, history."""
        return None

    @abstractmethod
    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take the state ``y`` of the frame from the level ``here`` to the level ``there``."""

    @final
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
        """Take the state ``x`` at ``grid[0]`` to ``grid[-1]``; see :meth:`Sampler.sample`."""
        levels = sde.levels(grid)
        frame = self.frame(denoise, sde, levels)
        y, _, states = take_steps(self, frame, x, levels, noise, path, progress)
        return checked_solution(to_x(y, levels[-1]), frame, grid, states)


def take_steps(
    method: StepSampler,
    frame: Frame,
    x: Tensor,
    levels: list[Level[float]],
    noise: NoiseSource,
    path: bool,
    progress: Progress | None,
) -> tuple[Tensor, Any, list[Tensor]]:
    """Take the state ``x`` from the first level to the last, one step an interval.

    Returns:
        The state of the frame there, the value carried by the last step, and the states at all nodes if asked for.

    Raises:
        ValueError: if the method cannot start where the levels do.
    """
    if not method.ends_clean and math.isinf(levels[0].half_log_snr):
        raise ValueError(f"{type(method).__name__} cannot start at t = {levels[0].t:g}, where lambda is infinite")
    y = to_y(x, levels[0])
    carry = method.begin(frame, y, levels)
    states = [x] if path else []
    for i, (here, there) in enumerate(pairwise(levels)):
        if there.sigma == 0.0 and not method.ends_clean:
            y = frame(y, here).x0
        else:
            y, carry = method.step(frame, y, here, there, partial(noise.normal, i), carry)
        if path:
            states.append(to_x(y, there))
        if progress is not None:
            progress(i + 1, len(levels) - 1)
    return y, carry, states


def checked_solution(x: Tensor, frame: Frame, times: Tensor, states: list[Tensor]) -> Solution:
    """Check that a result is finite and return it as a :class:`~sdediff.types.Solution`."""
    if not all_finite(x):
        raise FloatingPointError("the solve did not stay finite; try more steps, or check the model's output")
    return Solution(x, frame.nfe, times, torch.stack(states) if states else None)
