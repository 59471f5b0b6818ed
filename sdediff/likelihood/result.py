"""What a log-likelihood is answered with, and results put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdediff.likelihood.budget import ErrorBudget
from sdediff.types import UndefinedError, brief


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
