r"""Multistep solvers of the probability-flow ODE and of the reverse SDE: one family.

A method is what it holds, the clock in which that is a polynomial, how many values it remembers, and whether a
corrector redoes the last step once its end has been evaluated, which costs no forward (Zhao et al. 2023). Adams
methods on the angle hold the velocity; DPM-Solver (Lu et al. 2022a) and DEIS (Zhang & Chen 2023) hold epsilon,
DPM-Solver++ (Lu et al. 2022b) and UniPC the sample, all three on the log-SNR. With ``eta > 0`` the same forms solve
the reverse SDE (SDE-DPM-Solver++); noise then limits the weak order to 2, whatever the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import choose
from sdediff.samplers.base import Draw, StepSampler
from sdediff.samplers.coefficients import CLOCKS, RULES, weights
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.held import HELD, Held
from sdediff.types import Level


class Update(NamedTuple):
    """``keep * state + sum of weights * values + std * noise``, newest value first."""

    keep: float
    weights: list[float]
    std: float = 0.0

    def __call__(self, y: Tensor, values: Sequence[Tensor], noise: Draw) -> Tensor:
        """Apply it."""
        y = y if self.keep == 1.0 else self.keep * y
        for weight, value in zip(self.weights, values, strict=True):
            y = y.add(value, alpha=weight)
        return y.add(noise(0), alpha=self.std) if self.std > 0.0 else y


class Memory(NamedTuple):
    """What a step hands to the next: the updates to come, the values seen, the state before the last step."""

    plan: Iterator[tuple[Update, Update | None]]
    values: list[Tensor]
    before: Tensor | None


@dataclass(frozen=True)
class Multistep(StepSampler):
    """Multistep method: one forward a step, lower order while its memory fills.

    Args:
        held: a name of ``HELD``.
        clock: a name of ``CLOCKS``.
        memory: number of values, 1 to 6: the predictor's order.
        rule: a name of ``RULES``: ``"exact"`` integrals, or those of a published formula.
        correct_from: number of steps from which the corrector is used; it raises the order by one, but on few, long
            steps it extrapolates too boldly. ``None`` for never.
        eta: 0 for the ODE, 1 for the reverse SDE, between for the family between.

    Raises:
        ValueError: for unknown names, or a corrector or a held velocity together with noise.
    """

    order: ClassVar[int] = 4
    stochastic: ClassVar[bool] = False

    held: str = "velocity"
    clock: str = "asinh"
    memory: int = 4
    rule: str = "exact"
    correct_from: int | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        choose(HELD, self.held, "held quantity")
        choose(CLOCKS, self.clock, "clock")
        choose(RULES, self.rule, "rule")
        if not 1 <= self.memory <= 6:
            raise ValueError(f"memory must be 1 to 6, not {self.memory}")
        check_eta(self.eta)
        self._held()
        if self.eta > 0.0 and self.correct_from is not None:
            raise ValueError("a corrector would undo the noise of the step it redoes: give it eta = 0")
        predictor = min(self.memory, 2) if self.rule == "halved" else self.memory
        order = min(predictor, 2) if self.eta > 0.0 else predictor + int(self.correct_from is not None)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "stochastic", self.eta > 0.0)

    def begin(self, levels: list[Level[float]]) -> Memory:
        """The updates of every step of the grid, computed once."""
        correct = self.correct_from is not None and len(levels) > self.correct_from
        plan: list[tuple[Update, Update | None]] = []
        for i, (here, there) in enumerate(pairwise(levels)):
            known = levels[max(0, i + 1 - self.memory) : i + 1][::-1]
            redo = None
            if correct and i > 0:
                redo = self._update([here, *levels[max(0, i - self.memory) : i][::-1]], levels[i - 1], here)
            plan.append((self._update(known, here, there), redo))
        return Memory(iter(plan), [], None)

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Draw, carry: Memory
    ) -> tuple[Tensor, Memory]:
        """One forward."""
        predict, correct = next(carry.plan)
        value = self._held().value(denoise(y, here), here)
        if correct is not None and carry.before is not None:
            y = correct(carry.before, [value, *carry.values], noise)
        values = [value, *carry.values[: self.memory - 1]]
        return predict(y, values, noise), Memory(carry.plan, values, None if self.correct_from is None else y)

    def _held(self) -> Held:
        return HELD[self.held](self.eta)

    def _update(self, known: list[Level[float]], here: Level[float], there: Level[float]) -> Update:
        held = self._held()
        factors = weights(held, self.clock, self.rule, known, here, there)
        return Update(held.keep(here, there), factors, held.std(here, there))
