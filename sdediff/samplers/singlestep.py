r"""Singlestep solvers of the probability-flow ODE: one family, the forms of :mod:`sdediff.samplers.exponential`.

A step evaluates the network at its start and at stages inside it, and has no memory. The state at stage ``i``, a
share ``c_i`` of the step in lambda, and at the end come from the exact form of the integrand with the polynomial
through its values at the start and at the latest stages, integrated as in the multistep family:

    stages ()          exponential Euler (DDIM)                                                       order 1
    stages (c,)        DPM-Solver-2 and DPM-Solver++(2S) at c = 1/2; Heun's method at c = 1           order 2
    stages (c, 2/3)    DPM-Solver-3 and DPM-Solver++(3S) at c = 1/3                                   order 3

(Lu et al. 2022a, algorithms 1 and 2; Lu et al. 2022b, algorithm 1.) With epsilon as the integrand, the trapezoidal rule
at ``c = 1`` is Heun's method in sigma / alpha, the deterministic sampler of Karras et al. (2022, algorithm 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import choose, combine
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.clocks import CLOCKS
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.interpolation import RULES, weights
from sdediff.types import Level


@dataclass(frozen=True)
class Singlestep(StepSampler):
    """Singlestep method: a forward at the start of a step and one a stage, no memory.

    Args:
        integrand: name in ``INTEGRANDS``.
        clock: name in ``CLOCKS``.
        stages: positions of the stages, increasing shares of the step in lambda, in (0, 1].
        rule: name in ``RULES``: ``"exact"`` integrals, or those of a published formula.
        values: number of values that a polynomial interpolates: the start's and those of the latest stages.

    Raises:
        ValueError: for unknown names, or stages or values that make no method.
    """

    stochastic: ClassVar[bool] = False
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True

    integrand: str = "sample"
    clock: str = "logsnr"
    stages: tuple[float, ...] = (0.5,)
    rule: str = "exact"
    values: int = 2

    def __post_init__(self) -> None:
        choose(INTEGRANDS, self.integrand, "integrand")
        choose(CLOCKS, self.clock, "clock")
        choose(RULES, self.rule, "rule")
        positions = (0.0, *self.stages)
        if len(positions) > 3 or positions[-1] > 1.0 or not all(a < b for a, b in pairwise(positions)):
            raise ValueError(f"stages must be at most two, increasing, in (0, 1], not {self.stages}")
        if not 2 <= self.values <= 3:
            raise ValueError(f"values must be 2 or 3, not {self.values}")

    @property
    def order(self) -> int:
        third = len(self.stages) == 2 and math.isclose(self.stages[-1], 2.0 / 3.0) and self.rule == "exact"
        return 3 if third else min(1 + len(self.stages), 2)

    @property
    def evaluations(self) -> int:
        return 1 + len(self.stages)

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Any
    ) -> tuple[Tensor, Any]:
        """Take a step; one forward, and one a stage."""
        integrand = INTEGRANDS[self.integrand]()
        width = there.half_log_snr - here.half_log_snr
        levels, values = [here], [integrand.value(denoise(y, here), here)]

        def move(to: Level[float]) -> Tensor:
            """Return the state at ``to``, by the start's value and the latest ones."""
            used = [0, *range(max(1, len(levels) + 1 - self.values), len(levels))]
            factors = weights(integrand, self.clock, self.rule, [levels[k] for k in used], here, to)
            terms = [(factor, values[k]) for factor, k in zip(factors, used, strict=True)]
            return combine([(integrand.keep(here, to), y), *terms])

        for share in self.stages:
            level = there if share == 1.0 else denoise.at_half_log_snr(here.half_log_snr + share * width)
            state = move(level)
            values.append(integrand.value(denoise(state, level), level))
            levels.append(level)
        return move(there), carry
