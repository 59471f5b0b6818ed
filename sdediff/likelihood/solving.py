"""A batch along its path: solved, looked at, solved again where it is rough, its parts put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import to_x
from sdediff.likelihood.augmented import Augmented
from sdediff.likelihood.budget import ErrorBudget
from sdediff.likelihood.ends import blur_effect, prior_effect
from sdediff.likelihood.path import follow
from sdediff.likelihood.probes import ProbeLaw
from sdediff.likelihood.refine import refine
from sdediff.likelihood.result import LogLikelihood, replace_rows
from sdediff.likelihood.route import STEPS
from sdediff.likelihood.trace import ExactTrace, HutchinsonTrace, draw_probes
from sdediff.moments import Moments
from sdediff.noise import NoiseSource
from sdediff.samplers.base import StepSampler
from sdediff.samplers.whitened import Whitened
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
    method: StepSampler | Augmented
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
    if not systematic:
        return torch.zeros_like(result.log_prob)
    return systematic["solver"] + (systematic["quadrature"] if call.probes is None else 0.0)


def _solve_once(
    model: Denoiser, x0: Tensor, call: Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
) -> LogLikelihood:
    """In the variance-preserving frame throughout."""
    levels, dim = call.place(steps), x0[0].numel()
    start, end = levels[0], levels[-1]
    if isinstance(call.method, Augmented):
        kept = None if call.probes is None else draw_probes(call.law, source, draw, 0, call.probes)
        y, integral, error, nfe = call.method.carry(model, x0 * start.cos, start, end, kept, call.law)
        products = nfe * (dim if call.probes is None else call.probes) * len(x0)
        systematic: dict[str, Tensor] = {}
    else:
        white = Whitened(model.moments)
        exact, random = ExactTrace(dim=dim, parameters=call.parameters), None
        if call.probes is not None:
            random = call.trace(call.law, call.probes, source, draw, parameters=call.parameters).on(levels, white)
        looks = exact.on(levels, white) if random is None else random
        path = follow(model, x0 * start.alpha, call.method, looks, source)
        y, integral, nfe = path.y, path.log_determinant(), path.witness.nfe
        with torch.no_grad():
            error = path.standard_error()
            systematic = {
                "solver": path.defect(),
                "quadrature": path.missed_between_nodes(),
                "t_min": blur_effect(path.end(0)),
                "prior": prior_effect(path.end(-1), call.moments),
            }
        products = sum(looks.plan) * len(x0)
        if call.target is not None and random is not None:
            rough = systematic["solver"] > call.tolerance if doublings > 0 else torch.zeros(len(x0), dtype=torch.bool)
            refined = refine(path, random, exact.on(levels, white), source, call.target, rough.to(error.device))
            integral, error = refined.log_determinant, refined.standard_error
            nfe, products = nfe + refined.nfe, products + refined.products
    latent = to_x(y, end)
    log_prob = model.sde.prior_log_prob(latent, t=float(end.t), moments=call.moments)
    log_prob = log_prob + integral + dim * math.log(end.scale * start.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the log-likelihood is not finite; check the data and the model's output")
    return LogLikelihood(log_prob, error, latent, nfe, products, ErrorBudget({"probes": error}, systematic))
