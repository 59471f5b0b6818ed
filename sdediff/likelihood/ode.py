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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, velocity
from sdediff.grids import GRIDS
from sdediff.integrators.torchdiffeq import ADAPTIVE_METHODS, FIXED_METHODS, integrate
from sdediff.likelihood.dequantize import check_items, dequantise, integer_data, log_bin_volume, network_dtype
from sdediff.likelihood.divergence import PROBES
from sdediff.likelihood.trace import ExactTrace, HutchinsonTrace, Trace
from sdediff.moments import Moments
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, expand
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level

EXACT_UP_TO = 32
"""Dimensions up to which ``trace="auto"`` takes the exact trace, which costs that many backward passes a forward."""

_TOLERANCE = {True: 1e-5, False: 1e-4}  # exact or not: beside the noise of probes a tighter path is wasted


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: nats, float64 ``(B,)``: the log-density of continuous data; of integer data the log-probability
            seen by one dequantisation, in the mean a lower bound.
        standard_error: nats ``(B,)``, of the probes; 0 for the exact trace.
        latent: the states at ``t_to``, ``(B, *shape)``.
        nfe: forwards of the network, each of them serving value and divergence.
        discrete: whether the data were integers.
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: int
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


class _Path(NamedTuple):
    """How a path is solved, and between which levels."""

    start: Level[float]
    end: Level[float]
    method: str
    nodes: list[float] | None
    rtol: float
    atol: float


def log_likelihood(
    model: Denoiser,
    x: Tensor,
    *,
    solver: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    grid: str = "reference",
    trace: str = "auto",
    probes: int = 2,
    noise: str = "rademacher",
    prior: str = "moments",
    t_from: float | None = None,
    t_to: float | None = None,
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
        solver: a method of torchdiffeq; ``"dopri5"`` by default, ``"rk4"`` where ``steps`` are given.
        steps: intervals of a fixed grid, on each of which the method spends its stages.
        rtol: relative tolerance of the path; by default 1e-5 with the exact trace, 1e-4 with probes.
        atol: absolute tolerance of the path in the variance-preserving frame and, in nats a dimension, of the
            log-density; the same default.
        grid: where fixed steps go, a name from ``GRIDS``.
        trace: ``"exact"``, ``"hutchinson"``, or ``"auto"``: exact up to 32 dimensions.
        probes: Hutchinson probes a sample, each kept along the whole path. With a single Rademacher probe the standard
            error is an upper bound; otherwise it is unbiased where the field is a gradient, an upper bound elsewhere.
        noise: law of the probes, ``"rademacher"`` or ``"gaussian"``.
        prior: law of the states at ``t_to``: ``"moments"`` for the Gaussian with the data's mean and covariance where
            the model knows them (else the standard one), ``"standard"`` for ``N(0, sigma^2)``.
        t_from: time of the data's end; ``t_min`` by default.
        t_to: time of the noise's end; ``t_max`` by default.
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
    path = _place(model.sde, solver, steps, rtol, atol, _TOLERANCE[exact], grid, t_from, t_to)
    law = choose(PROBES, noise, "law of the probes")
    moments = choose({"moments": model.moments, "standard": None}, prior, "prior")
    size = len(x) if batch_size is None else batch_size
    if size < 1 or probes < 1:
        raise ValueError(f"probes and the batch size must be at least 1, not {probes} and {size}")
    volume = 0.0 if info is None else log_bin_volume(info, x.shape[1:])
    dtype = x.dtype if info is None else network_dtype(model)
    parts = []
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size]
        source = NoiseSource(seed, batch.shape, first=first + begin, dtype=dtype, device=x.device)
        values = batch if info is None else dequantise(batch, info, source, draw)
        how = ExactTrace() if exact else HutchinsonTrace.draw(law, probes, source, draw * probes)
        result = _solve(model, values, path, how, moments)
        parts.append(replace(result, log_prob=result.log_prob + volume, discrete=info is not None))
        if progress is not None:
            progress(begin + len(batch), len(x))
    return _join(parts)


def _solve(model: Denoiser, x0: Tensor, path: _Path, trace: Trace, moments: Moments | None) -> LogLikelihood:
    """One batch of continuous data along its path, in the variance-preserving frame throughout."""
    frame, dtype, dim = Frame(model, model.sde), x0.dtype, x0[0].numel()

    def field(angle: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        level = frame.at_angle(angle)
        rates = trace.rates(lambda y: velocity(frame(y, level), level), state[0].to(dtype))
        if not bool(torch.isfinite(rates[0]).all()):
            raise FloatingPointError(f"the model's output is not finite at t = {level.t:g}")
        return rates

    y = x0.detach() * expand(path.start.cos, x0)
    with torch.no_grad():
        y, *components = integrate(
            field,
            (y, *trace.start(y)),
            float(path.start.angle),
            float(path.end.angle),
            method=path.method,
            rtol=(path.rtol, *(0.0 for _ in trace.start(y))),
            atol=(path.atol, *trace.tolerances(path.atol, dim)),
            nodes=path.nodes,
        )
        integral, standard_error = trace.finish(tuple(components))
        latent = to_x(y, path.end)
        log_prob = model.sde.prior_log_prob(latent, t=float(path.end.t), moments=moments)
    log_prob = log_prob + integral + dim * math.log(path.end.scale * path.start.cos)
    if not bool(torch.isfinite(log_prob).all()):
        raise FloatingPointError("the log-likelihood is not finite; check the data and the model's output")
    return LogLikelihood(log_prob, standard_error, latent, frame.nfe)


def _place(
    sde: SDE,
    solver: str | None,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    default: float,
    grid: str,
    t_from: float | None,
    t_to: float | None,
) -> _Path:
    """The ends, the method and, for a fixed grid, the angles of its nodes."""
    first, last = sde.t_min if t_from is None else t_from, sde.t_max if t_to is None else t_to
    if not sde.t_min <= first < last <= sde.t_max:
        raise ValueError(
            f"the path needs {sde.t_min:g} <= t_from < t_to <= {sde.t_max:g}, not t_from = {first:g}, t_to = {last:g}"
        )
    rule = choose(GRIDS, grid, "grid")
    start, end = sde.levels([first, last])
    tolerances = [default if value is None else value for value in (rtol, atol)]
    if not all(value > 0.0 for value in tolerances):
        raise ValueError(f"rtol and atol must be positive, not {tolerances[0]} and {tolerances[1]}")
    if steps is None:
        method = "dopri5" if solver is None else solver
        choose(ADAPTIVE_METHODS, method, "adaptive solver of the likelihood (fixed ones want steps)")
        return _Path(start, end, method, None, *tolerances)
    if rtol is not None or atol is not None:
        raise ValueError("give either steps (a fixed grid) or rtol/atol (adaptive), not both")
    method = "rk4" if solver is None else solver
    choose(FIXED_METHODS, method, "solver with fixed steps")
    times = rule(sde, steps, first, last)
    return _Path(start, end, method, [float(level.angle) for level in sde.levels(times)], *tolerances)


def _join(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    return LogLikelihood(
        torch.cat([part.log_prob for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        torch.cat([part.latent for part in parts]),
        sum(part.nfe for part in parts),
        parts[0].discrete,
    )
