r"""The log-density of samples, from one solve of the noise to the data.

The flow takes a sample and its density from the prior to the data: with the state ``y`` of the frame at the levels
of ``t_max`` and of the data's end,

    log p(y_end) = log prior(scale y_start) + D log scale - integral of div v d theta

by the path of :mod:`~sdediff.likelihood.flow.path` in the other direction, one forward a node. It ends at the noise
of ``t_min``, and the sample is ``y_end / cos``: its density is that of the data blurred by this much noise, as in
:func:`~sdediff.likelihood.log_likelihood.log_likelihood`. Beyond, where the noise goes to 0, the flow has no density.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import Moments, Whitened
from sdediff.likelihood.flow.hutchinson import PROBES, HutchinsonTrace, probes_for
from sdediff.likelihood.flow.path import evaluates_once_per_node, solve_path
from sdediff.likelihood.flow.trace import ExactTrace, Trace
from sdediff.likelihood.nodes import path_steps
from sdediff.noise import NoiseSource
from sdediff.options import GridLike
from sdediff.parametrization import check_signal
from sdediff.samplers import Sampler, StepSampler
from sdediff.samplers.base import Progress
from sdediff.sampling import node_times
from sdediff.types import Level


class DensityOfSamples(NamedTuple):
    """Samples and their densities.

    Attributes:
        x: samples, ``(B, *shape)``.
        log_prob: log-densities, nats, float64 ``(B,)``.
        standard_error: standard errors of the probes, nats ``(B,)``; 0 for the exact trace.
        solver_error: estimated sizes of the solver's error, nats ``(B,)``.
        nfe: forwards of the network.
    """

    x: Tensor
    log_prob: Tensor
    standard_error: Tensor
    solver_error: Tensor
    nfe: int


class SamplingPath(NamedTuple):
    """A deterministic solver of one forward a node, and the falling levels of its nodes."""

    sampler: StepSampler
    levels: list[Level[float]]


def sampling_path(model: Denoiser, sampler: Sampler, steps: int | None, grid: GridLike | None) -> SamplingPath:
    """Return the path from ``t_max`` to the data's end, by default with the number of steps of a likelihood.

    Raises:
        ValueError: for another solver; for times that do not start at ``t_max``, do not fall or end below ``t_min``.
    """
    sde = model.sde
    if not evaluates_once_per_node(sampler):
        raise ValueError(
            "the density along with a sample needs a deterministic solver of one forward a step "
            f"(for example 'ode'), not {type(sampler).__name__}"
        )
    times = node_times(sampler, model, path_steps(steps, grid), grid, (sde.t_max, sde.t_data))
    first, last = float(times[0]), float(times[-1])
    if not (math.isclose(first, sde.t_max, abs_tol=1e-9) and sde.t_min <= last < first):
        raise ValueError(
            f"samples with their density start at t = {sde.t_max:g} and end at {sde.t_min:g} or above, "
            f"not at {first:g} and {last:g}"
        )
    check_signal(model.prediction, sde, first)
    return SamplingPath(sampler, sde.levels(times))


@torch.no_grad()
def sample_with_density(
    model: Denoiser,
    x: Tensor,
    sampling: SamplingPath,
    source: NoiseSource,
    *,
    moments: Moments | None = None,
    trace: str = "auto",
    probes: int = 2,
    progress: Progress | None = None,
) -> DensityOfSamples:
    """Solve from draws of the prior to the data, with the log-density.

    Args:
        model: denoiser with its process.
        x: draws of the prior, ``(B, *shape)``.
        sampling: result of :func:`sampling_path`.
        source: noise source of the probes.
        moments: moments of the prior; ``None`` for the standard one.
        trace: divergence, as in :func:`~sdediff.likelihood.log_likelihood.log_likelihood`.
        probes: number of Rademacher probes an item at every node.
        progress: function called as ``progress(done, total)`` after every step.

    Raises:
        ValueError: for an unknown trace, or a sampler that evaluates elsewhere than at the nodes.
        FloatingPointError: if a result is not finite.
    """
    dim, (start, end) = x[0].numel(), (sampling.levels[0], sampling.levels[-1])
    count = probes_for(trace, probes, dim)
    estimator: Trace = ExactTrace(dim=dim)
    if count is not None:
        estimator = HutchinsonTrace(PROBES["rademacher"], count, source)
    estimator = estimator.at_nodes(sampling.levels, Whitened(model.moments))
    path = solve_path(model, x, sampling.sampler, estimator, source, progress)
    log_prob = model.sde.prior_log_prob(x, moments=moments) - path.log_determinant()
    log_prob = log_prob + dim * math.log(start.scale * end.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the samples' density is not finite; try more steps, or check the model's output")
    return DensityOfSamples(path.y / end.cos, log_prob, path.standard_error(), path.defect(), path.recorder.nfe)
