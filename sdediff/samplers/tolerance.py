"""Samplers that choose their own steps, by a tolerance."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.noise import NoiseSource
from sdediff.samplers.base import Progress, Sampler, checked_solution
from sdediff.sde import SDE
from sdediff.types import Level, Solution


class AdaptiveSampler(Sampler):
    """A sampler that chooses its own steps, by a tolerance, between two levels of finite lambda.

    If the solve ends on the data it runs to ``t_min`` and one more forward denoises.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        cap: largest NFE of a solve.
    """

    adaptive: ClassVar[bool] = True
    rtol: float
    atol: float
    cap: int

    def report(self, frame: Frame, progress: Progress | None) -> None:
        """Report the NFE so far, before another forward.

        Raises:
            FloatingPointError: if the NFE has reached the cap.
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
        """Return ``None``: the NFE depends on the tolerance."""

    @abstractmethod
    def integrate(
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
            y = self.integrate(frame, y, inner, stop, noise, progress)
        y = frame(y, stop).x0 if end.sigma == 0.0 else y
        result = to_x(y, end)
        return checked_solution(result, frame, grid[[0, -1]], [x, result] if path else [])


def check_tolerances(rtol: float, atol: float, cap: int) -> None:
    """Refuse tolerances that are not positive, and a cap below one forward."""
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"rtol and atol must be positive, not {rtol} and {atol}")
    if cap < 1:
        raise ValueError(f"the cap on forwards must be at least 1, not {cap}")
