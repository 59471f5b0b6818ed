r"""``log p`` along with a solve from the noise to the data.

A sample is carried from the prior by the flow, and its density with it: with the state ``y`` of the frame at the levels
of ``t_max`` and of the data's end,

    log p(y_end) = log prior(scale y_start) + D log scale - integral of div v d theta

by the path of :mod:`~sdediff.likelihood.flow.path` in the other direction, one forward a node. It ends at the noise
of ``t_min``, and the sample is ``y_end / cos``: its density is that of the data blurred by this much noise, as
:func:`~sdediff.likelihood.log_likelihood.log_likelihood` has it. Beyond, where the noise goes to 0, the flow has no
density that could be followed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import Moments, Whitened
from sdediff.likelihood.flow.hutchinson import PROBES, HutchinsonTrace, probes_for
from sdediff.likelihood.flow.path import asks_once_a_node, follow
from sdediff.likelihood.flow.trace import ExactTrace, Trace
from sdediff.likelihood.nodes import usual_steps
from sdediff.noise import NoiseSource
from sdediff.options import GridLike
from sdediff.samplers import Sampler, StepSampler
from sdediff.samplers.base import Progress
from sdediff.sampling import node_times
from sdediff.types import Level


class DensityOfSamples(NamedTuple):
    """Samples and their densities.

    Attributes:
        x: ``(B, *shape)``.
        log_prob: nats, float64 ``(B,)``.
        standard_error: of the probes, nats ``(B,)``; 0 for the exact trace.
        solver_error: estimated size, nats ``(B,)``.
        nfe: forwards of the network.
    """

    x: Tensor
    log_prob: Tensor
    standard_error: Tensor
    solver_error: Tensor
    nfe: int


class SamplingPath(NamedTuple):
    """How samples are carried down: by a deterministic solver of one forward a node, over falling levels."""

    sampler: StepSampler
    levels: list[Level[float]]


def sampling_path(model: Denoiser, sampler: Sampler, steps: int | None, grid: GridLike | None) -> SamplingPath:
    """From ``t_max`` down to the data's end, by default in as many steps as a likelihood takes.

    Raises:
        ValueError: for another solver; for times that do not start at ``t_max``, do not fall or end below ``t_min``.
    """
    sde = model.sde
    if not asks_once_a_node(sampler):
        raise ValueError(
            "the density along with a sample needs a deterministic solver of one forward a step "
            f"(for example 'ode'), not {type(sampler).__name__}"
        )
    times = node_times(sampler, model, usual_steps(steps, grid), grid, (sde.t_max, sde.t_data))
    first, last = float(times[0]), float(times[-1])
    if not (math.isclose(first, sde.t_max, abs_tol=1e-9) and sde.t_min <= last < first):
        raise ValueError(
            f"samples with their density start at t = {sde.t_max:g} and end at {sde.t_min:g} or above, "
            f"not at {first:g} and {last:g}"
        )
    return SamplingPath(sampler, sde.levels(times))


@torch.no_grad()
def sample_with_density(
    model: Denoiser,
    x: Tensor,
    way: SamplingPath,
    source: NoiseSource,
    *,
    moments: Moments | None = None,
    trace: str = "auto",
    probes: int = 2,
    progress: Progress | None = None,
) -> DensityOfSamples:
    """Carry draws of the prior, and their density, to the data.

    Args:
        model: a denoiser with its process.
        x: draws of the prior, ``(B, *shape)``.
        way: of :func:`sampling_path`.
        source: of the probes.
        moments: of the prior; ``None`` for the standard one.
        trace: ``"exact"``, ``"hutchinson"`` or ``"auto"``.
        probes: Rademacher probes an item at every node.
        progress: called as ``progress(done, total)`` after every step.

    Raises:
        ValueError: for an unknown trace, or a sampler that asks elsewhere than at the nodes.
        FloatingPointError: if a result is not finite.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, not {probes}")
    dim, (start, end) = x[0].numel(), (way.levels[0], way.levels[-1])
    count = probes_for(trace, probes, dim)
    looks: Trace = ExactTrace(dim=dim)
    if count is not None:
        looks = HutchinsonTrace(PROBES["rademacher"], count, source)
    looks = looks.on(way.levels, Whitened(model.moments))
    path = follow(model, x, way.sampler, looks, source, progress)
    log_prob = model.sde.prior_log_prob(x, moments=moments) - path.log_determinant()
    log_prob = log_prob + dim * math.log(start.scale * end.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the samples' density is not finite; try more steps, or check the model's output")
    return DensityOfSamples(path.y / end.cos, log_prob, path.standard_error(), path.defect(), path.witness.nfe)
