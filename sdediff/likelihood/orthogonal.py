r"""Probes that are orthogonal along the path.

Where J hardly changes between nodes, D probes orthogonal to one another give its trace exactly, not D independent ones.
A replicate has one vector s of random signs an item, and its probes are ``e = s * h`` with h one row of a Hadamard
matrix after another, from node to node. Each alone is a vector of independent signs, so every node's estimate is
unbiased. Summed over the path a replicate is Hutchinson's estimator with the one probe s of a matrix A,

    T = sum_ij s_i s_j A_ij,    A_ij = sum over probes of h_i h_j M_ij,

whose shares ``t_i = s_i sum_j A_ij s_j`` vary by ``sum_{j != i} A_ij^2``, and T itself by twice the sum of that where M
is symmetric. Two replicates, each with half of every node's probes, show it: ``(t_i - t'_i)^2`` is twice that variance
in the mean, whatever the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from sdediff.likelihood.trace import STAGE, HutchinsonTrace, Seen
from sdediff.numerics import flatten

_SIGNS = 1 << 39  # the number under which a replicate's random numbers are drawn, out of the way of the nodes'


@dataclass(frozen=True, eq=False)
class OrthogonalTrace(HutchinsonTrace):
    """Signs in two replicates, orthogonal along the path; an even number of them at every node."""

    def counts(self) -> list[int]:
        """Probes of every node, half of them in each replicate."""
        return [2 * round(0.5 * number) for number in super().counts()]

    def probes(self, node: int) -> Tensor:
        """``(B, K, D)``, the first half of them of the first replicate."""
        before, count = sum(self.plan[:node]) // 2, self.plan[node] // 2
        return torch.cat([self._replicate(half, before, count) for half in (0, 1)], dim=1)

    def _replicate(self, half: int, first: int, count: int) -> Tensor:
        """Probes ``first, first + 1, ...`` of one replicate, ``(B, count, D)``."""
        number = (self.draw << 40) | _SIGNS | (2 * half)
        signs, lots = (flatten(self.source.normal(number + i, stage=STAGE)) for i in (0, 1))
        size = 1 << (signs.shape[1] - 1).bit_length()
        # every item walks through the rows from a start and in odd strides of its own: each comes once before any twice
        start, stride = (torch.special.ndtr(lots[:, i : i + 1].double()) * (size - 1) for i in (0, 1))
        turns = torch.arange(first, first + count, device=signs.device)
        rows = (start.long() + (2 * (stride.long() // 2) + 1) * turns) % size
        return torch.where(signs < 0.0, -1.0, 1.0).to(signs)[:, None, :] * hadamard(rows, signs.shape[1]).to(signs)

    def standard_error(self, seen: Sequence[Seen]) -> Tensor:
        """Of the mean of both replicates, ``(B,)``."""
        halves = [torch.chunk(look.shares, 2, dim=1) for look in seen]
        first, second = (torch.stack([pair[i].mean(dim=1) for pair in halves]).sum(dim=0) for i in (0, 1))
        return (0.5 * (first - second).square().sum(dim=1)).sqrt() * widening(first.shape[1])


def widening(dim: int) -> float:
    """Return the factor by which the error is stated larger, since the coordinates share one another's signs.

    It makes 1.96 errors reach as far as Student's t with ``dim - 4`` degrees of freedom: measured on mixtures of 8 to
    64 dimensions.
    """
    return float(stdtrit(max(1, dim - 4), 0.975) / ndtri(0.975))


def hadamard(rows: Tensor, dim: int) -> Tensor:
    """The first ``dim`` entries of Sylvester's rows, ``(..., dim)`` of +1 and -1: the parity of ``row & column``."""
    bits = rows[..., None] & torch.arange(dim, device=rows.device)
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1.0 - 2.0 * (bits & 1)
