"""Log-likelihoods of batches, joined and replaced item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdediff.likelihood.result import LogLikelihood


def replace_rows(whole: LogLikelihood, rows: list[int], part: LogLikelihood) -> LogLikelihood:
    """Replace the figures of some items by those of another result; the costs of both are added."""

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_put((torch.tensor(rows, device=old.device),), new)

    result = _map_tensors(put, whole, part)
    return replace(result, nfe=whole.nfe + part.nfe, products=whole.products + part.products)


def gather(parts: Iterable[LogLikelihood], count: int) -> LogLikelihood:
    """Join the results of batches, ``count`` items in all.

    They are written into tensors made with the first: small tensors kept between the temporaries of one path and the
    next would hold the allocator's memory, which would then grow with the number of batches.
    """
    whole, done, nfe, products = None, 0, 0, 0
    for part in parts:
        whole = (
            _map_tensors(lambda values: values.new_empty(count, *values.shape[1:]), part) if whole is None else whole
        )
        nfe, products, end = nfe + part.nfe, products + part.products, done + len(part.log_prob)

        def write(old: Tensor, new: Tensor, rows: slice = slice(done, end)) -> Tensor:
            old[rows] = new
            return old

        whole, done = _map_tensors(write, whole, part), end
    if whole is None:
        raise ValueError("there is no batch to gather")
    return replace(whole, nfe=nfe, products=products)


def _map_tensors(function: Callable[..., Tensor], *results: LogLikelihood) -> LogLikelihood:
    """Return the first result with every tensor replaced by a function of that tensor in all results."""
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
