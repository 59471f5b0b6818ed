"""A batch along its path: solved, looked at, solved again where it is rough, its parts put together."""

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
from sdediff.likelihood.flow.path import blur_effect, divergence_at_ends, follow, prior_effect
from sdediff.likelihood.flow.trace import ExactTrace, Trace
from sdediff.likelihood.nodes import STEPS
from sdediff.likelihood.result import ErrorBudget, LogLikelihood, replace_rows
from sdediff.noise import NoiseSource
from sdediff.samplers.base import StepSampler
from sdediff.types import Level


class Call(NamedTuple):
    """What holds for every item of a call.

    Attributes:
        place: from a number of steps (or none, for the call's own) to the levels of the nodes.
        method: of the path.
        law: of the probes.
        trace: how they are drawn.
        probes: their number at a node; ``None`` for the exact trace.
        moments: of the prior.
        refinable: how often the steps may be doubled.
        tolerance: solver error from which they are, nats.
        target: standard error down to which probes are added, nats; ``None`` for no more.
        parameters: what gradients flow to, besides the data; ``None`` for no gradients.
    """

    place: Callable[[int | None], list[Level[float]]]
    method: StepSampler | AugmentedODE
    law: ProbeLaw
    trace: type[HutchinsonTrace]
    probes: int | None
    moments: Moments | None
    refinable: int
    tolerance: float
    target: float | None
    parameters: Sequence[Tensor] | None


def solve(
    model: Denoiser, x0: Tensor, call: Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
) -> LogLikelihood:
    """One batch of continuous data; the items whose path is too rough once more, on twice as many steps."""
    with torch.set_grad_enabled(call.parameters is not None):
        result = _solve_once(model, x0, call, source, draw, steps, doublings)
    rough = _roughness(result, call) > call.tolerance
    if doublings == 0 or not bool(rough.any()):
        return result
    rows = rough.nonzero()[:, 0].tolist()
    finer = 2 * (STEPS if steps is None else steps)
    again = solve(model.rows(rows), x0[rows], call, source.subset(rows), draw, finer, doublings - 1)
    return replace_rows(result, rows, again)


def _roughness(result: LogLikelihood, call: Call) -> Tensor:
    """What more steps would mend, nats ``(B,)``: each item's own, so that it is solved as if it were alone."""
    systematic = result.error_budget.systematic
    if isinstance(call.method, AugmentedODE):  # which has its tolerances
        return torch.zeros_like(result.log_prob)
    return systematic["solver"] + (systematic["quadrature"] if call.probes is None else 0.0)


class _Solved(NamedTuple):
    """What a path gave: its last state of the frame, the log-determinant, the error's parts, and what it took."""

    y: Tensor
    log_determinant: Tensor
    standard_error: Tensor
    systematic: dict[str, Tensor]
    noise: dict[str, Tensor]
    nfe: int
    products: int


def _solve_once(
    model: Denoiser, x0: Tensor, call: Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
) -> LogLikelihood:
    """In the variance-preserving frame throughout."""
    levels = call.place(steps)
    if isinstance(call.method, AugmentedODE):
        found = _solve_adaptively(model, x0, call, call.method, levels, source, draw)
    else:
        found = _solve_by_steps(model, x0, call, call.method, levels, source, draw, doublings > 0)
    start, end = levels[0], levels[-1]
    log_prob = _prior(model, found.y, end, call.moments) + found.log_determinant
    log_prob = log_prob + x0[0].numel() * math.log(end.scale * start.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the log-likelihood is not finite; check the data and the model's output")
    error, latent = found.standard_error, to_x(found.y, end)
    budget = ErrorBudget({"probes": error}, found.systematic, noise=found.noise, values=log_prob.detach())
    return LogLikelihood(log_prob, error, latent, found.nfe, found.products, budget)


def _prior(model: Denoiser, y: Tensor, end: Level[float], moments: Moments | None) -> Tensor:
    """The log-density of the prior at the last state of the frame, ``(B,)``."""
    return model.sde.prior_log_prob(to_x(y, end), t=float(end.t), moments=moments)


def _solve_by_steps(
    model: Denoiser,
    x0: Tensor,
    call: Call,
    method: StepSampler,
    levels: list[Level[float]],
    source: NoiseSource,
    draw: int,
    refinable: bool,
) -> _Solved:
    """By a path over nodes, and a quadrature along it."""
    white, dim = Whitened(model.moments), x0[0].numel()
    exact, random = ExactTrace(dim=dim, parameters=call.parameters), None
    if call.probes is not None:
        random = call.trace(call.law, call.probes, source, draw, parameters=call.parameters).on(levels, white)
    looks = exact.on(levels, white) if random is None else random
    path = follow(model, x0 * levels[0].alpha, method, looks, source)
    with torch.no_grad():
        systematic = {
            "solver": path.defect(),
            "quadrature": path.missed_between_nodes(),
            "t_min": blur_effect(path.end(0)),
            "prior": prior_effect(path.end(-1), call.moments),
        }
        error = path.standard_error()
        noise = {} if random is None else {"quadrature": random.error_of_independent(path.seen)}
    nfe, products = path.witness.nfe, sum(looks.plan) * len(x0)
    if call.target is None or random is None:
        return _Solved(path.y, path.log_determinant(), error, systematic, noise, nfe, products)
    rough = systematic["solver"] > call.tolerance if refinable else torch.zeros(len(x0), dtype=torch.bool)
    more = refine(path, random, exact.on(levels, white), source, call.target, rough.to(error.device))
    spent = nfe + more.nfe, products + more.products
    return _Solved(path.y, more.log_determinant, more.standard_error, systematic, noise, *spent)


def _solve_adaptively(
    model: Denoiser,
    x0: Tensor,
    call: Call,
    method: AugmentedODE,
    levels: list[Level[float]],
    source: NoiseSource,
    draw: int,
) -> _Solved:
    """By an adaptive solver, twice: what ten times the tolerance changes tells the size of what is missed.

    There is no quadrature; the two ends are looked at for what they tell of the blur and the prior.
    """
    start, end = levels[0], levels[-1]
    kept = None if call.probes is None else draw_probes(call.law, source, draw, 0, call.probes)
    fine, loose = (
        solver.carry(model, x0 * start.cos, start, end, kept, call.law, source) for solver in (method, method.looser())
    )
    terms = [(part.integral, _prior(model, part.y, end, call.moments)) for part in (fine, loose)]
    looks: Trace = ExactTrace(dim=x0[0].numel())
    if call.probes is not None:
        looks = HutchinsonTrace(call.law, call.probes, source, draw)
    path = divergence_at_ends(model, x0 * start.cos, fine.y, looks.on([start, end], Whitened(model.moments)))
    systematic = {
        "solver": solver_error(*terms),
        "quadrature": torch.zeros_like(fine.integral),
        "t_min": blur_effect(path[0]),
        "prior": prior_effect(path[-1], call.moments),
    }
    each = x0[0].numel() if kept is None else kept.shape[1]
    spent = fine.nfe + loose.nfe
    nfe = spent + sum(model.nfe(level) for level in (start, end))
    products = (each * spent + sum(looks.plan)) * len(x0)
    return _Solved(fine.y, fine.integral, fine.standard_error, systematic, {}, nfe, products)
