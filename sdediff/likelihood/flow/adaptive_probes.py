r"""More probes where they tell most, until an item's standard error is small enough.

The path stands; only looks at its nodes are added. With V_k the variance of one probe at node k and n_k their number,
``sum V_k / n_k`` is at its smallest for a given number of probes if ``n_k ~ sqrt(V_k)`` (Neyman 1934): to reach the
error s takes ``n_k = sqrt(V_k) sum sqrt(V_j) / s^2``. The variances are estimated as the probes come, each item's own.
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

_BLOCK = 4  # probes of one forward: their products cost more than it by then
_GROWTH = 4.0  # of an item's probes at a node in one round, whose variances are only estimates


class RefinedDivergence(NamedTuple):
    """What all probes together say: the log-determinant ``(B,)``, its standard error ``(B,)``, and what it took."""

    log_determinant: Tensor
    standard_error: Tensor
    nfe: int
    products: int


class ProbeStatistics:
    """The shares of all probes so far at every node: their number, sum and sum of squares."""

    def __init__(self, path: Path) -> None:
        shares = [seen.shares for seen in path.seen]
        self.sums = torch.stack([share.sum(dim=1) for share in shares])  # (nodes, B, D)
        self.squares = torch.stack([share.square().sum(dim=(1, 2)) for share in shares])  # (nodes, B)
        numbers = torch.tensor([float(share.shape[1]) for share in shares], dtype=torch.float64)
        self.counts = numbers.to(self.squares)[:, None].repeat(1, len(path.y))
        self.exact = torch.full_like(self.squares, math.nan)
        self.known = torch.stack([seen.share for seen in path.seen]) - self.means()

    def add(self, node: int, rows: Tensor, shares: Tensor) -> None:
        """Further shares ``(b, K, D)`` of some rows of the batch."""
        self.sums[node, rows] += shares.sum(dim=1)
        self.squares[node, rows] += shares.square().sum(dim=(1, 2))
        self.counts[node, rows] += shares.shape[1]

    def settle(self, node: int, rows: Tensor, share: Tensor) -> None:
        """The exact part of a node in the log-determinant, ``(b,)``, for some rows."""
        self.exact[node, rows] = share - self.known[node, rows]

    def means(self) -> Tensor:
        """Of the estimates, ``(nodes, B)``."""
        return torch.where(self.exact.isnan(), self.sums.sum(dim=2) / self.counts, self.exact)

    def log_determinant(self) -> Tensor:
        """But for what the data's own Gaussian adds, ``(B,)``."""
        return (self.known + self.means()).sum(dim=0)

    def variances(self) -> Tensor:
        """Of one probe, ``(nodes, B)``; see :func:`~sdediff.likelihood.flow.hutchinson.node_variance`."""
        spread = (self.squares - self.sums.square().sum(dim=2) / self.counts) / (self.counts - 1.0)
        return torch.where(self.exact.isnan(), 2.0 * spread.clamp(min=0.0), 0.0)

    def standard_error(self) -> Tensor:
        """Of the sum of the means, ``(B,)``."""
        return with_few_degrees(self.variances() / self.counts, self.counts)

    def wanted(self, target: float) -> Tensor:
        """Further probes for every node of every item, ``(nodes, B)``; 0 for those that have arrived."""
        variances = self.variances()
        # one node's variance is known badly: its neighbours', which are alike, help
        near = torch.stack([variances, variances.roll(1, 0), variances.roll(-1, 0)]).mean(dim=0)
        deviations = torch.where(self.exact.isnan(), near, 0.0).sqrt()
        number = deviations * deviations.sum(dim=0) / target**2
        number = torch.minimum(number, _GROWTH * self.counts) - self.counts
        return torch.where(self.standard_error() > target, number, 0.0).ceil()


def refine(
    path: Path, random: HutchinsonTrace, exact: ExactTrace, source: NoiseSource, target: float, skip: Tensor
) -> RefinedDivergence:
    """Draw probes until every item's standard error is at most ``target`` nats.

    A node that would take more probes than it has dimensions is looked at exactly instead.

    Args:
        path: seen with at least two random probes at every node.
        random: the trace that saw it.
        exact: the exact trace on the same nodes.
        source: of the random numbers, one sample a row of the path.
        target: nats.
        skip: items that are none of its business, ``(B,)``.
    """
    tally, forwards, products, dim = ProbeStatistics(path), 0, 0, path.states.shape[2]
    for turn in count(1):  # an item takes part in the turns up to its last, whatever the others of its batch do
        more = torch.where(skip, 0.0, tally.wanted(target))
        if not bool((more >= 1.0).any()):
            break
        for node, row in enumerate(more):
            field, states = path.witness.field(path.levels[node]), path.witness.states[node]
            full = (tally.counts[node] + row > dim) & (row >= 1.0)
            if bool(full.any()):
                rows = full.nonzero()[:, 0]
                tally.settle(node, rows, exact.look(partial(field, rows=rows), states[rows], node)[1].share)
                forwards, products, row = forwards + 1, products + len(rows) * dim, torch.where(full, 0.0, row)
            for block in range(math.ceil(float(row.max()) / _BLOCK)):
                rows = (row > block * _BLOCK).nonzero()[:, 0]
                first = (turn * dim + block) * _BLOCK
                probes = draw_probes(random.law, source.subset(rows.tolist()), random.draw, node, _BLOCK, first)
                _, found = value_and_products(partial(field, rows=rows), states[rows], probes)
                tally.add(node, rows, random.see(probes, found, node).shares)
                forwards, products = forwards + 1, products + len(rows) * _BLOCK
    return RefinedDivergence(tally.log_determinant() + path.gaussian(), tally.standard_error(), forwards, products)
