"""The log-likelihood of a batch: its path, the parts of the error, and a finer path where the steps were too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import to_x
from sdediff.gaussian import Moments, Whitened
from sdediff.likelihood.flow.adaptive_ode import AugmentedODE, solver_error
from sdediff.likelihood.flow.adaptive_probes import refine
from sdediff.likelihood.flow.hutchinson import HutchinsonTrace, ProbeLaw, draw_probes
from sdediff.likelihood.flow.path import blur_effect, divergence_at_ends, prior_effect, solve_path
from sdediff.likelihood.flow.trace import ExactTrace, Trace
from sdediff.likelihood.joining import replace_rows
from sdediff.likelihood.nodes import DEFAULT_STEPS
from sdediff.likelihood.result import ErrorBudget, LogLikelihood
from sdediff.noise import NoiseSource
from sdediff.samplers.base import StepSampler
from sdediff.types import Level


class PathSettings(NamedTuple):
    """The settings that all items of a call share.

    Attributes:
        levels: function from a number of steps (or ``None``, for the call's own) to the levels of the nodes.
        method: solver of the path.
        law: distribution of the probes.
        trace: estimator of the divergence by random probes.
        probes: number of probes at a node; ``None`` for the exact trace.
        moments: moments of the prior.
        max_doublings: largest number of times that the steps are doubled.
        tolerance: solver error above which they are doubled, nats.
        target: standard error at which no more probes are added, nats; ``None`` for no additional probes.
        parameters: tensors besides the data to which gradients flow; ``None`` for no gradients.
    """

    levels: Callable[[int | None], list[Level[float]]]
    method: StepSampler | AugmentedODE
    law: ProbeLaw
    trace: type[HutchinsonTrace]
    probes: int | None
    moments: Moments | None
    max_doublings: int
    tolerance: float
    target: float | None
    parameters: Sequence[Tensor] | None


def solve_batch(
    model: Denoiser,
    x0: Tensor,
    settings: PathSettings,
    source: NoiseSource,
    draw: int,
    steps: int | None,
    doublings: int,
) -> LogLikelihood:
    """Solve a batch of continuous data, and the items above the tolerance again on twice as many steps."""
    with torch.set_grad_enabled(settings.parameters is not None):
        result = _solve_path(model, x0, settings, source, draw, steps, doublings)
    coarse = _step_error(result, settings) > settings.tolerance
    if doublings == 0 or not bool(coarse.any()):
        return result
    rows = coarse.nonzero()[:, 0].tolist()
    finer = 2 * (DEFAULT_STEPS if steps is None else steps)
    again = solve_batch(model.rows(rows), x0[rows], settings, source.subset(rows), draw, finer, doublings - 1)
    return replace_rows(result, rows, again)


def _step_error(result: LogLikelihood, settings: PathSettings) -> Tensor:
    """Return the error that more steps reduce, nats ``(B,)``, by each item alone, whatever its batch."""
    systematic = result.error_budget.systematic
    if isinstance(settings.method, AugmentedODE):  # whose steps follow its tolerances
        return torch.zeros_like(result.log_prob)
    return systematic["solver"] + (systematic["quadrature"] if settings.probes is None else 0.0)


class _PathResult(NamedTuple):
    """The last state of the frame, the log-determinant, its standard error, other parts of the error, and the cost."""

    y: Tensor
    log_determinant: Tensor
    standard_error: Tensor
    systematic: dict[str, Tensor]
    noise: dict[str, Tensor]
    nfe: int
    products: int


def _solve_path(
    model: Denoiser,
    x0: Tensor,
    settings: PathSettings,
    source: NoiseSource,
    draw: int,
    steps: int | None,
    doublings: int,
) -> LogLikelihood:
    """Solve a batch on one path, in the variance-preserving frame."""
    levels = settings.levels(steps)
    if isinstance(settings.method, AugmentedODE):
        path = _solve_adaptively(model, x0, settings, settings.method, levels, source, draw)
    else:
        path = _solve_by_steps(model, x0, settings, settings.method, levels, source, draw, doublings > 0)
    start, end = levels[0], levels[-1]
    log_prob = _prior(model, path.y, end, settings.moments) + path.log_determinant
    log_prob = log_prob + x0[0].numel() * math.log(end.scale * start.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the log-likelihood is not finite; check the data and the model's output")
    error, latent = path.standard_error, to_x(path.y, end)
    budget = ErrorBudget({"probes": error}, path.systematic, noise=path.noise, values=log_prob.detach())
    return LogLikelihood(log_prob, error, latent, path.nfe, path.products, budget)


def _prior(model: Denoiser, y: Tensor, end: Level[float], moments: Moments | None) -> Tensor:
    """Return the log-density of the prior at the last state of the frame, ``(B,)``."""
    return model.sde.prior_log_prob(to_x(y, end), t=float(end.t), moments=moments)


def _solve_by_steps(
    model: Denoiser,
    x0: Tensor,
    settings: PathSettings,
    method: StepSampler,
    levels: list[Level[float]],
    source: NoiseSource,
    draw: int,
    refinable: bool,
) -> _PathResult:
    """Solve a path over fixed nodes, with a quadrature of the divergence."""
    whitened, dim = Whitened(model.moments), x0[0].numel()
    exact, random = ExactTrace(dim=dim, parameters=settings.parameters), None
    if settings.probes is not None:
        random = settings.trace(settings.law, settings.probes, source, draw, parameters=settings.parameters)
        random = random.at_nodes(levels, whitened)
    trace = exact.at_nodes(levels, whitened) if random is None else random
    path = solve_path(model, x0 * levels[0].alpha, method, trace, source)
    with torch.no_grad():
        systematic = {
            "solver": path.defect(),
            "quadrature": path.quadrature_error(),
            "t_min": blur_effect(path.end(0)),
            "prior": prior_effect(path.end(-1), settings.moments),
        }
        error = path.standard_error()
        noise = {} if random is None else {"quadrature": random.independent_error(path.divergences)}
    nfe, products = path.recorder.nfe, sum(trace.counts) * len(x0)
    if settings.target is None or random is None:
        return _PathResult(path.y, path.log_determinant(), error, systematic, noise, nfe, products)
    coarse = systematic["solver"] > settings.tolerance if refinable else torch.zeros(len(x0), dtype=torch.bool)
    more = refine(path, random, exact.at_nodes(levels, whitened), source, settings.target, coarse.to(error.device))
    spent = nfe + more.nfe, products + more.products
    return _PathResult(path.y, more.log_determinant, more.standard_error, systematic, noise, *spent)


def _solve_adaptively(
    model: Denoiser,
    x0: Tensor,
    settings: PathSettings,
    method: AugmentedODE,
    levels: list[Level[float]],
    source: NoiseSource,
    draw: int,
) -> _PathResult:
    """Solve a path adaptively, at two tolerances, whose difference gives the size of the solver's error.

    There is no quadrature; the divergence at the two ends is for the effects of the blur and the prior.
    """
    start, end = levels[0], levels[-1]
    probes = None if settings.probes is None else draw_probes(settings.law, source, draw, 0, settings.probes)
    fine, loose = (
        solver.solve(model, x0 * start.cos, start, end, probes, settings.law, source)
        for solver in (method, method.looser())
    )
    terms = [(path.integral, _prior(model, path.y, end, settings.moments)) for path in (fine, loose)]
    trace: Trace = ExactTrace(dim=x0[0].numel())
    if settings.probes is not None:
        trace = HutchinsonTrace(settings.law, settings.probes, source, draw)
    trace = trace.at_nodes([start, end], Whitened(model.moments))
    first, last = divergence_at_ends(model, x0 * start.cos, fine.y, trace)
    systematic = {
        "solver": solver_error(*terms),
        "quadrature": torch.zeros_like(fine.integral),
        "t_min": blur_effect(first),
        "prior": prior_effect(last, settings.moments),
    }
    per_forward = x0[0].numel() if probes is None else probes.shape[1]
    spent = fine.nfe + loose.nfe
    nfe = spent + sum(model.nfe(level) for level in (start, end))
    products = per_forward * spent * len(x0)
    return _PathResult(fine.y, fine.integral, fine.standard_error, systematic, {}, nfe, products)
