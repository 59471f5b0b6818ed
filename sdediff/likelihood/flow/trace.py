r"""The divergence at the nodes of a path, and its quadrature.

At a node, with ``J = dv / dy`` in the axes of the data's covariance and ``w_c`` the weight of coordinate c's clock,

    share = sum_c w_c (J_cc - r_c) / (d phi_c / d theta),    r_c = d log rho_c / d theta

is its part of the log-determinant; ``r`` is the diagonal of J for the data's own Gaussian.

What is left of the divergence when the data's own Gaussian is taken out is a smooth function of each coordinate's own
angle phi (:class:`~sdediff.gaussian.Whitened`). On every interval it is interpolated through the nodes nearest to it,
on both sides, by a kernel (:mod:`sdediff.samplers.interpolation`), and the result is integrated. The path was made by
extrapolation from one side; the same weights estimate the error of each of its steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Whitened
from sdediff.likelihood.flow.divergence import BatchedPass, VectorField, diagonal_through, value_and_diagonal
from sdediff.numerics import wide
from sdediff.samplers.interpolation import kernel_weights
from sdediff.types import Level

_STENCIL = 6  # nodes an interval is interpolated through; 8 gain nothing on the smoothest problems


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Quadrature weights of the nodes of a path, in each coordinate's clock; C coordinates, or 1 for all.

    Attributes:
        first: first node of every interval's stencil, ``(N,)``.
        weights: weights of the stencil's nodes in the integral over the interval, float64 ``(N, m, C)``.
        totals: weights of all nodes in the whole integral, float64 ``(N + 1, C)``.
    """

    first: Tensor
    weights: Tensor
    totals: Tensor

    @classmethod
    def of(cls, levels: Sequence[Level[float]], whitened: Whitened) -> Quadrature:
        """Return the quadrature of a path over levels."""
        return _rule(tuple(float(level.angle) for level in levels), tuple(whitened.std.tolist()))

    def increments(self, values: Tensor) -> Tensor:
        """Return the integral over every interval, ``(N, B, D)``, of values at the nodes ``(N + 1, B, D)``."""
        total, weights = torch.zeros_like(values[1:]), self.weights.to(values)
        for i, start in enumerate(self.first.tolist()):
            for weight, value in zip(weights[i], values[start:], strict=False):
                total[i].addcmul_(value, weight)
        return total


@lru_cache(maxsize=64)
def _rule(angles: tuple[float, ...], deviations: tuple[float, ...]) -> Quadrature:
    nodes, roots, count = np.array(angles), np.array(deviations), len(angles)
    size = min(_STENCIL, count)
    first = np.clip(np.arange(count - 1) + 1 - size // 2, 0, count - size)
    weights, totals = np.empty((count - 1, size, len(roots))), np.zeros((count, len(roots)))
    for i, start in enumerate(first):
        weights[i] = kernel_weights(nodes[start : start + size], nodes[i], nodes[i + 1], roots)
        totals[start : start + size] += weights[i]
    return Quadrature(torch.from_numpy(first), torch.from_numpy(weights), torch.from_numpy(totals))


class NodeDivergence(NamedTuple):
    """The divergence at a node.

    Attributes:
        share: node's part of the log-determinant, ``(B,)``.
        coarse: node's parts by the rules on every second and on every fourth node, ``(2, B)``; 0 at other nodes.
        trace: trace of J, ``(B,)``.
        square: squared norm of J, the sum of all its entries' squares, ``(B,)``.
        probes: random probes, ``(B, K, D)``; none, ``K = 0``, where the trace is exact.
        products: products ``M^T e`` of the matrix M whose trace the share is, but for a constant, ``(B, K, D)``.
    """

    share: Tensor
    coarse: Tensor
    trace: Tensor
    square: Tensor
    probes: Tensor
    products: Tensor

    @property
    def shares(self) -> Tensor:
        """Shares ``e_i (M^T e)_i`` of the coordinates, ``(B, K, D)``."""
        return self.probes * self.products


class PathEnd(NamedTuple):
    """One end of a path.

    Attributes:
        level: noise level there.
        whitened: coordinates in the axes of the data's covariance.
        y: state of the frame, ``(B, *shape)``.
        noise: noise half in these axes, ``(B, D)``.
        divergence: divergence there.
    """

    level: Level[float]
    whitened: Whitened
    y: Tensor
    noise: Tensor
    divergence: NodeDivergence


class NodeWeights(NamedTuple):
    """The weights of one node.

    Attributes:
        factors: factors of J's diagonal, by the rules on all nodes, on every second and on every fourth, ``(3, C)``.
        rate: diagonal of J for the data's own Gaussian, ``(C,)``.
    """

    factors: Tensor
    rate: Tensor


@dataclass(frozen=True, eq=False)
class Trace(ABC):
    """An estimator of the divergence; :meth:`at_nodes` gives it the nodes of a path.

    Args:
        parameters: tensors besides the state to which gradients flow; ``None`` for evaluations that leave no graph.
    """

    parameters: Sequence[Tensor] | None = field(default=None, kw_only=True)
    levels: Sequence[Level[float]] = field(default=(), kw_only=True)
    whitened: Whitened = field(default_factory=lambda: Whitened(None), kw_only=True)
    weights: Sequence[NodeWeights] = field(default=(), kw_only=True)
    counts: Sequence[int] = field(default=(), kw_only=True)
    batched: BatchedPass = field(default_factory=BatchedPass, kw_only=True)

    def at_nodes(self, levels: Sequence[Level[float]], whitened: Whitened) -> Self:
        """Return the estimator at the nodes of a path."""
        rules, weights = [_totals(levels, whitened, stride) for stride in (1, 2, 4)], []
        for level, *totals in zip(levels, *rules, strict=True):
            gaussian, variances = whitened.at(level), whitened.std.square()
            rate = level.sin * level.cos * (1.0 - variances) / gaussian.rho**2
            weights.append(NodeWeights(torch.stack(totals) * gaussian.rho**2 / whitened.std, rate))
        trace = replace(self, levels=levels, whitened=whitened, weights=weights)
        return replace(trace, counts=trace.count_products())

    @abstractmethod
    def evaluate(self, field: VectorField, y: Tensor, node: int) -> tuple[Tensor, NodeDivergence]:
        """Return the velocity and the divergence at a node: one forward."""

    @abstractmethod
    def standard_error(self, divergences: Sequence[NodeDivergence]) -> Tensor:
        """Return the standard error of the sum of the shares of all nodes, ``(B,)``."""

    @abstractmethod
    def count_products(self) -> list[int]:
        """Return the numbers of vector-Jacobian products an item at the nodes."""


@dataclass(frozen=True, eq=False)
class ExactTrace(Trace):
    """The exact diagonal of J, by D products."""

    dim: int = 0

    def count_products(self) -> list[int]:
        return [self.dim] * len(self.levels)

    def standard_error(self, divergences: Sequence[NodeDivergence]) -> Tensor:
        return torch.zeros_like(divergences[0].share)

    def evaluate(self, field: VectorField, y: Tensor, node: int) -> tuple[Tensor, NodeDivergence]:
        axes = self.whitened.axes(y)
        if self.parameters is None:  # a few axes at a time
            velocity, rows = value_and_diagonal(field, y, axes, self.batched)
        else:
            velocity, rows = diagonal_through(self.parameters, field, y, axes.matrix)
        (diagonal, squares), (factors, rate) = wide(rows).unbind(dim=1), self.weights[node]
        shares = (factors.to(diagonal)[:, None] * (diagonal - rate.to(diagonal))).sum(dim=2)
        no_probes = diagonal[:, None, :][:, :0]
        of_j = diagonal.sum(dim=1), squares.detach().sum(dim=1)
        return velocity, NodeDivergence(shares[0], shares[1:].detach(), *of_j, no_probes, no_probes)


def _totals(levels: Sequence[Level[float]], whitened: Whitened, stride: int) -> Tensor:
    """Return the weights of a quadrature over every ``stride``-th node and the last, float64 ``(N + 1, C)``."""
    chosen = sorted({*range(0, len(levels), stride), len(levels) - 1})
    totals = torch.zeros(len(levels), len(whitened.std), dtype=torch.float64)
    totals[chosen] = Quadrature.of([levels[node] for node in chosen], whitened).totals
    return totals
