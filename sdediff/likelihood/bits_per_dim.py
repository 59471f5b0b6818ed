r"""Bits a dimension of integer data, by several dequantisations.

Each draw of a dequantisation gives a log-weight l whose mean is at most ``log P(x)`` and whose exponential is ``P(x)``
in the mean (:mod:`~sdediff.likelihood.discrete.dequantization`). From M draws there are two bounds:

    mean:        1/M sum l_m
    importance:  log(1/M sum exp l_m)      (Burda et al. 2016), never below the former, tighter with every draw

each at most ``log P(x)`` in expectation. The second needs exact densities: a random estimate of the divergence
is unbiased for ``log p``, but its exponential is too large in the mean, and the "bound" could lie above ``log P(x)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from sdediff.denoiser import Denoiser, check_denoiser
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS, Dequantisation, check_items, integer_data
from sdediff.likelihood.log_likelihood import log_likelihood
from sdediff.likelihood.result import ErrorBudget, Result, normal_quantile, student_quantile
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, error_of_mean
from sdediff.options import LikelihoodOptions, check_count, check_options
from sdediff.progress import reporter
from sdediff.types import DataInfo, Level, brief


@dataclass(frozen=True)
class BitsPerDim(Result):
    """Bits a dimension; smaller is better.

    Attributes:
        bits_per_dim: bounds of the items, ``(B,)``: in the mean at least the items' costs.
        standard_error: standard errors of the bounds, ``(B,)``; NaN for a single draw. That of a mean follows from the
            variance of its draws, by dequantisation and probes; that of an importance bound from the delta method,
            without the large weights that no draw has.
        spread: standard deviations of one draw, ``(B,)``; NaN for a single draw.
        dequantisation_spread: parts of ``spread`` beyond the stated error of the probes, ``(B,)``: the root of the
            difference of the variances, 0 where that is negative.
        probe_error: root mean squares of the stated standard errors of the draws' probes, ``(B,)``.
        mean: mean of the bounds over the items.
        mean_standard_error: standard error of ``mean`` as an estimate for the data's population, from the variance over
            the items; NaN for a single item.
        nfe: forwards of the network.
        t_from: time of the data's end of the path.
        error_budget: parts of the error of the log-probabilities, in bits a dimension; its ``str()`` is a table. It has
            no line for the dequantisation of a single draw, nor for the population of a single item.
        samples: number of draws.

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
    samples: int

    __repr__ = brief

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the bounds' confidence intervals, bits a dimension ``(B,)`` each; NaN for a single draw.

        The standard error counts by Student's distribution, to which the systematic parts of the error are added in
        quadrature.
        """
        degrees = torch.full_like(self.standard_error, self.samples - 1)
        random = student_quantile(confidence, degrees).to(self.standard_error) * self.standard_error
        systematic = normal_quantile(confidence) * self.error_budget.systematic_size() / self.error_budget.scale
        half = torch.hypot(random, systematic)
        return self.bits_per_dim - half, self.bits_per_dim + half

    def columns(self) -> dict[str, Tensor]:
        """Return the bounds, their standard errors and spreads and the parts of the error, bits/dim ``(B,)`` each."""
        names = ("bits_per_dim", "standard_error", "spread", "dequantisation_spread", "probe_error")
        return {**{name: getattr(self, name) for name in names}, **self.error_budget.columns()}


class _Draws(NamedTuple):
    """Log-weights, standard errors of their probes, nats ``(M, B)``, systematic parts, ``(B,)`` each, and the cost."""

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
    target_error: float | None = None,
    **options: Unpack[LikelihoodOptions],
) -> BitsPerDim:
    """Return bits a dimension of integers: the bound of a dequantisation, with all parts of its error.

    Args:
        model: denoiser with its process.
        x: integers ``(B, *shape)``, entries ``0 .. levels - 1``.
        levels: number of levels; the model's own by default.
        low: value of level 0 in the model's units; the model's own by default.
        high: value of the highest level in the model's units; the model's own by default.
        dequantisation: distribution of values: ``"uniform"`` for models of dequantised data, ``"truncated-normal"`` or
            ``"decoder"`` for models of the levels themselves; or a
            :class:`~sdediff.likelihood.discrete.dequantization.Dequantisation`.
        samples: number of draws of each item, with probes of their own.
        bound: bound from the draws, their ``"mean"``, or ``"importance"``, which takes the exact trace.
        t_from: time of the data's end of the path, instead of the dequantisation's own; its noise follows.
        target_error: largest error of path and probes of every draw, in bits a dimension, as in ``log_likelihood``.
        **options: ``solver``, ``steps``, ``grid``, ``rtol``, ``atol``, ``trace``, ``probes``, ``noise``, ``prior``,
            ``t_to``, ``seed``, ``first``, ``batch_size``, ``progress``, ``condition``, ``execution``,
            ``differentiable`` and ``keep_mode``, see :class:`~sdediff.options.LikelihoodOptions`.

    Raises:
        ValueError: for float data, integers outside the levels, unknown levels or names, an importance bound from
            random probes, or as ``log_likelihood``.
        FloatingPointError: if a result is not finite, or means nothing by its own budget, as ``log_likelihood``.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> result = sdediff.bits_per_dim(model, torch.tensor([[3, 1]]), levels=4, low=-1.0, high=2.0)
    >>> 0.3 < result.mean < 0.8
    True
    """
    check_options(options, LikelihoodOptions)
    given: dict[str, Any] = {**options}
    condition, execution = (given.pop(name, None) for name in ("condition", "execution"))
    progress, size = (given.pop(name, None) for name in ("progress", "batch_size"))
    check_denoiser(model)
    model = model.given(condition).with_execution(execution)
    check_items(x, model.data)
    model.check_batch(len(x))
    info = integer_data(x, model.data, levels, low, high)
    if isinstance(dequantisation, str):
        dequantisation = choose(DEQUANTISATIONS, dequantisation, "dequantisation")
    estimate = choose(BOUNDS, bound, "bound")
    size = len(x) if size is None else size
    check_count("samples", samples)
    check_count("batch_size", size)
    check_count("probes", options.get("probes", 2))
    if bound == "importance":
        given["trace"] = _exact(given.get("trace", "auto"))
    nats = math.log(2.0) * x[0].numel()  # of one bit a dimension
    if target_error is not None:
        given["target_error"] = target_error * nats
    start = model.sde.levels([dequantisation.start(model.sde, info) if t_from is None else t_from])[0]
    batches, report = [], reporter(progress, "bits/dim", "item")
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size]
        given |= {"seed": options.get("seed", 0), "first": options.get("first", 0) + begin}
        batches.append(_draws(model.part(begin, size, len(x)), batch, info, dequantisation, start, samples, given))
        if report is not None:
            report(begin + len(batch), len(x))
    return _summarise(batches, estimate, nats, start.t)


def _draws(
    model: Denoiser,
    x: Tensor,
    info: DataInfo,
    dequantisation: Dequantisation,
    start: Level[float],
    samples: int,
    options: dict[str, Any],
) -> _Draws:
    """Return the draws of one batch."""
    noise = NoiseSource(options["seed"], x.shape, first=options["first"], dtype=model.state_dtype, device=x.device)
    rho, nfe = math.exp(-start.half_log_snr), 0
    weights, errors, budgets = [], [], []
    for number in range(samples):
        draw = dequantisation.draw(x, info, rho, noise, number)
        result = log_likelihood(model, draw.values, t_from=start.t, draw=number, **options)
        weights.append(result.log_prob + draw.log_weight)
        errors.append(result.standard_error)
        budgets.append(result.error_budget.systematic)
        nfe += result.nfe
    parts = [name for name in budgets[0] if not (dequantisation.blurs and name == "t_min")]
    systematic = {name: torch.stack([budget[name] for budget in budgets]).mean(dim=0) for name in parts}
    return _Draws(torch.stack(weights), torch.stack(errors), systematic, nfe)


def _mean_bound(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the log-weights ``(M, B)`` and its standard error."""
    return log_weights.mean(dim=0), _std(log_weights) / math.sqrt(len(log_weights))


def _importance_bound(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mean weight, and its standard error: that of the mean over the mean."""
    log_mean = torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))
    return log_mean, _std((log_weights - log_mean).exp()) / math.sqrt(len(log_weights))


BOUNDS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"mean": _mean_bound, "importance": _importance_bound}
"""Functions from log-weights ``(M, B)`` to a bound and its standard error, nats ``(B,)``."""


def _std(draws: Tensor) -> Tensor:
    """Return the standard deviation over the draws, NaN for one."""
    return draws.std(dim=0) if len(draws) > 1 else torch.full_like(draws[0], math.nan)


def _exact(trace: str) -> str:
    """Return the exact trace, and refuse another one.

    Raises:
        ValueError: for a trace by random probes.
    """
    if trace not in ("auto", "exact"):
        raise ValueError(f"the importance bound needs trace='exact', not {trace!r}: random probes would bias it upward")
    return "exact"


def _summarise(
    batches: list[_Draws], estimate: Callable[[Tensor], tuple[Tensor, Tensor]], nats: float, t_from: float
) -> BitsPerDim:
    """Return the result of the draws of all batches, with ``nats`` nats a bit a dimension."""
    log_weights = torch.cat([part.log_weights for part in batches], dim=1)
    probes = torch.cat([part.probe_errors for part in batches], dim=1).square().mean(dim=0)
    value, error = estimate(log_weights)
    spread, items, draws = _std(log_weights), -value / nats, len(log_weights)
    dequantisation = (spread.square() - probes).clamp(min=0.0).sqrt()
    of_mean = error_of_mean(items)
    random = {"probes": (probes / draws).sqrt()}
    if draws > 1:  # a single draw gives no estimate
        random["dequantisation"] = (error.square() - probes / draws).clamp(min=0.0).sqrt()
    budget = ErrorBudget(
        random,
        {name: torch.cat([part.systematic[name] for part in batches]) for name in batches[0].systematic},
        {} if math.isnan(of_mean) else {"population": of_mean * nats},
        value,
        scale=nats,
        unit="bits/dim",
    )
    budget.check_path(round(nats / math.log(2.0)))
    return BitsPerDim(
        items,
        error / nats,
        spread / nats,
        dequantisation / nats,
        probes.sqrt() / nats,
        float(items.mean()),
        of_mean,
        sum(part.nfe for part in batches),
        t_from,
        budget,
        draws,
    )
