"""A step is a function of its arguments: taken again with the same ones it gives the same state, to the bit.

So a solve may be stopped anywhere and taken up again, a step refused and retried, and two solves may share a carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, cast

import pytest
import torch
from torch import Tensor

from catalogue import MIXTURE, PROCESSES
from sdediff import SAMPLERS, NoiseSource
from sdediff.dynamics import Frame, to_y, velocity
from sdediff.samplers import StepSampler
from sdediff.samplers.base import Noise
from sdediff.samplers.tuned import AdamsMethod, Tuned
from sdediff.tuning.parameters import Initialisation, SolverParameters
from sdediff.types import Level

MODEL = MIXTURE.model(PROCESSES["vp"])
STEPS = 7


def tuned() -> Tuned:
    return SolverParameters.of(MODEL, STEPS, 1e-3, Initialisation(2.5, AdamsMethod(4, True))).tensors().sampler(MODEL)


BY_STEPS = {name: sampler for name, sampler in SAMPLERS.items() if isinstance(sampler, StepSampler)}
BY_STEPS["tuned"] = tuned()


def is_a_function(sampler: StepSampler) -> bool:
    """Whether every step of a solve, taken twice at once and once more when all is done, gives one and the same."""
    sde, noise = MODEL.sde, NoiseSource(0, (3, 2), dtype=torch.float64)
    times = (
        sampler.grid(sde, STEPS, sde.t_max, 1e-3)
        if isinstance(sampler, Tuned)
        else torch.linspace(1.0, 1e-3, 8, dtype=torch.float64)
    )
    levels, frame = sde.levels(times), Frame(MODEL, sde)
    y = to_y(sde.prior_sample((3, 2), dtype=torch.float64, seed=1), levels[0])
    carry, taken = sampler.begin(frame, y, levels), []
    for i, (here, there) in enumerate(pairwise(levels)):
        take = partial(sampler.step, frame, y, here, there, partial(noise.normal, i), carry)
        ahead, carry = take()
        taken.append((take, ahead.clone()))
        try:
            if not torch.equal(take()[0], ahead):
                return False
        except (StopIteration, ValueError):
            return False
        y = ahead
    return all(torch.equal(take()[0], ahead) for take, ahead in taken)


@pytest.mark.parametrize("name", BY_STEPS)
def test_a_step_is_a_function_of_its_arguments(name: str) -> None:
    assert is_a_function(BY_STEPS[name])


@dataclass(frozen=True)
class Forgetful(StepSampler):
    """Euler's method that reads the widths of its steps from an iterator."""

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> Iterator[float]:
        return iter([there.angle - here.angle for here, there in pairwise(levels)])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: Iterator[float]
    ) -> tuple[Tensor, Iterator[float]]:
        return y + next(carry, 0.0) * velocity(denoise(y, here), here), carry


def test_an_iterator_in_the_carry_is_caught() -> None:
    assert not is_a_function(cast(StepSampler, Forgetful()))
