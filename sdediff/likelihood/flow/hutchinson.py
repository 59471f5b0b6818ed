r"""Hutchinson's trace estimator and its standard error, estimated from the same products.

A probe e with ``E[e e^T] = I`` gives ``e . (M^T e)``, whose mean is ``tr M``. For signs (Rademacher) its variance is
``2 sum_{i != j} S_ij^2``, for normals ``2 |S|_F^2``, with S the symmetric part of M (Hutchinson 1990). The products
``M^T e`` say how large that is: the share ``e_i (M^T e)_i`` has mean ``M_ii`` and the variance ``sum_{j != i} M_ji^2``,
which two probes of one node show. The square of a single share contains ``M_ii^2`` as well, whose mean is that of its
product with the share interpolated from the neighbouring nodes, between which M hardly changes.

Where J hardly changes between nodes, D probes orthogonal to one another give its trace exactly, not D independent ones
(:class:`OrthogonalTrace`). A replicate has one vector s of random signs an item, and its probes are ``e = s * h`` with
h one row of a Hadamard matrix after another, from node to node. Each alone is a vector of independent signs, so every
node's estimate is unbiased. Summed over the path a replicate is Hutchinson's estimator with the one probe s of a matrix
A,

    T = sum_ij s_i s_j A_ij,    A_ij = sum over probes of h_i h_j M_ij,

whose shares ``t_i = s_i sum_j A_ij s_j`` vary by ``sum_{j != i} A_ij^2``, and T itself by twice the sum of that where M
is symmetric. Two replicates, each with half of every node's probes, estimate it: ``(t_i - t'_i)^2`` is twice that
variance in the mean, whatever the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from sdediff.likelihood.flow.divergence import VectorField, products_through
from sdediff.likelihood.flow.trace import NodeDivergence, NodeWeights, Trace
from sdediff.noise import NoiseSource, Stage, probe_step, sign_step
from sdediff.numerics import choose, flatten, wide
from sdediff.samplers.clocks import FloatArray
from sdediff.types import Level

EXACT_UP_TO = 32
"""Dimensions up to which ``trace="auto"`` takes the exact trace, which costs that many backward passes a forward."""
ALWAYS_EXACT_UP_TO = 4
"""Dimensions up to which the trace is always exact: so few signs agree by chance, and hide their error."""
SHORT_PATH = 24
"""Nodes up to which a path is short: one probe a node would underestimate the error."""


class ProbeLaw(NamedTuple):
    """A distribution of probes.

    Attributes:
        draw: map from standard normals to probes of any shape.
        spares_diagonal: whether the diagonal of M adds nothing to the variance.
        orthogonal: whether these probes can be orthogonal along a path.
    """

    draw: Callable[[Tensor], Tensor]
    spares_diagonal: bool
    orthogonal: bool


PROBES: dict[str, ProbeLaw] = {
    "rademacher": ProbeLaw(lambda normals: torch.where(normals < 0.0, -1.0, 1.0).to(normals), True, True),
    "gaussian": ProbeLaw(lambda normals: normals, False, False),
}


class ProbeProducts(NamedTuple):
    """The probes of all nodes and their products.

    Attributes:
        probes: probes of the nodes, ``(B, K, D)`` each, independent of one another; K may differ.
        products: products ``M^T e``, ``(B, K, D)`` each, M including the quadrature's weight of its node.
        sizes: positive numbers such that ``M / size`` is smooth along the nodes.
    """

    probes: Sequence[Tensor]
    products: Sequence[Tensor]
    sizes: Sequence[float]

    def shares(self, node: int) -> Tensor:
        """Return the shares ``e_i (M^T e)_i`` of a node, ``(B, K, D)``."""
        return self.probes[node] * self.products[node]

    def interpolated(self, node: int) -> Tensor | None:
        """Return the shares of a node as interpolated from its neighbours, ``(B, D)``."""
        near = [i for i in (node - 1, node + 1) if 0 <= i < len(self.sizes)]
        if not near:
            return None
        shares = [self.shares(i).mean(dim=1) * (self.sizes[node] / self.sizes[i]) for i in near]
        return torch.stack(shares).mean(dim=0)


def standard_error(law: ProbeLaw, of_nodes: ProbeProducts) -> Tensor:
    """Return the standard error of the sum over all nodes of the means over their probes, ``(B,)``.

    Its square is unbiased where M is symmetric, but for the curvature of M along the nodes where ``K = 1``; too large
    elsewhere, by at most twice. It may rest on so few numbers that 1.96 of it would cover less than 95 %: a rank-one M
    gives a probe about 2.5 degrees of freedom, and the error is enlarged as Student's t requires for them.
    """
    counts = torch.tensor([float(e.shape[1]) for e in of_nodes.probes], dtype=torch.float64)
    values = torch.stack([node_variance(law, of_nodes, node) for node in range(len(counts))])
    return with_few_degrees(values, counts.to(values)[:, None])


def with_few_degrees(variances: Tensor, counts: Tensor) -> Tensor:
    """Return the standard error ``(B,)`` of a sum, from variances ``(nodes, B)`` estimated by ``counts`` probes."""
    total = variances.sum(dim=0)
    degrees = total.square() / (variances.square() / counts).sum(dim=0).clamp(min=torch.finfo(total.dtype).tiny)
    return total.sqrt() * (1.0 + 0.5 / degrees.clamp(min=1.0))


def node_variance(law: ProbeLaw, of_nodes: ProbeProducts, node: int) -> Tensor:
    """Return the variance of the mean over one node's probes, ``(B,)``, at least 0."""
    products, count = of_nodes.products[node], of_nodes.products[node].shape[1]
    single = _single_probe_variance(of_nodes, node) if law.spares_diagonal else products.square().sum(dim=2).mean(dim=1)
    return 2.0 * single.clamp(min=0.0) / count


def _single_probe_variance(of_nodes: ProbeProducts, node: int) -> Tensor:
    """Return ``sum_{i != j} S_ij^2`` of a node, ``(B,)``: the sum of the variances of one probe's shares."""
    own = of_nodes.shares(node)
    if own.shape[1] > 1:  # torch's own variance over a short dimension takes ten times as long
        return (own - own.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)) / (own.shape[1] - 1)
    own, expected, dim = own[:, 0], of_nodes.interpolated(node), own.shape[2]
    if expected is None:  # nothing to compare with: the bound |M|_F^2
        return own.square().sum(dim=1)
    if dim <= 4:
        return (own * (own - expected)).sum(dim=1)
    # The mean over coordinates is the least linear along the nodes. It is subtracted, and 2 / D of the spread with it.
    own = own - own.mean(dim=1, keepdim=True)
    return (own * (own - expected)).sum(dim=1) * (dim / (dim - 2))


def probes_for(trace: str, probes: int, dim: int) -> int | None:
    """Return the number of probes for the options ``trace`` and ``probes``; ``None`` for the exact trace.

    Raises:
        ValueError: for an unknown trace.
    """
    exact = choose({"auto": dim <= EXACT_UP_TO, "exact": True, "hutchinson": False}, trace, "trace")
    return None if exact or probes >= dim or dim <= ALWAYS_EXACT_UP_TO else probes


def draw_probes(law: ProbeLaw, source: NoiseSource, draw: int, node: int, count: int, first: int = 0) -> Tensor:
    """Draw probes ``first, first + 1, ...`` of a node, ``(B, count, D)``, by (seed, item, draw, node, number) alone."""
    numbers = (probe_step(draw, node, first + k) for k in range(count))
    normals = [flatten(source.normal(number, stage=Stage.PROBES)) for number in numbers]
    return law.draw(torch.stack(normals, dim=1))


@dataclass(frozen=True, eq=False)
class HutchinsonTrace(Trace):
    """Independent probes at every node (Hutchinson 1990), most of them where J is least certain.

    The estimate for the data's own Gaussian, whose mean is known, is a control variate: with full weight in the noise,
    where every distribution looks like its Gaussian, with none near the data.

    Args:
        law: distribution of the probes.
        count: mean number of probes an item at a node, K. Where K is at least 2, every node has at least 2, which give
            an estimate of their own variance.
        source: source of the random numbers.
        draw: number of the draw; different draws have different probes.
    """

    law: ProbeLaw
    count: int
    source: NoiseSource
    draw: int = 0

    def count_products(self) -> list[int]:
        """Return the numbers of probes that minimise the variance if its root is :func:`_deviations`.

        A network may be rough anywhere: every node has at least half of the mean, so that the error falls as their
        number grows, and is at most 1.4 times the least one where the rule is right. A single probe gives no variance:
        on short paths, whose nodes are too unlike for their neighbours' to serve, all nodes have two, on long paths
        those of the largest weight.
        """
        deviations, nodes = _deviations(self.levels, self.weights), len(self.levels)
        if self.count == 1 and nodes <= SHORT_PATH:
            return [2] * nodes
        more = math.isqrt(nodes) if self.count == 1 else 0
        least = max(min(self.count, 2), self.count // 2)
        return _apportion(deviations / deviations.sum(), self.count * nodes + more, least)

    def probes(self, node: int) -> Tensor:
        """Draw the probes of a node, ``(B, K, D)``."""
        return draw_probes(self.law, self.source, self.draw, node, self.counts[node])

    def evaluate(self, field: VectorField, y: Tensor, node: int) -> tuple[Tensor, NodeDivergence]:
        probes = self.probes(node)
        velocity, products = products_through(self.parameters, field, y, probes, self.batched)
        return velocity, self.divergence(probes, products, node)

    def standard_error(self, divergences: Sequence[NodeDivergence]) -> Tensor:
        return self.independent_error(divergences)

    def independent_error(self, divergences: Sequence[NodeDivergence]) -> Tensor:
        """Return the standard error of the sum of all nodes' shares as if they were independent, ``(B,)``.

        That is the noise of a difference between two quadratures, which weigh the nodes differently.
        """
        # J is about (I - C / sin^2) / tan, with the covariance C of the data given the state: times tan it is smooth
        weighted = zip(self.weights, self.levels, strict=True)
        sizes = [abs(float(weights.factors[0].mean())) / math.tan(level.angle) for weights, level in weighted]
        probes, products = [node.probes for node in divergences], [node.products for node in divergences]
        return standard_error(self.law, ProbeProducts(probes, products, sizes))

    def divergence(self, probes: Tensor, products: Tensor, node: int) -> NodeDivergence:
        """Return the divergence at a node by probes ``(B, K, D)`` and their products ``J^T e``."""
        probes, products, (factors, rate) = wide(probes), wide(products), self.weights[node]
        square = products.detach().square().sum(dim=(1, 2)) / products.shape[1]
        gaussian, factors = (math.sin(self.levels[node].angle) * rate).to(products), factors.to(products)
        rotated = self.whitened.rotate(probes)
        excess = torch.addcmul(self.whitened.rotate(products), gaussian, rotated, value=-1.0)
        remainder = (factors * (rate.to(products) - gaussian)).sum(dim=1) * (probes.shape[2] // factors.shape[1])
        diagonal = (rotated * excess).mean(dim=1)
        shares = factors.expand(-1, probes.shape[2]) @ diagonal.T - remainder[:, None]
        trace = diagonal.sum(dim=1) + gaussian.sum() * (probes.shape[2] // len(gaussian))
        return NodeDivergence(
            shares[0], shares[1:].detach(), trace, square, probes, self.whitened.rotate_back(factors[0] * excess)
        )


def _deviations(levels: Sequence[Level[float]], weights: Sequence[NodeWeights]) -> FloatArray:
    """Return the size of the off-diagonal of J times the quadrature's weight at every node, in any unit.

    For J itself it is a rule, measured on exact problems and a trained network: it vanishes in the noise, where every
    distribution looks like its Gaussian; near the data exact fields have little of it, networks as much as elsewhere.
    """
    angles = np.array([level.angle for level in levels])
    sizes = np.array([float(weight.factors[0].square().mean().sqrt()) for weight in weights])
    deviations: FloatArray = sizes * (0.3 + angles) * np.sqrt(np.pi / 2.0 - angles) ** 3
    deviations += 1e-3 * deviations.max()
    return deviations


def _apportion(shares: FloatArray, total: int, least: int) -> list[int]:
    """Return whole numbers of at least ``least``, about ``total`` in all, in proportion to ``shares`` where larger."""
    free = np.ones(len(shares), dtype=bool)
    while True:  # smaller numbers become the least, and the rest is shared anew
        each = shares * (total - least * int((~free).sum())) / max(float(shares[free].sum()), 1e-300)
        low = free & (each < least)
        if not low.any():
            return [int(number) for number in np.where(free, np.rint(each), float(least))]
        free &= ~low


class Replicate(NamedTuple):
    """The probes of a replicate, P along the path.

    Attributes:
        signs: its signs, ``(B, D)``.
        upper: factors of their Hadamard rows, of the columns' upper bits, ``(B, P, ...)``.
        lower: factors of the lower bits, ``(B, P, ...)``.
    """

    signs: Tensor
    upper: Tensor
    lower: Tensor

    def probes(self, first: int, count: int) -> Tensor:
        """Return the probes ``first, first + 1, ...``, ``(B, count, D)``."""
        upper, lower = (part[:, first : first + count] for part in (self.upper, self.lower))
        return self.signs[:, None, :] * hadamard(upper, lower, self.signs.shape[1])


@dataclass(frozen=True, eq=False)
class OrthogonalTrace(HutchinsonTrace):
    """Signs in two replicates, orthogonal along the path; an even number of them at every node."""

    def count_products(self) -> list[int]:
        """Return the numbers of probes of the nodes, half of them in each replicate."""
        return [2 * round(0.5 * number) for number in super().count_products()]

    def probes(self, node: int) -> Tensor:
        """Draw the probes of a node, ``(B, K, D)``, the first half of them of the first replicate."""
        before, count = sum(self.counts[:node]) // 2, self.counts[node] // 2
        return torch.cat([replicate.probes(before, count) for replicate in self._replicates], dim=1)

    @cached_property
    def _replicates(self) -> list[Replicate]:
        """Draw both replicates."""
        return [self._draw_replicate(half) for half in (0, 1)]

    def _draw_replicate(self, half: int) -> Replicate:
        number = sign_step(self.draw, half)
        signs, offsets = (flatten(self.source.normal(number + i, stage=Stage.PROBES)) for i in (0, 1))
        size = 1 << (signs.shape[1] - 1).bit_length()
        # every item takes the rows from a start and in odd strides of its own: each comes once before any comes twice
        start, stride = (torch.special.ndtr(wide(offsets[:, i : i + 1])) * (size - 1) for i in (0, 1))
        numbers = torch.arange(sum(self.counts) // 2, device=signs.device)
        rows = (start.long() + (2 * (stride.long() // 2) + 1) * numbers) % size
        upper, lower = (part.to(signs) for part in hadamard_factors(rows, signs.shape[1]))
        return Replicate(torch.where(signs < 0.0, -1.0, 1.0).to(signs), upper, lower)

    def standard_error(self, divergences: Sequence[NodeDivergence]) -> Tensor:
        """Return the standard error of the mean of both replicates, ``(B,)``."""
        halves = [torch.chunk(node.shares, 2, dim=1) for node in divergences]
        first, second = (torch.stack([pair[i].mean(dim=1) for pair in halves]).sum(dim=0) for i in (0, 1))
        return (0.5 * (first - second).square().sum(dim=1)).sqrt() * widening(first.shape[1])


def widening(dim: int) -> float:
    """Return the factor by which the error is enlarged, since the coordinates have their signs in common.

    It makes 1.96 errors reach as far as Student's t with ``dim - 4.5`` degrees of freedom: measured on mixtures of 8 to
    64 dimensions.
    """
    return float(scipy.special.stdtrit(max(1.0, dim - 4.5), 0.975) / scipy.special.ndtri(0.975))


def hadamard_factors(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the factors of Sylvester's rows of ``dim`` entries, +1 and -1: of the columns' upper and lower bits."""
    bits = (dim - 1).bit_length() // 2
    return _parities(rows >> bits, -(-dim >> bits)), _parities(rows, 1 << bits)


def hadamard(upper: Tensor, lower: Tensor, dim: int) -> Tensor:
    """Return the first ``dim`` entries of the rows ``(..., dim)`` of these factors: parity of ``row & column``."""
    return (upper[..., :, None] * lower[..., None, :]).flatten(-2)[..., :dim]


def _parities(rows: Tensor, dim: int) -> Tensor:
    """Return ``(-1)^n`` for the number n of bits of ``row & column``, columns 0, ..., dim - 1."""
    bits = rows[..., None] & torch.arange(dim, device=rows.device)
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1 - 2 * (bits & 1)
