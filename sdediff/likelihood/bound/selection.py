"""Which terms of a bound are taken: every step of a chain, some of them, or levels in continuous time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import Moments
from sdediff.grids import GRIDS
from sdediff.likelihood.bound.chain import Items, Steps, Terms, every_step, reverse_variance, sampled_steps
from sdediff.likelihood.bound.continuous import continuous_terms, strata
from sdediff.likelihood.bound.stratified import CELLS, LAWS, LevelDistribution
from sdediff.numerics import choose
from sdediff.sde import SDE
from sdediff.types import Level

DRAWS = 64
"""Noise levels an item, of the continuous bound by default."""

FIRST_NOISE = 0.4
"""Noise over signal at the data's end of the continuous bound of integers, in bins, by default.

A network trained on dequantised integers takes the place within the bin for data: every unit of lambda below costs it a
nat an entry, which the decoder would have known for nothing.
"""


class Choices(NamedTuple):
    """The part of the call that says which terms are taken; of continuous data the bins have the width 0."""

    steps: float | None
    times: Sequence[float] | Tensor | None
    variance: str
    law: str
    draws: int | None
    samples: int | None
    bin_width: float


class Plan(NamedTuple):
    """How the terms of a batch are found.

    Attributes:
        run: from a denoiser of a batch, and the batch, to its terms.
        last: the level of the prior.
        times: of the rows' ends.
    """

    run: Callable[[Denoiser, Items], Terms]
    last: Level[float]
    times: Tensor


def make_plan(model: Denoiser, chosen: Choices, moments: Moments) -> Plan:
    """How a call is carried out; ``moments`` spread the levels where some are drawn.

    Raises:
        ValueError: for choices that are unknown or do not go together.
    """
    reverse, law = reverse_variance(chosen.variance), choose(LAWS, chosen.law, "law of the levels")
    if chosen.draws is not None and (chosen.draws < 2 or chosen.draws % 2):
        raise ValueError(f"draws come in pairs: an even number of at least 2, not {chosen.draws}")
    sampled = 2 if chosen.samples is None else chosen.samples
    if chosen.steps == math.inf:
        draws = DRAWS if chosen.draws is None else chosen.draws
        first, last = model.sde.levels(_ends(model.sde, chosen.times, chosen.bin_width))
        edges = torch.linspace(first.half_log_snr, last.half_log_snr, CELLS + 1, dtype=torch.float64)
        places = LevelDistribution(edges, law(edges, moments))
        times = model.sde.time(places.half_log_snr(strata(draws)))
        return Plan(lambda own, items: continuous_terms(own, items, first, places, draws, sampled), last, times)
    instants = _instants(model.sde, chosen.steps, chosen.times)
    levels = model.sde.levels(instants)
    steps = Steps(levels, reverse)
    if chosen.draws is None:
        samples = 1 if chosen.samples is None else chosen.samples
        return Plan(lambda own, items: every_step(own, items, steps, samples), levels[-1], instants)
    if len(levels) == 1:
        raise ValueError("a chain of one instant has no steps to sample: leave out draws")
    places, draws = steps.places(law(steps.half_log_snr, moments)), chosen.draws
    return Plan(lambda own, items: sampled_steps(own, items, steps, places, draws, sampled), levels[-1], instants)


def _ends(sde: SDE, times: Sequence[float] | Tensor | None, bin_width: float) -> Tensor:
    """The two ends of the continuous bound."""
    if times is None:
        start = sde.t_data
        if bin_width > 0.0:
            start = max(start, min(float(sde.time(-math.log(FIRST_NOISE * bin_width))), 0.5 * sde.t_max))
        return torch.tensor([start, sde.t_max], dtype=torch.float64)
    ends = torch.as_tensor(times, dtype=torch.float64)
    if ends.shape != (2,) or not 0.0 < float(ends[0]) < float(ends[1]):
        raise ValueError(f"with steps=math.inf the times are the two ends, 0 < t_1 < t_N, not {ends.tolist()}")
    return ends


def _instants(sde: SDE, steps: float | None, times: Sequence[float] | Tensor | None) -> Tensor:
    """``t_1 < ... < t_N``."""
    if times is not None:
        if steps is not None:
            raise ValueError("give either steps or times, not both")
        given = torch.as_tensor(times, dtype=torch.float64)
        if given.ndim != 1 or given.numel() == 0 or not bool((given > 0.0).all() and (given.diff() > 0.0).all()):
            raise ValueError("times must be instants t_1 < ... < t_N above 0, in a row")
        return given
    if steps is None:
        if sde.instants is None:
            raise ValueError(
                f"{type(sde).__name__} is not a chain: give the number of steps, steps=math.inf for continuous time, "
                "or model a DDPM"
            )
        return sde.instants[1:]
    if steps != int(steps):
        raise ValueError(f"steps must be a whole number or math.inf, not {steps}")
    return GRIDS["chain"](sde, int(steps), sde.t_max, 0.0).flip(0)[1:]
