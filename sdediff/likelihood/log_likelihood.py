r"""The likelihood through the probability-flow ODE.

In the variance-preserving frame ``y = cos(theta) x0 + sin(theta) eps`` the flow is ``dy / d theta = v`` and carries
its density along, ``d log p(y) / d theta = -div v`` (Chen et al. 2018; Song et al. 2021, eq. 39). From the angle of
``t_from`` to that of ``t_to``, where x = scale y has a known Gaussian law,

    log p(x0) = log prior(scale y_to) + D log scale + integral of div v d theta + D log cos(theta_from)

starting at ``y = cos(theta_from) x0``: the density reported is that of ``x0 + tan(theta_from) eps``, the data blurred
by the noise of ``t_from``. Blurring by tau changes an item at order ``tau^2``, a mean over the data at ``tau^4`` only
(tau = 1e-3 at the default ``t_min`` of the linear VP process, 1e-2 for VE).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.data.units import log_scale
from sdediff.denoiser import Denoiser
from sdediff.execution import tf32_products
from sdediff.foreign import NOTHING_TO_DIFFERENTIATE, evaluating
from sdediff.gaussian import prior_moments
from sdediff.likelihood.batch import PathSettings, solve_batch
from sdediff.likelihood.discrete.dequantization import dequantise, log_bin_volume, prepare_items
from sdediff.likelihood.flow.adaptive_ode import AugmentedODE
from sdediff.likelihood.flow.hutchinson import EXACT_UP_TO, PROBES, HutchinsonTrace, OrthogonalTrace, probes_for
from sdediff.likelihood.joining import gather
from sdediff.likelihood.nodes import find_interval, find_levels, find_method, takes_any_steps
from sdediff.likelihood.result import LogLikelihood
from sdediff.microbatches import Microbatches
from sdediff.noise import NoiseSource
from sdediff.numerics import choose
from sdediff.options import LikelihoodOptions, check_count, check_options
from sdediff.progress import reporter
from sdediff.samplers.base import StepSampler
from sdediff.types import DataInfo

_PATH_ERROR, _DOUBLINGS = 1e-3, {False: 2, True: 4}
"""Solver error, bits a dimension, above which an item is solved again where no number of steps is given, and the
largest number of doublings of the steps, without and with a target error."""

_PATH_BYTES, _PATH_BYTES_ON_DEVICE, _ENTRY_BYTES, _MIN_ITEMS = 100_000_000, 1_000_000_000, 110, 8
"""Bytes of the paths of a microbatch on the CPU and on accelerators, bytes of one entry of an item at a node, and the
fewest items of a microbatch, below which forwards of the network are inefficient."""


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    t_from: float | None = None,
    target_error: float | None = None,
    data: DataInfo | None = None,
    draw: int = 0,
    **options: Unpack[LikelihoodOptions],
) -> LogLikelihood:
    """Return the log-likelihood of data under a model, through its probability-flow ODE.

    By default the path has 40 steps, one forward each and one at the end, and 80 or 160 for items whose solver error is
    above 1e-3 bits a dimension, on a grid dense near the data, even in log-SNR on a chain. An adaptive ``atol``
    is the tolerance of the path in the variance-preserving frame and, in nats a dimension, of the log-density;
    tolerances without a solver mean ``"dopri5"``.

    With ``differentiable=True`` gradients flow from ``log_prob`` (and ``latent``) to ``x``, if it is of floats, and to
    those parameters of the model that require them: those of the very number returned, at three to six times the cost,
    in the memory of one node and the states of all. The errors have none.

    Args:
        model: denoiser with its process.
        x: items, ``(B, *shape)``; floats are continuous data, in their own units; integers are levels and are
            dequantised here.
        t_from: time of the data's end; ``t_min`` by default, for a chain its first instant, below which no network was
            trained.
        target_error: largest error an item may have, in bits/dim for integer data and in nats for continuous: items
            whose solver error is above it are solved again on twice as many steps, up to 16 times as many, and more
            probes are drawn, at the nodes of largest variance, until the standard error is below it.
        data: levels and range of integer data; the model's own by default.
        draw: number of the draw of the probes and the dequantisation.
        **options: ``solver``, ``steps``, ``grid``, ``rtol``, ``atol``, ``trace``, ``probes``, ``noise``, ``prior``,
            ``t_to``, ``seed``, ``first``, ``batch_size``, ``progress``, ``condition``, ``execution``,
            ``differentiable`` and ``keep_mode``, see :class:`~sdediff.options.LikelihoodOptions`.

    Returns:
        A :class:`LogLikelihood`, in nats; of continuous data the density is in their own units.

    Raises:
        ValueError: for options that are unknown or do not go together; for data that are not finite or not of the
            model's shape; for integers outside the levels, or whose levels are unknown.
        FloatingPointError: if a result is not finite, or if the stated error of the path exceeds the log-probability of
            more than half of the items of integers: too few steps.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.log_likelihood(model, torch.tensor([[2.0, 0.0]])).log_prob.round(decimals=3)
    tensor([-0.4520], dtype=torch.float64)
    """
    check_options(options, LikelihoodOptions)
    steps, grid, size = options.get("steps"), options.get("grid"), options.get("batch_size")
    seed, first = options.get("seed", 0), options.get("first", 0)
    probes, keep_mode = options.get("probes", 2), options.get("keep_mode", False)
    model, x, info = prepare_items(model, x, data, options)
    if options.get("differentiable", False):  # compiled networks have no second derivative
        model = model.with_execution(replace(model.execution, compile=False))
    dim = x[0].numel()
    _check_numbers(probes, size, target_error)
    count = probes_for(options.get("trace", "auto"), probes, dim)
    law = choose(PROBES, options.get("noise", "rademacher"), "law of the probes")
    moments = prior_moments(options.get("prior", "moments"), model.moments)
    scale = 1.0 if info is None else math.log(2.0) * dim
    dtype = x.dtype if info is None else model.state_dtype
    interval = find_interval(model.sde, t_from, options.get("t_to"))
    method = find_method(options.get("solver"), steps, options.get("rtol"), options.get("atol"), grid)
    target = None if target_error is None else target_error * scale
    if target is not None and count is not None:  # further probes follow each node's own variance
        count = None if dim <= EXACT_UP_TO else max(count, 2)
    refinable = takes_any_steps(grid) and (steps is None or target is not None)
    settings = PathSettings(
        levels=lambda number: find_levels(model, method, number, grid, interval),
        method=method,
        law=law,
        # orthogonal probes need signs, a number fixed beforehand, and two replicates
        trace=OrthogonalTrace if law.orthogonal and target is None and probes > 1 else HutchinsonTrace,
        probes=count,
        moments=moments,
        max_doublings=_DOUBLINGS[target is not None] if refinable else 0,
        tolerance=_PATH_ERROR * dim * math.log(2.0) if target is None else target,
        target=target,
        parameters=_differentiated_tensors(model, x, options.get("differentiable", False), method, target, keep_mode),
    )
    if target is not None and isinstance(method, AugmentedODE):
        raise ValueError("a target error steers a path of steps; an adaptive solver has rtol and atol")
    size = microbatch(len(settings.levels(steps)), dim, x.device) if size is None else size

    progress = reporter(options.get("progress"), "likelihood", "item")

    def batch(begin: int, end: int) -> LogLikelihood:
        items, denoiser = x[begin:end], model.part(begin, end - begin, len(x))
        source = NoiseSource(seed, items.shape, first=first + begin, dtype=dtype, device=x.device)
        with evaluating(model, keep_mode), tf32_products(bool(model.execution.tf32)):
            found = _solve_items(denoiser, items, info, settings, source, draw, steps)
        if progress is not None:
            progress(end, len(x))
        return found

    result = gather(Microbatches(size)(len(x), batch), len(x))
    if info is not None:  # the density of continuous data has no natural size
        result.error_budget.check_path(dim)
    return result


def microbatch(nodes: int, dim: int, device: torch.device) -> int:
    """Return the number of items that are solved together, whose tensors at all nodes take at most ``_PATH_BYTES``."""
    most = _PATH_BYTES if device.type == "cpu" else _PATH_BYTES_ON_DEVICE
    return max(_MIN_ITEMS, most // (_ENTRY_BYTES * nodes * dim))


def _solve_items(
    model: Denoiser,
    x: Tensor,
    info: DataInfo | None,
    settings: PathSettings,
    source: NoiseSource,
    draw: int,
    steps: int | None,
) -> LogLikelihood:
    """Solve one batch, integers by a dequantisation."""
    if info is None:
        result = solve_batch(model, x, settings, source, draw, steps, settings.max_doublings)
        log_prob = result.log_prob - log_scale(model.data)
        budget = replace(result.error_budget, values=log_prob.detach())
        return replace(result, log_prob=log_prob, error_budget=budget)
    result = solve_batch(
        model, dequantise(x, info, source, draw), settings, source, draw, steps, settings.max_doublings
    )
    log_prob = result.log_prob + log_bin_volume(info, x.shape[1:])
    scale = math.log(2.0) * x[0].numel()
    budget = replace(result.error_budget, values=log_prob.detach(), scale=scale, unit="bits/dim")
    return replace(result, log_prob=log_prob, error_budget=budget, discrete=True)


def _check_numbers(probes: int, size: int | None, target_error: float | None) -> None:
    """Refuse counts below 1, and an error that is not positive."""
    check_count("probes", probes)
    if size is not None:
        check_count("batch_size", size)
    if target_error is not None and not target_error > 0.0:
        raise ValueError(f"the target error must be positive, not {target_error}")


def _differentiated_tensors(
    model: Denoiser,
    x: Tensor,
    differentiable: bool,
    method: StepSampler | AugmentedODE,
    target: float | None,
    keep_mode: bool,
) -> list[Tensor] | None:
    """Return the tensors besides the data to which gradients flow; ``None`` for no gradients."""
    if not (differentiable and torch.is_grad_enabled()):
        return None
    if isinstance(method, AugmentedODE):
        raise ValueError("gradients need a path of steps: an adaptive solver chooses its own as it goes")
    if target is not None:
        raise ValueError("gradients need the probes to be known beforehand: give probes, not a target error")
    if keep_mode:
        raise ValueError("gradients need a network that is a function: leave keep_mode out")
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters and not x.requires_grad:
        raise ValueError(NOTHING_TO_DIFFERENTIATE)
    return parameters
