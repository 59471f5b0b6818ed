r"""The divergence at the nodes of a path, and its quadrature.

At a node, with ``J = dv / dy`` in the axes of the data's covariance and ``w_c`` the weight of coordinate c's clock,

    share = sum_c w_c (J_cc - r_c) / (d phi_c / d theta),    r_c = d log rho_c / d theta

is its part of the log-determinant; ``r`` is what J's diagonal would be for the data's own Gaussian.

What is left of the divergence when the data's own Gaussian is taken out is a smooth function of each coordinate's own
angle phi (:class:`~sdediff.gaussian.Whitened`). On every interval it is interpolated through the nodes nearest to it,
on both sides, by a kernel (:mod:`sdediff.samplers.interpolation`), and the result is integrated. The path was made by
extrapolation from one side; the same weights say by how much each of its steps missed.
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
from sdediff.likelihood.flow.divergence import Field, diagonal_through
from sdediff.numerics import wide
from sdediff.samplers.interpolation import kernel_weights
from sdediff.types import Level

_STENCIL = 6  # nodes an interval is interpolated through; 8 gain nothing on the smoothest problems


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Weights for values at the nodes of a path, in each coordinate's clock; C coordinates, or 1 for all.

    Attributes:
        first: the first node of every interval's stencil, ``(N,)``.
        weights: of the stencil's nodes in the integral over the interval, float64 ``(N, m, C)``.
        totals: of every node in the whole integral, float64 ``(N + 1, C)``.
    """

    first: Tensor
    weights: Tensor
    totals: Tensor

    @classmethod
    def of(cls, levels: Sequence[Level[float]], white: Whitened) -> Quadrature:
        """For a path over these levels."""
        return _rule(tuple(float(level.angle) for level in levels), tuple(white.std.tolist()))

    def increments(self, values: Tensor) -> Tensor:
        """The integral over every interval, ``(N, B, D)``, of values at the nodes ``(N + 1, B, D)``."""
        total = torch.zeros_like(values[1:])
        for j in range(self.weights.shape[1]):
            total = total + self.weights[:, j, None].to(values) * values[self.first.to(values.device) + j]
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
    """What one look at a node gave.

    Attributes:
        share: its part of the log-determinant, ``(B,)``.
        coarse: its parts by the rules on every second and on every fourth node, ``(2, B)``; 0 where it is none of them.
        trace: of J, ``(B,)``.
        square: the squared norm of J, the sum of all its entries' squares, ``(B,)``.
        probes: ``(B, K, D)``; none, ``K = 0``, where the trace is exact.
        products: ``M^T e`` of the matrix M whose trace the share is, but for a constant, ``(B, K, D)``.
    """

    share: Tensor
    coarse: Tensor
    trace: Tensor
    square: Tensor
    probes: Tensor
    products: Tensor

    @property
    def shares(self) -> Tensor:
        """``e_i (M^T e)_i``, ``(B, K, D)``."""
        return self.probes * self.products


class End(NamedTuple):
    """What was seen at one end of a path.

    Attributes:
        level: its level.
        white: the axes.
        y: the state of the frame, ``(B, *shape)``.
        noise: its noise half in these axes, ``(B, D)``.
        seen: of the divergence.
    """

    level: Level[float]
    white: Whitened
    y: Tensor
    noise: Tensor
    seen: NodeDivergence


class Weights(NamedTuple):
    """Of one node.

    Attributes:
        factors: of J's diagonal, by the rules on all nodes, on every second and on every fourth, ``(3, C)``.
        rate: that diagonal for the data's own Gaussian, ``(C,)``.
    """

    factors: Tensor
    rate: Tensor


@dataclass(frozen=True, eq=False)
class Trace(ABC):
    """A way to take the divergence; :meth:`on` places it on a path.

    Args:
        parameters: what gradients flow to, besides the state; ``None`` for looks that leave no graph.
    """

    parameters: Sequence[Tensor] | None = field(default=None, kw_only=True)
    levels: Sequence[Level[float]] = field(default=(), kw_only=True)
    white: Whitened = field(default_factory=lambda: Whitened(None), kw_only=True)
    weights: Sequence[Weights] = field(default=(), kw_only=True)
    plan: Sequence[int] = field(default=(), kw_only=True)

    def on(self, levels: Sequence[Level[float]], white: Whitened) -> Self:
        """The same, knowing the nodes of a path."""
        rules, weights = [_totals(levels, white, stride) for stride in (1, 2, 4)], []
        for level, *totals in zip(levels, *rules, strict=True):
            spot, variances = white.at(level), white.std.square()
            rate = level.sin * level.cos * (1.0 - variances) / spot.rho**2
            weights.append(Weights(torch.stack(totals) * spot.rho**2 / white.std, rate))
        placed = replace(self, levels=levels, white=white, weights=weights)
        return replace(placed, plan=placed.counts())

    @abstractmethod
    def look(self, field: Field, y: Tensor, node: int) -> tuple[Tensor, NodeDivergence]:
        """The velocity and the divergence at a node; one forward."""

    @abstractmethod
    def standard_error(self, seen: Sequence[NodeDivergence]) -> Tensor:
        """Of the sum of the shares of all nodes, ``(B,)``."""

    @abstractmethod
    def counts(self) -> list[int]:
        """Vector-Jacobian products an item at every node."""


@dataclass(frozen=True, eq=False)
class ExactTrace(Trace):
    """The exact diagonal of J, by D products."""

    dim: int = 0

    def counts(self) -> list[int]:
        return [self.dim] * len(self.levels)

    def standard_error(self, seen: Sequence[NodeDivergence]) -> Tensor:
        return torch.zeros_like(seen[0].share)

    def look(self, field: Field, y: Tensor, node: int) -> tuple[Tensor, NodeDivergence]:
        velocity, rows = diagonal_through(self.parameters, field, y, self.white.axes(y))
        (diagonal, squares), (factors, rate) = wide(rows).unbind(dim=1), self.weights[node]
        shares = (factors.to(diagonal)[:, None] * (diagonal - rate.to(diagonal))).sum(dim=2)
        none = diagonal[:, None, :][:, :0]
        of_j = diagonal.sum(dim=1), squares.detach().sum(dim=1)
        return velocity, NodeDivergence(shares[0], shares[1:].detach(), *of_j, none, none)


def _totals(levels: Sequence[Level[float]], white: Whitened, stride: int) -> Tensor:
    """The weights of a quadrature over every so many nodes and the last, float64 ``(N + 1, C)``."""
    chosen = sorted({*range(0, len(levels), stride), len(levels) - 1})
    totals = torch.zeros(len(levels), len(white.std), dtype=torch.float64)
    totals[chosen] = Quadrature.of([levels[node] for node in chosen], white).totals
    return totals
