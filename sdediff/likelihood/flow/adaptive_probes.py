r"""Additional probes at the nodes of largest variance, until an item's standard error reaches a target.

The path is fixed; only evaluations at its nodes are added. With V_k the variance of one probe at node k and n_k their
number, ``sum V_k / n_k`` is at its smallest for a given number of probes if ``n_k ~ sqrt(V_k)`` (Neyman 1934): to reach
the error s takes ``n_k = sqrt(V_k) sum sqrt(V_j) / s^2``. The variances are estimated from each item's own probes.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.likelihood.flow.divergence import value_and_products
from sdediff.likelihood.flow.hutchinson import HutchinsonTrace, draw_probes, with_few_degrees
from sdediff.likelihood.flow.path import Path
from sdediff.likelihood.flow.trace import ExactTrace
from sdediff.noise import NoiseSource

_FORWARD_PROBES = 4  # probes of one forward: beyond, their products cost more than the forward
_GROWTH = 4.0  # largest growth of an item's probes at a node in one round, as the variances are only estimates


class RefinedDivergence(NamedTuple):
    """The log-determinant by all probes ``(B,)``, its standard error ``(B,)``, and the cost of the additional ones."""

    log_determinant: Tensor
    standard_error: Tensor
    nfe: int
    products: int


class ProbeStatistics:
    """The shares of all probes so far at every node: their number, sum and sum of squares."""

    def __init__(self, path: Path) -> None:
        shares = [divergence.shares for divergence in path.divergences]
        self.sums = torch.stack([share.sum(dim=1) for share in shares])  # (nodes, B, D)
        self.squares = torch.stack([share.square().sum(dim=(1, 2)) for share in shares])  # (nodes, B)
        numbers = torch.tensor([float(share.shape[1]) for share in shares], dtype=torch.float64)
        self.counts = numbers.to(self.squares)[:, None].repeat(1, len(path.y))
        self.exact = torch.full_like(self.squares, math.nan)
        self.control = torch.stack([divergence.share for divergence in path.divergences]) - self.means()

    def add(self, node: int, rows: Tensor, shares: Tensor) -> None:
        """Add shares ``(b, K, D)`` of some rows of the batch."""
        self.sums[node, rows] += shares.sum(dim=1)
        self.squares[node, rows] += shares.square().sum(dim=(1, 2))
        self.counts[node, rows] += shares.shape[1]

    def set_exact(self, node: int, rows: Tensor, share: Tensor) -> None:
        """Set a node's part of the log-determinant, ``(b,)``, for some rows, from the exact trace."""
        self.exact[node, rows] = share - self.control[node, rows]

    def means(self) -> Tensor:
        """Return the means of the estimates, ``(nodes, B)``."""
        return torch.where(self.exact.isnan(), self.sums.sum(dim=2) / self.counts, self.exact)

    def log_determinant(self) -> Tensor:
        """Return the log-determinant without the part of the data's own Gaussian, ``(B,)``."""
        return (self.control + self.means()).sum(dim=0)

    def variances(self) -> Tensor:
        """Return the variances of one probe, ``(nodes, B)``, as :func:`~.hutchinson.node_variance`."""
        spread = (self.squares - self.sums.square().sum(dim=2) / self.counts) / (self.counts - 1.0)
        return torch.where(self.exact.isnan(), 2.0 * spread.clamp(min=0.0), 0.0)

    def standard_error(self) -> Tensor:
        """Return the standard error of the sum of the means, ``(B,)``."""
        return with_few_degrees(self.variances() / self.counts, self.counts)

    def further_probes(self, target: float) -> Tensor:
        """Return the numbers of further probes at every node, ``(nodes, B)``; 0 for items within the target."""
        variances = self.variances()
        # one node's variance is estimated badly: its neighbours', which are alike, improve it
        near = torch.stack([variances, variances.roll(1, 0), variances.roll(-1, 0)]).mean(dim=0)
        deviations = torch.where(self.exact.isnan(), near, 0.0).sqrt()
        number = deviations * deviations.sum(dim=0) / target**2
        number = torch.minimum(number, _GROWTH * self.counts) - self.counts
        return torch.where(self.standard_error() > target, number, 0.0).ceil()


def refine(
    path: Path, random: HutchinsonTrace, exact: ExactTrace, source: NoiseSource, target: float, skip: Tensor
) -> RefinedDivergence:
    """Draw probes until every item's standard error is at most ``target`` nats.

    A node that would take more probes than it has dimensions is evaluated exactly instead.

    Args:
        path: path with at least two random probes at every node.
        random: trace of the path.
        exact: exact trace at the same nodes.
        source: source of the random numbers, one sample a row of the path.
        target: largest standard error, nats.
        skip: mask of the items that are left as they are, ``(B,)``.
    """
    statistics, nfe, products, dim = ProbeStatistics(path), 0, 0, path.states.shape[2]
    for turn in count(1):  # an item's rounds depend on its own probes alone, whatever the others of its batch do
        more = torch.where(skip, 0.0, statistics.further_probes(target))
        if not bool((more >= 1.0).any()):
            break
        for node, row in enumerate(more):
            field, states = path.recorder.field(path.levels[node]), path.recorder.states[node]
            full = (statistics.counts[node] + row > dim) & (row >= 1.0)
            if bool(full.any()):
                rows = full.nonzero()[:, 0]
                divergence = exact.evaluate(partial(field, rows=rows), states[rows], node)[1]
                statistics.set_exact(node, rows, divergence.share)
                nfe, products, row = nfe + 1, products + len(rows) * dim, torch.where(full, 0.0, row)
            for block in range(math.ceil(float(row.max()) / _FORWARD_PROBES)):
                rows = (row > block * _FORWARD_PROBES).nonzero()[:, 0]
                first = (turn * dim + block) * _FORWARD_PROBES
                probes = draw_probes(
                    random.law, source.subset(rows.tolist()), random.draw, node, _FORWARD_PROBES, first
                )
                _, found = value_and_products(partial(field, rows=rows), states[rows], probes)
                statistics.add(node, rows, random.divergence(probes, found, node).shares)
                nfe, products = nfe + 1, products + len(rows) * _FORWARD_PROBES
    log_determinant = statistics.log_determinant() + path.gaussian()
    return RefinedDivergence(log_determinant, statistics.standard_error(), nfe, products)
