r"""Methods of torchdiffeq and torchsde as samplers.

torchdiffeq solves the probability-flow ODE ``dy / d theta = v``, torchsde the reverse SDE in lambda, both in the
variance-preserving frame, so that one wrapper serves every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame, diffusion, drift, velocity
from sdediff.integrators import torchdiffeq, torchsde
from sdediff.noise import NoiseSource
from sdediff.numerics import choose
from sdediff.samplers.base import Noise, Progress, StepSampler
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.tolerance import AdaptiveSampler, check_tolerances
from sdediff.types import Level


def _field(frame: Frame, report: Callable[[], None] = lambda: None) -> torchdiffeq.VectorField:
    """Return the right-hand side of the ODE in the form of torchdiffeq's wrapper; it reports before every forward."""

    def field(angle: float, state: torchdiffeq.Components) -> torchdiffeq.Components:
        report()
        level = frame.at_angle(angle)
        return (velocity(frame(state[0], level), level),)

    return field


@dataclass(frozen=True)
class AdaptiveODE(AdaptiveSampler):
    """Adaptive Runge-Kutta on the angle, by torchdiffeq.

    The steps are common to the batch, by the error of its worst sample. If the solve ends on the data it runs to
    ``t_min`` and one more forward denoises.

    Args:
        method: name of the method in torchdiffeq.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the data.
        cap: largest NFE of a solve.
    """

    stochastic: ClassVar[bool] = False

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    cap: int = 10_000

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.cap)
        choose(torchdiffeq.ADAPTIVE_METHODS, self.method, "adaptive method")

    @property
    def order(self) -> int:
        return torchdiffeq.ADAPTIVE_METHODS[self.method]

    def integrate(
        self,
        frame: Frame,
        y: Tensor,
        start: Level[float],
        stop: Level[float],
        noise: NoiseSource,
        progress: Progress | None,
    ) -> Tensor:
        """Take the states ``y`` of the frame from one level to another."""
        field, ends = _field(frame, partial(self.report, frame, progress)), (start.angle, stop.angle)
        (end,) = torchdiffeq.integrate(field, (y,), *ends, method=self.method, rtol=self.rtol, atol=self.atol)
        return end


@dataclass(frozen=True)
class FixedODE(StepSampler):
    """Fixed-step Runge-Kutta on the angle, by torchdiffeq.

    Args:
        method: name of the method in torchdiffeq.
    """

    stochastic: ClassVar[bool] = False
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True

    method: str = "rk4"

    def __post_init__(self) -> None:
        choose(torchdiffeq.FIXED_METHODS, self.method, "fixed-step method")

    @property
    def order(self) -> int:
        return torchdiffeq.FIXED_METHODS[self.method]

    @property
    def evaluations(self) -> int:
        return self.order  # up to order 4 there are as many stages as the order

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step, with as many forwards as the method has stages."""
        return torchdiffeq.integrate(_field(denoise), (y,), here.angle, there.angle, method=self.method)[0], carry


@dataclass(frozen=True)
class ReverseSDE(StepSampler):
    """A method of torchsde on the reverse SDE, in lambda.

    Args:
        method: name of the method in torchsde.
        eta: 1 for the reverse SDE, between 0 and 1 for the family between it and the ODE.
    """

    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True
    steps: ClassVar[int] = 100

    method: str = "euler"
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)
        choose(torchsde.SDE_METHODS, self.method, "torchsde method")

    @property
    def order(self) -> int:
        return torchsde.SDE_METHODS[self.method]

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    @property
    def evaluations(self) -> int:
        return torchsde.DRIFT_EVALUATIONS[self.method]

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step, with as many forwards as the method has stages."""
        width = there.half_log_snr - here.half_log_snr

        def level(tau: float) -> Level[float]:
            return denoise.at_half_log_snr(here.half_log_snr + tau * width)

        def f(tau: float, state: Tensor) -> Tensor:
            at = level(tau)
            return width * drift(state, denoise(state, at), at, self.eta)

        def g(tau: float) -> float:
            return math.sqrt(width) * float(diffusion(level(tau), self.eta))

        return torchsde.step(f, g, y, noise, method=self.method), carry
