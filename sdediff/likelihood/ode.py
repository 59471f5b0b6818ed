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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import to_x
from sdediff.grids import Grid, LogSNR, Reference
from sdediff.integrators.torchdiffeq import ADAPTIVE_METHODS
from sdediff.likelihood.augmented import Augmented
from sdediff.likelihood.budget import ErrorBudget, join
from sdediff.likelihood.dequantize import check_items, dequantise, integer_data, log_bin_volume, network_dtype
from sdediff.likelihood.ends import blur_effect, prior_effect
from sdediff.likelihood.orthogonal import OrthogonalTrace
from sdediff.likelihood.path import asks_once_a_node, follow
from sdediff.likelihood.probes import PROBES, ProbeLaw
from sdediff.likelihood.refine import refine
from sdediff.likelihood.trace import ExactTrace, HutchinsonTrace, draw_probes
from sdediff.moments import Moments
from sdediff.noise import NoiseSource
from sdediff.numerics import choose
from sdediff.samplers import SAMPLERS
from sdediff.samplers.base import StepSampler
from sdediff.samplers.relative import Relative
from sdediff.samplers.whitened import Whitened
from sdediff.sampling import GridLike, place
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level

EXACT_UP_TO = 32
"""Dimensions up to which ``trace="auto"`` takes the exact trace, which costs that many backward passes a forward."""
STEPS = 40
"""Steps of the default path: 41 forwards."""

CLIMBER = Relative(4, correct_from=0)
"""The solver of the path towards the noise, where shorter memories are better than on the way down."""
GRID, CHAIN_GRID = Reference(3.5), LogSNR()
"""Denser near the data than on the way down: there the fields of trained networks are rough, and paths start there.
Those of networks trained on a chain have a kink at every instant, and the first instants cover most noise levels:
even steps in log-SNR are the ones that see them all."""
_TOLERANCE = 1e-5
_PATH_ERROR, _DOUBLINGS = 1e-3, {False: 2, True: 4}
"""Bits a dimension of solver error from which an item is solved again where nobody said how many steps, and how often
they are doubled, without and with a target error."""


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: nats, float64 ``(B,)``: the log-density of continuous data; of integer data the log-probability
            seen by one dequantisation, in the mean a lower bound.
        standard_error: nats ``(B,)``, of the probes; 0 for the exact trace.
        latent: the states at ``t_to``, ``(B, *shape)``.
        nfe: forwards of the network, each of them serving value and divergence.
        products: vector-Jacobian products spent on all items together.
        error_budget: the parts of the error; its ``str()`` is a table.
        discrete: whether the data were integers.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: int
    products: int
    error_budget: ErrorBudget
    discrete: bool = False

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits a dimension of integer data, ``(B,)``; smaller is better.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise ValueError("bits/dim exist for integer data only; continuous data have log_prob, in nats")
        return -self.log_prob / (math.log(2.0) * self.latent[0].numel())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end, nats ``(B,)`` each, by all parts of the budget.

        By the probes' standard error it covers what it says. The systematic parts are estimates of a size: that of the
        solver counts twice, the others once; what is mostly noise in a single item does not count.

        Raises:
            ValueError: unless ``0 < confidence < 1``.
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"the confidence must lie in (0, 1), not {confidence}")
        sigmas = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
        size = torch.zeros_like(self.log_prob)
        for name, effect in self.error_budget.systematic.items():
            if not self.error_budget.noisy(name):
                size = size + effect.abs() * (2.0 if name == "solver" else 1.0)
        half = sigmas * torch.hypot(self.standard_error, size)
        return self.log_prob - half, self.log_prob + half


class _Call(NamedTuple):
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


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    solver: str | StepSampler | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: GridLike | None = None,
    trace: str = "auto",
    probes: int = 2,
    noise: str = "rademacher",
    prior: str = "moments",
    t_from: float | None = None,
    t_to: float | None = None,
    target_error: float | None = None,
    differentiable: bool = False,
    data: DataInfo | None = None,
    seed: int = 0,
    draw: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LogLikelihood:
    """Log-likelihood of data under a model, through its probability-flow ODE.

    Args:
        model: a denoiser with its process.
        x: ``(B, *shape)``; floats are continuous data, integers are levels and are dequantised here.
        solver: of the path: a deterministic entry of ``SAMPLERS`` that asks the network once a node (``"ode"``,
            ``"ab4"``, ...), by default the default solver in the form that is best towards the noise; or an adaptive
            method of torchdiffeq (``"dopri5"``), which takes tolerances and keeps its probes along the path.
        steps: intervals of the path, one forward each and one at the end. By default 40, and 80 or 160 for the
            items whose solver error is above 1e-3 bits a dimension.
        rtol: relative tolerance of an adaptive path; tolerances without a solver mean ``"dopri5"``.
        atol: absolute tolerance of the path in the variance-preserving frame and, in nats a dimension, of the
            log-density; one tolerance given alone stands for both.
        grid: where the steps go: a name from ``GRIDS``, a grid, or rising times. By default a grid dense near the data,
            even in log-SNR on a chain.
        trace: ``"exact"``, ``"hutchinson"``, or ``"auto"``: exact up to 32 dimensions, and where it costs no more.
        probes: random probes an item at a node in the mean, from 3 on more where they tell more; two and more signs are
            orthogonal along the path. The stated error is unbiased where the field is a gradient, an upper bound
            elsewhere; that of a single probe rests on the nodes beside it and can be several times too large for a
            network of uneven pixels.
        noise: law of the probes, ``"rademacher"`` or ``"gaussian"``.
        prior: law of the states at ``t_to``: ``"moments"`` for the Gaussian with the data's mean and covariance where
            the model knows them (else the standard one), ``"standard"`` for ``N(0, sigma^2)``.
        t_from: time of the data's end; ``t_min`` by default, for a chain its first instant, below which no network was
            trained.
        t_to: time of the noise's end; ``t_max`` by default.
        target_error: largest error an item may have, in bits/dim for integer data and in nats for continuous: items
            whose solver error is above it are solved again on twice as many steps, up to 16 times as many, and more
            probes are drawn, where they tell most, until the standard error is below it.
        differentiable: let gradients flow from ``log_prob`` (and ``latent``) to ``x``, if it is of floats, and to
            those parameters of the model that require them: those of the very number returned, at three to six
            times the cost, in the memory of one node and the states of all. The errors have none.
        data: levels and range of integer data; the model's own by default.
        seed: probes and dequantisation of item k are functions of ``(seed, first + k, draw)`` alone.
        draw: number of the draw.
        first: index of the first item.
        batch_size: items solved at a time; all by default.
        progress: called as ``progress(done, total)`` after every batch, in items.

    Returns:
        A :class:`LogLikelihood`, in nats.

    Raises:
        ValueError: for options that are unknown or do not go together; for data that are not finite or not of the
            model's shape; for integers outside the levels, or whose levels are unknown.
        FloatingPointError: if a result is not finite.
    """
    check_items(x, model.data)
    info = None if x.is_floating_point() else integer_data(x, model.data if data is None else data)
    exact = choose({"auto": x[0].numel() <= EXACT_UP_TO, "exact": True, "hutchinson": False}, trace, "trace")
    law = choose(PROBES, noise, "law of the probes")
    moments = choose({"moments": model.moments, "standard": None}, prior, "prior")
    size = len(x) if batch_size is None else batch_size
    if size < 1 or probes < 1:
        raise ValueError(f"probes and the batch size must be at least 1, not {probes} and {size}")
    if target_error is not None and not target_error > 0.0:
        raise ValueError(f"the target error must be positive, not {target_error}")
    scale = 1.0 if info is None else math.log(2.0) * x[0].numel()
    volume = 0.0 if info is None else log_bin_volume(info, x.shape[1:])
    dtype = x.dtype if info is None else network_dtype(model)
    ends = _ends(model.sde, t_from, t_to)
    method = _method(solver, steps, rtol, atol, grid)
    target = None if target_error is None else target_error * scale
    dim, least = x[0].numel(), 1 if target is None else 2  # a node must show its own spread to be given more
    call = _Call(
        place=lambda number: _levels(model, method, number, grid, ends),
        method=method,
        law=law,
        # orthogonal ones want signs, a number known beforehand, and two replicates
        trace=OrthogonalTrace if law.orthogonal and target is None and probes > 1 else HutchinsonTrace,
        probes=None if exact or probes >= dim or (target is not None and dim <= EXACT_UP_TO) else max(probes, least),
        moments=moments,
        refinable=_DOUBLINGS[target is not None] if (steps is None or target is not None) and _by_rule(grid) else 0,
        tolerance=_PATH_ERROR * dim * math.log(2.0) if target is None else target,
        target=target,
        parameters=_parameters(model, differentiable, method, target),
    )
    if target is not None and isinstance(method, Augmented):
        raise ValueError("a target error steers a path of steps; an adaptive solver has rtol and atol")
    parts = []
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size]
        source = NoiseSource(seed, batch.shape, first=first + begin, dtype=dtype, device=x.device)
        values = batch if info is None else dequantise(batch, info, source, draw)
        result = _solve(model, values, call, source, draw, steps, call.refinable)
        budget = replace(result.error_budget, scale=scale, unit="nats" if info is None else "bits/dim")
        parts.append(replace(result, log_prob=result.log_prob + volume, error_budget=budget, discrete=info is not None))
        if progress is not None:
            progress(begin + len(batch), len(x))
    return _join(parts)


def _solve(
    model: Denoiser, x0: Tensor, call: _Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
) -> LogLikelihood:
    """One batch of continuous data; the items whose path is too rough once more, on twice as many steps."""
    result = _solve_once(model, x0, call, source, draw, steps, doublings)
    rough = _roughness(result, call) > call.tolerance
    if doublings == 0 or not bool(rough.any()):
        return result
    rows = rough.nonzero()[:, 0].tolist()
    finer = 2 * (STEPS if steps is None else steps)
    again = _solve(model, x0[rows], call, source.subset(rows), draw, finer, doublings - 1)
    return _replace_rows(result, rows, again)


def _roughness(result: LogLikelihood, call: _Call) -> Tensor:
    """What more steps would mend, nats ``(B,)``: each item's own, so that it is solved as if it were alone."""
    systematic = result.error_budget.systematic
    if not systematic:
        return torch.zeros_like(result.log_prob)
    return systematic["solver"] + (systematic["quadrature"] if call.probes is None else 0.0)


def _parameters(
    model: Denoiser, differentiable: bool, method: StepSampler | Augmented, target: float | None
) -> list[Tensor] | None:
    """What gradients flow to, besides the data; ``None`` for no gradients."""
    if not (differentiable and torch.is_grad_enabled()):
        return None
    if isinstance(method, Augmented):
        raise ValueError("gradients need a path of steps: an adaptive solver chooses its own as it goes")
    if target is not None:
        raise ValueError("gradients need the probes to be known beforehand: give probes, not a target error")
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _solve_once(
    model: Denoiser, x0: Tensor, call: _Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
) -> LogLikelihood:
    """With or without gradients, as the call wants them."""
    with torch.set_grad_enabled(call.parameters is not None):
        return _solve_path(model, x0, call, source, draw, steps, doublings)


def _solve_path(
    model: Denoiser, x0: Tensor, call: _Call, source: NoiseSource, draw: int, steps: int | None, doublings: int
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
        exact = ExactTrace(dim=dim, parameters=call.parameters).on(levels, white)
        random = None
        if call.probes is not None:
            random = call.trace(call.law, call.probes, source, draw, parameters=call.parameters).on(levels, white)
        path = follow(model, x0 * start.alpha, levels, call.method, exact if random is None else random, source)
        y, integral, nfe = path.y, path.log_determinant(), path.witness.nfe
        with torch.no_grad():
            error = path.standard_error()
            systematic = {
                "solver": path.defect(),
                "quadrature": path.missed_between_nodes(),
                "t_min": blur_effect(path, model.sde),
                "prior": prior_effect(path, call.moments),
            }
        products = sum(path.witness.trace.plan) * len(x0)
        if call.target is not None and random is not None:
            rough = systematic["solver"] > call.tolerance if doublings > 0 else torch.zeros(len(x0), dtype=torch.bool)
            refined = refine(path, random, exact, source, call.target, rough.to(error.device))
            integral, error = refined.log_determinant, refined.standard_error
            nfe, products = nfe + refined.nfe, products + refined.products
    latent = to_x(y, end)
    log_prob = model.sde.prior_log_prob(latent, t=float(end.t), moments=call.moments)
    log_prob = log_prob + integral + dim * math.log(end.scale * start.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the log-likelihood is not finite; check the data and the model's output")
    return LogLikelihood(log_prob, error, latent, nfe, products, ErrorBudget({"probes": error}, systematic))


def _ends(sde: SDE, t_from: float | None, t_to: float | None) -> tuple[float, float]:
    """The times between which the path runs."""
    first, last = sde.t_data if t_from is None else t_from, sde.t_max if t_to is None else t_to
    if not sde.t_min <= first < last <= sde.t_max:
        raise ValueError(
            f"the path needs {sde.t_min:g} <= t_from < t_to <= {sde.t_max:g}, not t_from = {first:g}, t_to = {last:g}"
        )
    return first, last


def _method(
    solver: str | StepSampler | None, steps: int | None, rtol: float | None, atol: float | None, grid: GridLike | None
) -> StepSampler | Augmented:
    """How the path is solved."""
    tolerances = [value for value in (rtol, atol) if value is not None]
    if solver in ADAPTIVE_METHODS or (solver is None and tolerances):
        if steps is not None or grid is not None:
            raise ValueError("give either steps and a grid, or rtol/atol (adaptive), not both")
        tolerances = (tolerances or [_TOLERANCE]) * 2
        if not all(value > 0.0 for value in tolerances):
            raise ValueError(f"rtol and atol must be positive, not {tolerances[0]} and {tolerances[-1]}")
        return Augmented("dopri5" if solver is None else str(solver), tolerances[0], tolerances[1])
    if tolerances:
        raise ValueError(f"rtol and atol need one of the adaptive solvers {', '.join(ADAPTIVE_METHODS)}, not {solver}")
    if solver is None:
        return CLIMBER
    allowed = {name: method for name, method in SAMPLERS.items() if asks_once_a_node(method)}
    method = choose(allowed, solver, "solver of the likelihood's path") if isinstance(solver, str) else solver
    if not asks_once_a_node(method):
        raise ValueError(
            f"the path needs a deterministic solver of one forward a step, not {type(method).__name__}; "
            f"for example one of: {', '.join(allowed)}"
        )
    return method


def _levels(
    model: Denoiser,
    method: StepSampler | Augmented,
    steps: int | None,
    grid: GridLike | None,
    ends: tuple[float, float],
) -> list[Level[float]]:
    """Of the nodes, rising in noise; of an adaptive path its two ends."""
    if isinstance(method, Augmented):
        return model.sde.levels(list(ends))
    chosen = STEPS if steps is None and (grid is None or isinstance(grid, str)) else steps
    own = GRID if model.sde.instants is None else CHAIN_GRID
    times = place(method, model, chosen, own if grid is None else grid, ends)
    if float(times[0]) > float(times[-1]):
        raise ValueError("the likelihood's path runs from the data to the noise: its times must rise")
    return model.sde.levels(times)


def _by_rule(grid: GridLike | None) -> bool:
    """Whether a grid knows where any number of steps go."""
    return grid is None or isinstance(grid, str | Grid)


def _replace_rows(whole: LogLikelihood, rows: list[int], part: LogLikelihood) -> LogLikelihood:
    """With the figures of some items taken from another result; what was spent on both counts."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_put((torch.tensor(rows, device=old.device),), new)

    def put_all(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: put(values, new[name]) for name, values in old.items()}

    old, new = whole.error_budget, part.error_budget
    budget = replace(old, random=put_all(old.random, new.random), systematic=put_all(old.systematic, new.systematic))
    return replace(
        whole,
        log_prob=put(whole.log_prob, part.log_prob),
        standard_error=put(whole.standard_error, part.standard_error),
        latent=put(whole.latent, part.latent),
        nfe=whole.nfe + part.nfe,
        products=whole.products + part.products,
        error_budget=budget,
    )


def _join(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    return LogLikelihood(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        torch.cat([part.latent for part in parts]),
        sum(part.nfe for part in parts),
        sum(part.products for part in parts),
        join([part.error_budget for part in parts]),
        parts[0].discrete,
    )
