r"""Bits a dimension of integer data, over several dequantisations.

Each draw of a dequantisation gives a log-weight l whose mean is at most ``log P(x)`` and whose exponential is ``P(x)``
in the mean (:mod:`~sdediff.likelihood.discrete.dequantization`). From M draws there are two bounds:

    mean:        1/M sum l_m
    importance:  log(1/M sum exp l_m)      (Burda et al. 2016), never below the former, tighter with every draw

each at most ``log P(x)`` in expectation. The second needs the densities themselves: a random estimate of the divergence
is unbiased for ``log p``, but its exponential is too large in the mean, and the "bound" could lie above ``log P(x)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.conditions import ConditionLike
from sdediff.denoiser import Denoiser
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS, Dequantisation, check_items, integer_data
from sdediff.likelihood.log_likelihood import log_likelihood
from sdediff.likelihood.result import ErrorBudget
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, error_of_mean
from sdediff.options import StepOptions, TraceOptions, check_options
from sdediff.samplers import Sampler
from sdediff.types import DataInfo, Level, brief


class PathOptions(StepOptions, TraceOptions, total=False):
    """What :func:`bits_per_dim` hands on to :func:`~sdediff.likelihood.log_likelihood.log_likelihood`."""

    solver: str | Sampler | None
    noise: str
    prior: str
    t_to: float | None
    differentiable: bool
    keep_mode: bool


class BitsPerDim(NamedTuple):
    """Bits a dimension; smaller is better.

    Attributes:
        bits_per_dim: the bound for each item, ``(B,)``: in the mean at least the item's cost.
        standard_error: of each item's bound, ``(B,)``; NaN for a single draw. That of a mean comes from the spread of
            its draws, which holds dequantisation and probes; that of an importance bound from the delta method, which
            does not see weights that no draw has met.
        spread: standard deviation of one draw, ``(B,)``; NaN for a single draw.
        dequantisation_spread: what of ``spread`` is not the stated error of the probes, ``(B,)``: the root of the
            difference of the variances, 0 where that is negative.
        probe_error: root mean square of the stated standard errors of the draws' probes, ``(B,)``.
        mean: over the items.
        mean_standard_error: of ``mean`` as an estimate for the data's population, from the spread of the items; NaN
            for a single item.
        nfe: forwards of the network.
        t_from: the time at whose level the density was asked.
        error_budget: the parts of the error of the log-probabilities, in bits a dimension; its ``str()`` is a table. A
            single draw does not tell its dequantisation, nor a single item its population.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.bits_per_dim(model, torch.tensor([[3, 1]]), levels=4, low=-1.0, high=2.0, samples=2).spread.shape
    torch.Size([1])
    """

    bits_per_dim: Tensor
    standard_error: Tensor
    spread: Tensor
    dequantisation_spread: Tensor
    probe_error: Tensor
    mean: float
    mean_standard_error: float
    nfe: int
    t_from: float
    error_budget: ErrorBudget

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)


class _Draws(NamedTuple):
    """Log-weights and the standard errors of their probes, nats ``(M, B)``, and what is systematic, ``(B,)`` each."""

    log_weights: Tensor
    probe_errors: Tensor
    systematic: dict[str, Tensor]
    nfe: int


def bits_per_dim(
    model: Denoiser,
    x: Tensor,
    *,
    levels: int | None = None,
    low: float | None = None,
    high: float | None = None,
    dequantisation: str | Dequantisation = "uniform",
    samples: int = 1,
    bound: str = "mean",
    t_from: float | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    target_error: float | None = None,
    condition: ConditionLike = None,
    **options: Unpack[PathOptions],
) -> BitsPerDim:
    """Bits a dimension of integers: the bound of a dequantisation, everything it leaves out accounted for.

    Args:
        model: a denoiser with its process.
        x: integers ``(B, *shape)``, entries ``0 .. levels - 1``.
        levels: number of levels; the model's own by default.
        low: the model's value for level 0; its own by default.
        high: the model's value for the highest level; its own by default.
        dequantisation: ``"uniform"`` for models of dequantised data, ``"truncated-normal"`` or ``"decoder"`` for models
            of the levels themselves; or a :class:`~sdediff.likelihood.discrete.dequantization.Dequantisation`.
        samples: draws of each item, with probes of their own.
        bound: ``"mean"`` over the draws, or ``"importance"``, which takes the exact trace.
        t_from: time whose density is asked, instead of the dequantisation's own; its noise follows.
        seed: draws and probes of item k are functions of ``(seed, first + k, draw)`` alone.
        first: index of the first item.
        batch_size: items solved at a time; all by default.
        progress: called as ``progress(done, total)`` after every batch, in items.
        target_error: of the path and the probes of every draw, in bits a dimension, as for ``log_likelihood``.
        condition: what the network is told about each item, a tensor or a tuple or dict of tensors: one row an item, or
            one for all; the network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``.
        **options: ``solver``, ``steps``, ``rtol``, ``atol``, ``grid``, ``trace``, ``probes``, ``noise``, ``prior``,
            ``t_to``, ``differentiable`` and ``keep_mode`` of :func:`~sdediff.likelihood.log_likelihood.log_likelihood`.

    Raises:
        ValueError: for float data, integers outside the levels, unknown levels or names, an importance bound from
            random probes, or as ``log_likelihood``.
        FloatingPointError: if a result is not finite.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> result = sdediff.bits_per_dim(model, torch.tensor([[3, 1]]), levels=4, low=-1.0, high=2.0)
    >>> 0.3 < result.mean < 0.8
    True
    """
    check_options(options, PathOptions)
    given: dict[str, Any] = {**options}
    model = model.given(condition)
    check_items(x, model.data)
    model.check_batch(len(x))
    info = integer_data(x, model.data, levels, low, high)
    chosen = dequantisation
    law = choose(DEQUANTISATIONS, chosen, "dequantisation") if isinstance(chosen, str) else chosen
    summary = choose(BOUNDS, bound, "bound")
    size = len(x) if batch_size is None else batch_size
    if samples < 1 or size < 1:
        raise ValueError(f"samples and the batch size must be at least 1, not {samples} and {size}")
    if bound == "importance":
        given["trace"] = _exact(given.get("trace", "auto"))
    nats = math.log(2.0) * x[0].numel()  # of one bit a dimension
    if target_error is not None:
        given["target_error"] = target_error * nats
    start = model.sde.levels([law.start(model.sde, info) if t_from is None else t_from])[0]
    parts = []
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size]
        given |= {"seed": seed, "first": first + begin}
        parts.append(_draws(model.part(begin, size, len(x)), batch, info, law, start, samples, given))
        if progress is not None:
            progress(begin + len(batch), len(x))
    return _summarise(parts, summary, nats, start.t)


def _draws(
    model: Denoiser,
    x: Tensor,
    info: DataInfo,
    law: Dequantisation,
    start: Level[float],
    samples: int,
    options: dict[str, Any],
) -> _Draws:
    """The draws of one batch."""
    noise = NoiseSource(options["seed"], x.shape, first=options["first"], dtype=model.state_dtype, device=x.device)
    rho, nfe = math.exp(-start.half_log_snr), 0
    weights, errors, budgets = [], [], []
    for number in range(samples):
        draw = law.draw(x, info, rho, noise, number)
        result = log_likelihood(model, draw.values, t_from=start.t, draw=number, **options)
        weights.append(result.log_prob + draw.log_weight)
        errors.append(result.standard_error)
        budgets.append(result.error_budget.systematic)
        nfe += result.nfe
    parts = [name for name in budgets[0] if not (law.blurs and name == "t_min")]
    systematic = {name: torch.stack([budget[name] for budget in budgets]).mean(dim=0) for name in parts}
    return _Draws(torch.stack(weights), torch.stack(errors), systematic, nfe)


def _mean(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the log-weights ``(M, B)`` and its standard error."""
    return log_weights.mean(dim=0), _std(log_weights) / math.sqrt(len(log_weights))


def _importance(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean weight, and its standard error: that of the mean over the mean."""
    log_mean = torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))
    return log_mean, _std((log_weights - log_mean).exp()) / math.sqrt(len(log_weights))


BOUNDS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"mean": _mean, "importance": _importance}
"""From log-weights ``(M, B)`` to a bound and its standard error, nats ``(B,)``."""


def _std(draws: Tensor) -> Tensor:
    """Standard deviation over the draws, NaN for one."""
    return draws.std(dim=0) if len(draws) > 1 else torch.full_like(draws[0], math.nan)


def _exact(trace: str) -> str:
    """The exact trace, unless another was asked for."""
    if trace not in ("auto", "exact"):
        raise ValueError(f"the importance bound needs trace='exact', not {trace!r}: random probes would bias it upward")
    return "exact"


def _summarise(
    parts: list[_Draws], summary: Callable[[Tensor], tuple[Tensor, Tensor]], nats: float, t_from: float
) -> BitsPerDim:
    """The draws of all batches in bits a dimension, of ``nats`` nats each."""
    log_weights = torch.cat([part.log_weights for part in parts], dim=1)
    probes = torch.cat([part.probe_errors for part in parts], dim=1).square().mean(dim=0)
    value, error = summary(log_weights)
    spread, items, draws = _std(log_weights), -value / nats, len(log_weights)
    dequantisation = (spread.square() - probes).clamp(min=0.0).sqrt()
    of_mean = error_of_mean(items)
    random = {"probes": (probes / draws).sqrt()}
    if draws > 1:  # what a single draw does not tell has no row
        random["dequantisation"] = (error.square() - probes / draws).clamp(min=0.0).sqrt()
    budget = ErrorBudget(
        random,
        {name: torch.cat([part.systematic[name] for part in parts]) for name in parts[0].systematic},
        {} if math.isnan(of_mean) else {"population": of_mean * nats},
        value,
        scale=nats,
        unit="bits/dim",
    )
    return BitsPerDim(
        items,
        error / nats,
        spread / nats,
        dequantisation / nats,
        probes.sqrt() / nats,
        float(items.mean()),
        of_mean,
        sum(part.nfe for part in parts),
        t_from,
        budget,
    )
