"""The choice of a bound's terms: every step of a chain, sampled steps, or levels in continuous time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import Moments
from sdediff.grids import GRIDS
from sdediff.likelihood.bound.chain import BoundBatch, ChainSteps, Terms, every_step, reverse_variance, sampled_steps
from sdediff.likelihood.bound.continuous import continuous_terms, strata
from sdediff.likelihood.bound.stratified import CELLS, LAWS, LevelDistribution
from sdediff.numerics import choose
from sdediff.sde import SDE
from sdediff.types import Level

DRAWS = 64
"""Default number of noise levels an item of the continuous bound."""

FIRST_NOISE = 0.4
"""Default noise over signal at the data's end of the continuous bound of integers, in bins.

A network trained on dequantised integers takes the position within the bin for data: every unit of lambda below costs
it a nat an entry, which the decoder would save.
"""


class BoundOptions(NamedTuple):
    """The options of a call that select the terms; the bin width of continuous data is 0."""

    steps: float | None
    times: Sequence[float] | Tensor | None
    variance: str
    law: str
    draws: int | None
    samples: int | None
    bin_width: float


class SelectedTerms(NamedTuple):
    """The terms of a bound.

    Attributes:
        run: function from a denoiser of a batch, and the batch, to its terms.
        last: level of the prior.
        times: times at the ends of the rows.
    """

    run: Callable[[Denoiser, BoundBatch], Terms]
    last: Level[float]
    times: Tensor


def select_terms(model: Denoiser, options: BoundOptions, moments: Moments) -> SelectedTerms:
    """Select the terms by the options; ``moments`` give the distribution of sampled levels.

    Raises:
        ValueError: for choices that are unknown or do not go together.
    """
    reverse, law = reverse_variance(options.variance), choose(LAWS, options.law, "law of the levels")
    if options.draws is not None and (options.draws < 2 or options.draws % 2):
        raise ValueError(f"draws come in pairs: an even number of at least 2, not {options.draws}")
    sampled = 2 if options.samples is None else options.samples
    if options.steps == math.inf:
        draws = DRAWS if options.draws is None else options.draws
        first, last = model.sde.levels(_continuous_interval(model.sde, options.times, options.bin_width))
        edges = torch.linspace(first.half_log_snr, last.half_log_snr, CELLS + 1, dtype=torch.float64)
        distribution = LevelDistribution(edges, law(edges, moments))
        times = model.sde.time(distribution.half_log_snr(strata(draws)))
        run = partial(continuous_terms, first=first, distribution=distribution, draws=draws, samples=sampled)
        return SelectedTerms(run, last, times)
    instants = _chain_instants(model.sde, options.steps, options.times)
    levels = model.sde.levels(instants)
    steps = ChainSteps(levels, reverse)
    if options.draws is None:
        samples = 1 if options.samples is None else options.samples
        return SelectedTerms(partial(every_step, steps=steps, samples=samples), levels[-1], instants)
    if len(levels) == 1:
        raise ValueError("a chain of one instant has no steps to sample: leave out draws")
    distribution = steps.distribution(law(steps.half_log_snr, moments))
    run = partial(sampled_steps, steps=steps, distribution=distribution, draws=options.draws, samples=sampled)
    return SelectedTerms(run, levels[-1], instants)


def _continuous_interval(sde: SDE, times: Sequence[float] | Tensor | None, bin_width: float) -> Tensor:
    """Return the times at the two ends of the continuous bound."""
    if times is None:
        start = sde.t_data
        if bin_width > 0.0:
            start = max(start, min(float(sde.time(-math.log(FIRST_NOISE * bin_width))), 0.5 * sde.t_max))
        return torch.tensor([start, sde.t_max], dtype=torch.float64)
    ends = torch.as_tensor(times, dtype=torch.float64)
    if ends.shape != (2,) or not 0.0 < float(ends[0]) < float(ends[1]):
        raise ValueError(f"with steps=math.inf the times are the two ends, 0 < t_1 < t_N, not {ends.tolist()}")
    return ends


def _chain_instants(sde: SDE, steps: float | None, times: Sequence[float] | Tensor | None) -> Tensor:
    """Return the instants ``t_1 < ... < t_N`` of a chain."""
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
