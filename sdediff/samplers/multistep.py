r"""Multistep solvers of the probability-flow ODE and of the reverse SDE: one family.

A method is defined by its integrand (:mod:`sdediff.samplers.exponential`), the clock in which that is a polynomial, the
number of values in its memory, and whether a corrector redoes the last step once its end has been evaluated, which
costs no forward (Zhao et al. 2023). Adams methods on the angle integrate the velocity; DPM-Solver (Lu et al. 2022a) and
DEIS (Zhang & Chen 2023) epsilon, DPM-Solver++ (Lu et al. 2022b) and UniPC the sample, all three on the log-SNR. With
``eta > 0`` the same forms solve the reverse SDE (SDE-DPM-Solver++); noise then limits the weak order to 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.numerics import choose, combine
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.clocks import CLOCKS, FloatArray
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.interpolation import RULES, weights
from sdediff.types import Level


class Term(NamedTuple):
    """Past value ``factor * tensor``: multiplying the factor into the weight saves a pass over the tensor."""

    tensor: Tensor
    factor: float = 1.0


class MultistepUpdate(NamedTuple):
    """``keep * state + sum of weights * values + std * noise``, newest value first."""

    keep: float
    weights: Sequence[float]
    std: float = 0.0

    def __call__(self, y: Tensor, values: Sequence[Term], noise: Noise) -> Tensor:
        """Apply the update to the state ``y``."""
        terms = [(self.keep, y)]
        terms += [(weight * term.factor, term.tensor) for weight, term in zip(self.weights, values, strict=True)]
        return combine([*terms, (self.std, noise(0))] if self.std > 0.0 else terms)


class MultistepHistory(NamedTuple):
    """Updates of the whole grid, the number of them done, and the past values, newest first."""

    updates: Sequence[MultistepUpdate]
    done: int
    values: list[Term]


@dataclass(frozen=True)
class Multistep(StepSampler):
    """Multistep method: one forward a step, lower order while its memory fills.

    Args:
        integrand: name in ``INTEGRANDS``.
        clock: name in ``CLOCKS``.
        memory: number of values, 1 to 6: the predictor's order.
        rule: name in ``RULES``: ``"exact"`` integrals, or those of a published formula.
        correct_from: number of steps from which the corrector is used; it raises the order by one, but on few, long
            steps it extrapolates too boldly. ``None`` for never.
        eta: 0 for the ODE, 1 for the reverse SDE, between for the family between.

    Raises:
        ValueError: for unknown names, or a corrector together with noise.
    """

    needs_short_steps: ClassVar[bool] = True

    integrand: str = "velocity"
    clock: str = "asinh"
    memory: int = 4
    rule: str = "exact"
    correct_from: int | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        choose(INTEGRANDS, self.integrand, "integrand")
        choose(CLOCKS, self.clock, "clock")
        choose(RULES, self.rule, "rule")
        if not 1 <= self.memory <= 6:
            raise ValueError(f"memory must be 1 to 6, not {self.memory}")
        check_eta(self.eta)
        if self.eta > 0.0 and self.correct_from is not None:
            raise ValueError("a corrector would undo the noise of the step it redoes: give it eta = 0")

    @property
    def order(self) -> int:
        predictor = min(self.memory, 2) if self.rule == "halved" else self.memory
        return min(predictor, 2) if self.stochastic else predictor + int(self.correct_from is not None)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def startup_order(self, steps: int) -> int:
        """Return the order of the predictor; see :meth:`~sdediff.samplers.base.Sampler.startup_order`."""
        return self.order - int(self.correct_from is not None)

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> MultistepHistory:
        """Compute the updates of every step of the grid."""
        return MultistepHistory(_multistep_updates(self, tuple(levels)), 0, [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: MultistepHistory
    ) -> tuple[Tensor, MultistepHistory]:
        """Take a step; one forward."""
        update = carry.updates[carry.done]
        value = Term(*denoise(y, here).direction(*INTEGRANDS[self.integrand](self.eta).factors(here)))
        values = [value, *carry.values][: len(update.weights)]
        return update(y, values, noise), MultistepHistory(carry.updates, carry.done + 1, values)


@lru_cache(maxsize=64)
def _multistep_updates(method: Multistep, levels: tuple[Level[float], ...]) -> tuple[MultistepUpdate, ...]:
    """Compute the updates of every step of a grid, once for all solves on it."""
    integrand = INTEGRANDS[method.integrand](method.eta)
    correct = method.correct_from is not None and len(levels) > method.correct_from

    def weigh(nodes: Sequence[Level[float]], here: Level[float], there: Level[float]) -> FloatArray:
        return np.array(weights(integrand, method.clock, method.rule, nodes, here, there))

    steps = len(levels) - 1
    factors = adams(levels, [method.memory] * steps, [correct] * steps, weigh, integrand.keep)
    return tuple(
        MultistepUpdate(integrand.keep(here, there), row.tolist(), integrand.std(here, there))
        for row, (here, there) in zip(factors, pairwise(levels), strict=True)
    )


def adams(
    levels: Sequence[Level[float]],
    memory: Sequence[int],
    correct: Sequence[bool],
    weigh: Callable[[Sequence[Level[float]], Level[float], Level[float]], FloatArray],
    keep: Callable[[Level[float], Level[float]], float | FloatArray],
) -> list[FloatArray]:
    """Return the weights of the past values in every step of a grid, newest first.

    A corrector replaces the predicted state ``y_p = keep y + p . v`` by ``y_c = keep y + c . v``, so it starts the next
    predictor from ``y_c = y_p + (c - p) . v``. That is an update from the predicted state with one more value: the
    corrected state is never computed, nor the one before kept.

    Args:
        levels: levels of the grid.
        memory: number of values that the predictor of each step uses, not increasing; a corrector uses one more.
        correct: whether each step corrects the one before.
        weigh: function ``(levels of the values, here, there) -> weights`` of a step.
        keep: function ``(here, there) ->`` factor of the state.
    """
    updates: list[FloatArray] = []
    before = np.empty(0)
    for i, (here, there) in enumerate(pairwise(levels)):
        factors = predict = weigh(levels[max(0, i + 1 - memory[i]) : i + 1][::-1], here, there)
        if correct[i] and i > 0:
            change = weigh([here, *levels[max(0, i - memory[i - 1]) : i][::-1]], levels[i - 1], here)
            change[1:] -= before
            factors = keep(here, there) * change
            factors[: len(predict)] += predict
        updates.append(factors)
        before = predict
    return updates
