r"""How the divergence is taken at the nodes of a path.

At a node, with ``J = dv / dy`` in the axes of the data's covariance and ``w_c`` the weight of coordinate c's clock,

    share = sum_c w_c (J_cc - r_c) / (d phi_c / d theta),    r_c = d log rho_c / d theta

is its part of the log-determinant; ``r`` is what J's diagonal would be for the data's own Gaussian. A trace looks once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Whitened
from sdediff.likelihood.divergence import Field
from sdediff.likelihood.gradient import diagonal_through, products_through
from sdediff.likelihood.probes import ProbeLaw, Sights, standard_error
from sdediff.likelihood.quadrature import Quadrature
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, flatten, wide
from sdediff.samplers.clocks import Array
from sdediff.types import Level

EXACT_UP_TO = 32
"""Dimensions up to which ``trace="auto"`` takes the exact trace, which costs that many backward passes a forward."""
SMALL = 4
"""Dimensions up to which the trace is exact even where probes are asked for: so few signs often agree by chance, and do
not tell how far they are off."""
SHORT = 24
"""Nodes up to which a path is short: a probe of each would not tell how far the estimate is off."""
STAGE = 3  # of the noise source: apart from the solvers' and the dequantisation's


def probes_for(trace: str, probes: int, dim: int) -> int | None:
    """The number of probes that ``trace=`` and ``probes=`` of a call mean; ``None`` for the exact trace.

    Raises:
        ValueError: for an unknown trace.
    """
    exact = choose({"auto": dim <= EXACT_UP_TO, "exact": True, "hutchinson": False}, trace, "trace")
    return None if exact or probes >= dim or dim <= SMALL else probes


def draw_probes(law: ProbeLaw, source: NoiseSource, draw: int, node: int, count: int, first: int = 0) -> Tensor:
    """Probes ``first, first + 1, ...`` of a node, ``(B, count, D)``: functions of (seed, item, draw, node, number)."""
    numbers = ((draw << 40) | (node << 20) | (first + k) for k in range(count))
    normals = [flatten(source.normal(number, stage=STAGE)) for number in numbers]
    return law.draw(torch.stack(normals, dim=1))


class Seen(NamedTuple):
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
    seen: Seen


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
    def look(self, field: Field, y: Tensor, node: int) -> tuple[Tensor, Seen]:
        """The velocity and the divergence at a node; one forward."""

    @abstractmethod
    def standard_error(self, seen: Sequence[Seen]) -> Tensor:
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

    def standard_error(self, seen: Sequence[Seen]) -> Tensor:
        return torch.zeros_like(seen[0].share)

    def look(self, field: Field, y: Tensor, node: int) -> tuple[Tensor, Seen]:
        velocity, rows = diagonal_through(self.parameters, field, y, self.white.axes(y))
        (diagonal, squares), (factors, rate) = wide(rows).unbind(dim=1), self.weights[node]
        shares = (factors.to(diagonal)[:, None] * (diagonal - rate.to(diagonal))).sum(dim=2)
        none = diagonal[:, None, :][:, :0]
        of_j = diagonal.sum(dim=1), squares.detach().sum(dim=1)
        return velocity, Seen(shares[0], shares[1:].detach(), *of_j, none, none)


@dataclass(frozen=True, eq=False)
class HutchinsonTrace(Trace):
    """Independent probes at every node (Hutchinson 1990), most of them where J is least known.

    What the data's own Gaussian makes of a probe is known, and is taken off as a control variate: all of it in the
    noise, where every distribution looks like its Gaussian, nothing of it near the data.

    Args:
        law: of the probes.
        count: probes an item at a node in the mean, K. At least 2 at each if K is, so that every node shows its own
            spread.
        source: of the random numbers.
        draw: number of the draw: another one has other probes.
    """

    law: ProbeLaw
    count: int
    source: NoiseSource
    draw: int = 0

    def counts(self) -> list[int]:
        """Probes of every node; as many as make the variance smallest where it is the square of :func:`_deviations`.

        No rule knows where a network is rough: every node has half of the mean at least, so that the error falls as
        their number grows, and is at most 1.4 times the least one where the rule is right. A single probe a node does
        not show its spread: on short paths, whose nodes are too unlike to tell one another's, all have two, on long
        ones those that weigh most.
        """
        wanted, nodes = _deviations(self.levels, self.weights), len(self.levels)
        if self.count == 1 and nodes <= SHORT:
            return [2] * nodes
        more = math.isqrt(nodes) if self.count == 1 else 0
        least = max(min(self.count, 2), self.count // 2)
        return _apportion(wanted / wanted.sum(), self.count * nodes + more, least)

    def probes(self, node: int) -> Tensor:
        """``(B, K, D)``."""
        return draw_probes(self.law, self.source, self.draw, node, self.plan[node])

    def look(self, field: Field, y: Tensor, node: int) -> tuple[Tensor, Seen]:
        probes = self.probes(node)
        velocity, products = products_through(self.parameters, field, y, probes)
        return velocity, self.see(probes, products, node)

    def standard_error(self, seen: Sequence[Seen]) -> Tensor:
        return self.error_of_independent(seen)

    def error_of_independent(self, seen: Sequence[Seen]) -> Tensor:
        """Return the standard error of a sum of all nodes' shares in which no node makes up for another, ``(B,)``.

        That is the noise of a difference between two quadratures, which weigh the nodes differently.
        """
        # J is about (I - C / sin^2) / tan, with the covariance C of the data given the state: times tan it is smooth
        weighted = zip(self.weights, self.levels, strict=True)
        sizes = [abs(float(weights.factors[0].mean())) / math.tan(level.angle) for weights, level in weighted]
        return standard_error(self.law, Sights([look.probes for look in seen], [look.products for look in seen], sizes))

    def see(self, probes: Tensor, products: Tensor, node: int) -> Seen:
        """What probes ``(B, K, D)`` of a node and their products ``J^T e`` say."""
        probes, products, (factors, rate) = wide(probes), wide(products), self.weights[node]
        square = products.detach().square().sum(dim=2).mean(dim=1)
        known, factors = (math.sin(self.levels[node].angle) * rate).to(products), factors.to(products)
        turned = self.white.turn(probes)
        excess = self.white.turn(products) - known * turned
        left = (factors * (rate.to(products) - known)).sum(dim=1) * (probes.shape[2] // factors.shape[1])
        diagonal = (turned * excess).mean(dim=1)
        shares = (diagonal * factors[:, None]).sum(dim=2) - left[:, None]
        trace = diagonal.sum(dim=1) + known.sum() * (probes.shape[2] // len(known))
        return Seen(shares[0], shares[1:].detach(), trace, square, probes, self.white.back(factors[0] * excess))


def _totals(levels: Sequence[Level[float]], white: Whitened, stride: int) -> Tensor:
    """The weights of a quadrature over every so many nodes and the last, float64 ``(N + 1, C)``."""
    chosen = sorted({*range(0, len(levels), stride), len(levels) - 1})
    totals = torch.zeros(len(levels), len(white.std), dtype=torch.float64)
    totals[chosen] = Quadrature.of([levels[node] for node in chosen], white).totals
    return totals


def _deviations(levels: Sequence[Level[float]], weights: Sequence[Weights]) -> Array:
    """How large the off-diagonal of J times the quadrature's weight is at every node, in any unit.

    Of J itself it is a rule, measured on exact problems and a trained network: it ends with the noise, where every law
    looks like its Gaussian; near the data exact fields have little of it, those of networks as much as elsewhere.
    """
    angles = np.array([level.angle for level in levels])
    sizes = np.array([float(weight.factors[0].square().mean().sqrt()) for weight in weights])
    deviations: Array = sizes * (0.3 + angles) * np.sqrt(np.pi / 2.0 - angles) ** 3
    deviations += 1e-3 * deviations.max()
    return deviations


def _apportion(shares: Array, total: int, least: int) -> list[int]:
    """Whole numbers of at least ``least``, about ``total`` in all, in proportion to ``shares`` as far as that goes."""
    free = np.ones(len(shares), dtype=bool)
    while True:  # those that deserve less get the least, and the rest is shared anew
        each = shares * (total - least * int((~free).sum())) / max(float(shares[free].sum()), 1e-300)
        low = free & (each < least)
        if not low.any():
            return [int(number) for number in np.where(free, np.rint(each), float(least))]
        free &= ~low
