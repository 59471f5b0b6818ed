"""What a sampler is, and the one loop.

A sampler takes a state from the first to the last time of a grid. It is a frozen dataclass of hyper-parameters and
holds neither model nor state. A step sees two levels and the state in the variance-preserving frame of
:mod:`sdediff.dynamics`; time, schedule and scale are the loop's business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.grids import Grid
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite
from sdediff.sde import SDE
from sdediff.types import Level, Solution, Split

Draw = Callable[[int], Tensor]
"""Standard normals of the current step; the argument tells several draws of a step apart."""
Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` after every step (``total`` is 0 where it is unknown)."""


class Sampler(ABC):
    """A method.

    Its properties are read by the law tests and the command line; one that no hyper-parameter changes may be a
    ``ClassVar``.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """The order of convergence in the step: strong for deterministic methods, weak for stochastic ones."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether it draws noise after the start."""

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its own steps (from ``rtol`` and ``atol``) rather than following a grid."""
        return False

    @property
    def grid(self) -> str | Grid:
        """The default grid: a name of ``GRIDS``, or a grid."""
        return "reference"

    @property
    def steps(self) -> int:
        """The default number of steps."""
        return 20

    def rise(self, steps: int) -> int:
        """Return the order to which that of the first of so many steps rises, one a step, from 1.

        It is 1 where every step has the method's own order.
        """
        return 1

    @abstractmethod
    def nfe(self, steps: int, *, clean: bool = True) -> int | None:
        """Count the splits of the state in a solve, or return ``None`` where the tolerance decides.

        A split is one forward of the network, but for networks that are interpolated between the instants of a chain.

        Args:
            steps: number of intervals of the grid.
            clean: whether the last of them ends on the data.
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
            denoise: the denoiser; every call is counted in ``nfe``.
            sde: the process.
            x: ``(B, *shape)`` at the first time.
            grid: float64 times ``(N + 1,)``; a last time of 0 means the data themselves.
            noise: source of this solve's normals.
            path: whether to return the states at all nodes.
            progress: called after every step.

        Raises:
            ValueError: if the method cannot start or end where the grid does.
            FloatingPointError: if the result is not finite.
        """


class StepSampler(Sampler):
    """A method that goes from node to node."""

    @property
    def splits(self) -> int:
        """Splits of the state that a step takes."""
        return 1

    @property
    def lands(self) -> bool:
        """Whether a step may end on the clean level.

        Methods that evaluate the network there, or divide by the step in lambda, may not: their last step returns the
        clean half of the last split.
        """
        return True

    @final
    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Count the splits of the state in a solve; see :meth:`Sampler.nfe`."""
        return self.splits * steps - (self.splits - 1 if clean and not self.lands else 0)

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> Any:
        """What the steps carry from one to the next, before the first, at ``y``: coefficients of the grid, history."""
        return None

    @abstractmethod
    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Any
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
        levels, frame = sde.levels(grid), Frame(denoise, sde)
        y, _, states = walk(self, frame, x, levels, noise, path, progress)
        return finish(to_x(y, levels[-1]), frame, grid, states)


def walk(
    method: StepSampler,
    frame: Frame,
    x: Tensor,
    levels: list[Level[float]],
    noise: NoiseSource,
    path: bool,
    progress: Progress | None,
) -> tuple[Tensor, Any, list[Tensor]]:
    """The loop: from the state ``x`` at the first level to the last.

    Returns:
        The state of the frame there, what the last step handed on, and the states at all nodes if asked for.

    Raises:
        ValueError: if the method cannot start where the levels do.
    """
    if not method.lands and math.isinf(levels[0].half_log_snr):
        raise ValueError(f"{type(method).__name__} cannot start at t = {levels[0].t:g}, where lambda is infinite")
    y = to_y(x, levels[0])
    carry = method.begin(frame, y, levels)
    states = [x] if path else []
    for i, (here, there) in enumerate(pairwise(levels)):
        if there.sigma == 0.0 and not method.lands:
            y = frame(y, here).x0
        else:
            y, carry = method.step(frame, y, here, there, partial(noise.normal, i), carry)
        if path:
            states.append(to_x(y, there))
        if progress is not None:
            progress(i + 1, len(levels) - 1)
    return y, carry, states


class Crossing(Sampler):
    """A method that chooses its own steps between two levels of finite lambda.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        cap: the most forwards of a solve.
    """

    adaptive: ClassVar[bool] = True
    rtol: float
    atol: float
    cap: int

    def report(self, frame: Frame, progress: Progress | None) -> None:
        """Tell the forwards spent so far, before another one.

        Raises:
            FloatingPointError: where the cap allows no more.
        """
        if frame.nfe >= self.cap:
            raise FloatingPointError(
                f"rtol = {self.rtol:g} and atol = {self.atol:g} are not met by {self.cap} forwards; try looser ones, "
                "check the model's output, or give the solver a higher cap"
            )
        if progress is not None:
            progress(frame.nfe, 0)

    @final
    def nfe(self, steps: int, *, clean: bool = True) -> None:
        """Return ``None``: the tolerance decides."""

    @abstractmethod
    def cross(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to another, both of finite lambda."""

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
        frame = Frame(denoise, sde)
        start, end = sde.levels(grid[[0, -1]])
        inner, stop = sde.levels(grid[[0, -1]].clamp(sde.t_min, sde.t_max))
        y = to_y(x, start)
        if inner.angle != stop.angle:
            y = self.cross(frame, y, inner, stop, noise, progress)
        y = frame(y, stop).x0 if end.sigma == 0.0 else y
        result = to_x(y, end)
        return finish(result, frame, grid[[0, -1]], [x, result] if path else [])


def check_tolerances(rtol: float, atol: float, cap: int) -> None:
    """Refuse tolerances that are not positive, and a cap below one forward."""
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    if cap < 1:
        raise ValueError(f"the cap on forwards must be at least 1, not {cap}")


def finish(x: Tensor, frame: Frame, times: Tensor, states: list[Tensor]) -> Solution:
    """Check a result and put it in a :class:`~sdediff.types.Solution`."""
    if not all_finite(x):
        raise FloatingPointError("the solve did not stay finite; try more steps, or check the model's output")
    return Solution(x, frame.nfe, times, torch.stack(states) if states else None)


def bridge_std(here: Level[float], there: Level[float]) -> float:
    """Standard deviation of the state ``there`` given the state ``here`` and x0, in the frame."""
    return math.sqrt(-math.expm1(2.0 * (here.half_log_snr - there.half_log_snr))) * there.sin


def recombine(split: Split, there: Level[float], std: float, draw: Draw, *, mean_std: float | None = None) -> Tensor:
    """``cos x0 + sqrt(sin^2 - std^2) eps + std z`` at the level ``there``: the other half of the one idea.

    Args:
        split: the state taken apart.
        there: the level at which to put it together.
        std: of the fresh noise.
        draw: the fresh noise, drawn only if needed.
        mean_std: the noise that the mean makes room for, where it is not ``std``.
    """
    room = std if mean_std is None else mean_std
    mean = split.mix(there.cos, math.sqrt(max((there.sin - room) * (there.sin + room), 0.0)))
    return mean if std == 0.0 else mean.add(draw(0), alpha=std)
