"""The result of a log-likelihood: its value, and the parts of its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdediff.numerics import wide
from sdediff.types import UndefinedError, brief

SEEN_BY_PROBES = ("quadrature",)
"""Systematic parts that are differences of divergences, as noisy as those where the trace is random."""


_CURES = {
    "t_min": "the data are narrower than the noise of the first level, whose density is reported",
    "prior": "the process ends too far from its prior: give it more noise, or its data's moments",
}
"""What helps against a part; against all others more steps do."""


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """The parts of the error of every item's log-likelihood.

    Attributes:
        random: standard errors of what was drawn, nats ``(B,)`` each, independent between items: they average out.
        systematic: signed effects of what was approximated, nats ``(B,)`` each: they do not.
        noise: standard errors of the systematic effects that were seen through random probes, nats ``(B,)`` each.
        of_mean: standard errors of the mean over items that no single item has, nats: that of a sample of a population.
        values: the numbers whose errors these are, nats ``(B,)``; empty where they are not at hand.
        scale: nats of one ``unit``.
        unit: ``"nats"`` or ``"bits/dim"``.
    """

    random: Mapping[str, Tensor]
    systematic: Mapping[str, Tensor]
    noise: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    of_mean: Mapping[str, float] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    scale: float = 1.0
    unit: str = "nats"

    __repr__ = brief

    @property
    def parts(self) -> dict[str, Tensor]:
        """All parts of the items, nats ``(B,)`` each."""
        return {**self.random, **self.systematic}

    def noisy(self, name: str) -> bool:
        """Whether an item's effect was seen through random probes and is mostly their noise."""
        return name in SEEN_BY_PROBES and _rms(self.random.get("probes", torch.zeros(1))) > 0.0

    def beyond_noise(self, name: str) -> Tensor:
        """Return the size of every item's effect, nats ``(B,)``; of a noisy one what stands out by three errors."""
        effect = self.systematic[name]
        if not self.noisy(name):
            return effect.abs()
        error = self.noise.get(name, torch.full_like(effect, math.inf))
        return (effect.square() - (3.0 * error).square()).clamp(min=0.0).sqrt()

    @property
    def warning(self) -> str:
        """What is to be said of numbers that mean nothing: whose systematic error is above them, or not finite.

        A density has no natural zero, so that its errors are compared with a nat a call, too. Empty where all is well.
        """
        effects = [wide(part).abs() for name, part in self.systematic.items() if not self.noisy(name)]
        if not effects or not len(self.values):
            return ""
        size = torch.stack(effects).sum(dim=0)
        lost = int((~(size <= wide(self.values).abs().clamp(min=1.0))).sum())
        if lost == 0:
            return ""
        worst = max(self.systematic, key=lambda name: _rms(self.systematic[name]))
        return (
            f"{lost} of {len(size)} items mean nothing: their systematic error, most of it {worst}, exceeds their "
            f"value; {_CURES.get(worst, 'take more steps')}"
        )

    def as_dict(self) -> dict[str, dict[str, float]]:
        """For every part, in ``unit``: the root mean square over ``item``s and the effect on their ``mean``.

        Of effects seen through probes both are the size of the mean that noise does not explain.
        """
        rows = {}
        for name, values in self.random.items():
            rms = _rms(values)
            rows[name] = {"item": rms / self.scale, "mean": rms / math.sqrt(len(values)) / self.scale}
        for name, values in self.systematic.items():
            size, mean = (
                (_beyond_noise(values),) * 2 if self.noisy(name) else (_rms(values), float(wide(values).mean()))
            )
            rows[name] = {"item": size / self.scale, "mean": mean / self.scale}
        for name, value in self.of_mean.items():
            rows[name] = {"item": math.nan, "mean": value / self.scale}
        return rows

    def __str__(self) -> str:
        """A table, one line a part; effects that have a sign show it. A last line warns of numbers without meaning."""
        lines = [f"{'error, ' + self.unit:24s} {'an item (RMS)':>14s} {'the mean':>12s}"]
        for name, row in self.as_dict().items():
            item = "" if math.isnan(row["item"]) else f"{row['item']:.1e}"
            mean = f"{row['mean']:+.1e}" if name in self.systematic else f"{row['mean']:.1e}"
            lines.append(f"{name:24s} {item:>14s} {mean:>12s}")
        return "\n".join([*lines, self.warning] if self.warning else lines)


def _rms(values: Tensor) -> float:
    return float(wide(values).square().mean().sqrt())


def _beyond_noise(values: Tensor) -> float:
    """The size of the mean of noisy effects, less what noise makes of it."""
    values = wide(values)
    noise = values.var() / len(values) if len(values) > 1 else values.square().mean()
    return float((values.mean().square() - noise).clamp(min=0.0).sqrt())


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihoods of a batch.

    Attributes:
        log_prob: nats, float64 ``(B,)``: the log-density of continuous data, in their units; of integer data the
            log-probability seen by one dequantisation, in the mean a lower bound.
        standard_error: nats ``(B,)``, of the probes; 0 for the exact trace.
        latent: the states at ``t_to``, ``(B, *shape)``, in the model's coordinates.
        nfe: forwards of the network, each of them serving value and divergence.
        products: vector-Jacobian products spent on all items together.
        error_budget: the parts of the error; its ``str()`` is a table.
        discrete: whether the data were integers.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.log_likelihood(model, torch.tensor([[2.0, 0.0]]), steps=20).nfe
    21
    """

    log_prob: Tensor
    standard_error: Tensor
    latent: Tensor
    nfe: int
    products: int
    error_budget: ErrorBudget
    discrete: bool = False

    __repr__ = brief

    @property
    def bits_per_dim(self) -> Tensor:
        """Bits a dimension of integer data, ``(B,)``; smaller is better.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise UndefinedError("bits/dim exist for integer data only; continuous data have log_prob, in nats")
        return -self.log_prob / (math.log(2.0) * self.latent[0].numel())

    def interval(self, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end, nats ``(B,)`` each, by all parts of the budget.

        By the probes' standard error it covers what it says. The systematic parts are estimates of a size: that of the
        solver counts twice, the others once; of those that were seen through random probes, what stands out of their
        noise.

        Raises:
            ValueError: unless ``0 < confidence < 1``.
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"the confidence must lie in (0, 1), not {confidence}")
        sigmas = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
        size = torch.zeros_like(self.log_prob)
        for name in self.error_budget.systematic:
            size = size + self.error_budget.beyond_noise(name) * (2.0 if name == "solver" else 1.0)
        half = sigmas * torch.hypot(self.standard_error, size)
        return self.log_prob - half, self.log_prob + half


def replace_rows(whole: LogLikelihood, rows: list[int], part: LogLikelihood) -> LogLikelihood:
    """Replace the figures of some items by those of another result; what was spent on both counts."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_put((torch.tensor(rows, device=old.device),), new)

    found = _combine(put, whole, part)
    return replace(found, nfe=whole.nfe + part.nfe, products=whole.products + part.products)


def gather(parts: Iterable[LogLikelihood], count: int) -> LogLikelihood:
    """Return the results of batches, ``count`` items in all, as one.

    They are written into tensors made with the first: small tensors kept between the temporaries of one path and the
    next would hold the allocator's memory, which would then grow with the number of batches.
    """
    whole, done, nfe, products = None, 0, 0, 0
    for part in parts:
        whole = _combine(lambda values: values.new_empty(count, *values.shape[1:]), part) if whole is None else whole
        nfe, products, end = nfe + part.nfe, products + part.products, done + len(part.log_prob)

        def write(old: Tensor, new: Tensor, rows: slice = slice(done, end)) -> Tensor:
            old[rows] = new
            return old

        whole, done = _combine(write, whole, part), end
    if whole is None:
        raise ValueError("there is no batch to gather")
    return replace(whole, nfe=nfe, products=products)


def _combine(function: Callable[..., Tensor], *results: LogLikelihood) -> LogLikelihood:
    """Return the first result with every tensor replaced by a function of those at its place in all of them."""
    budgets = [result.error_budget for result in results]

    def of_all(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: function(*(part[name] for part in parts)) for name in parts[0]}

    budget = replace(
        budgets[0],
        random=of_all([budget.random for budget in budgets]),
        systematic=of_all([budget.systematic for budget in budgets]),
        noise=of_all([budget.noise for budget in budgets]),
        values=function(*(budget.values for budget in budgets)),
    )
    return replace(
        results[0],
        log_prob=function(*(result.log_prob for result in results)),
        standard_error=function(*(result.standard_error for result in results)),
        latent=function(*(result.latent for result in results)),
        error_budget=budget,
    )
