r"""Random probes, and what they say of their own error.

A probe e with ``E[e e^T] = I`` gives ``e . (M^T e)``, whose mean is ``tr M``. For signs (Rademacher) its variance is
``2 sum_{i != j} S_ij^2``, for normals ``2 |S|_F^2``, with S the symmetric part of M (Hutchinson 1990). The products
``M^T e`` say how large that is: the share ``e_i (M^T e)_i`` has mean ``M_ii`` and the variance ``sum_{j != i} M_ji^2``,
which is seen between two probes of one node. The square of a single share has ``M_ii^2`` in it as well, whose mean is
that of its product with the share that the nodes on either side expect, between which M hardly changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ProbeLaw(NamedTuple):
    """A law of probes.

    Attributes:
        draw: from standard normals to probes of any shape.
        spares_diagonal: whether the diagonal of M adds nothing to the variance.
        orthogonal: whether probes of this law can be orthogonal along a path.
    """

    draw: Callable[[Tensor], Tensor]
    spares_diagonal: bool
    orthogonal: bool


PROBES: dict[str, ProbeLaw] = {
    "rademacher": ProbeLaw(lambda normals: torch.where(normals < 0.0, -1.0, 1.0).to(normals), True, True),
    "gaussian": ProbeLaw(lambda normals: normals, False, False),
}


class Sights(NamedTuple):
    """What the probes of every node gave.

    Attributes:
        probes: ``(B, K, D)`` each, independent of one another; K may differ.
        products: ``M^T e``, ``(B, K, D)`` each, M carrying the quadrature's weight of its node.
        sizes: positive, such that ``M / size`` is smooth along the nodes.
    """

    probes: Sequence[Tensor]
    products: Sequence[Tensor]
    sizes: Sequence[float]

    def shares(self, node: int) -> Tensor:
        """``e_i (M^T e)_i``, ``(B, K, D)``."""
        return self.probes[node] * self.products[node]

    def beside(self, node: int) -> Tensor | None:
        """The shares of a node as its neighbours on either side have them, ``(B, D)``."""
        near = [i for i in (node - 1, node + 1) if 0 <= i < len(self.sizes)]
        if not near:
            return None
        found = [self.shares(i).mean(dim=1) * (self.sizes[node] / self.sizes[i]) for i in near]
        return torch.stack(found).mean(dim=0)


def standard_error(law: ProbeLaw, sights: Sights) -> Tensor:
    """Of the sum over all nodes of the means over their probes, ``(B,)``.

    Its square is unbiased where M is symmetric, but for the curvature of M along the nodes where ``K = 1``; too large
    elsewhere, by at most twice. So few numbers may speak of it that 1.96 of it would cover less than 95 %: a rank-one M
    gives a probe about 2.5 degrees of freedom, and the error is stated larger by what Student's t asks for them.
    """
    counts = torch.tensor([float(e.shape[1]) for e in sights.probes], dtype=torch.float64)
    values = torch.stack([node_variance(law, sights, node) for node in range(len(counts))])
    return with_few_degrees(values, counts.to(values)[:, None])


def with_few_degrees(variances: Tensor, counts: Tensor) -> Tensor:
    """The standard error ``(B,)`` of a sum, its terms' variances ``(nodes, B)`` estimated from ``counts`` probes."""
    total = variances.sum(dim=0)
    degrees = total.square() / (variances.square() / counts).sum(dim=0).clamp(min=torch.finfo(total.dtype).tiny)
    return total.sqrt() * (1.0 + 0.5 / degrees.clamp(min=1.0))


def node_variance(law: ProbeLaw, sights: Sights, node: int) -> Tensor:
    """Of the mean over one node's probes, ``(B,)``, at least 0."""
    products, count = sights.products[node], sights.products[node].shape[1]
    single = _spread(sights, node) if law.spares_diagonal else products.square().sum(dim=2).mean(dim=1)
    return 2.0 * single.clamp(min=0.0) / count


def _spread(sights: Sights, node: int) -> Tensor:
    """``sum_{i != j} S_ij^2`` of a node, ``(B,)``: the variances of the shares of one probe, summed."""
    own = sights.shares(node)
    if own.shape[1] > 1:
        return own.var(dim=1).sum(dim=1)
    own, expected, dim = own[:, 0], sights.beside(node), own.shape[2]
    if expected is None:  # nothing to compare with: the bound |M|_F^2
        return own.square().sum(dim=1)
    if dim <= 4:
        return (own * (own - expected)).sum(dim=1)
    # What all coordinates share bends most along the nodes. It is taken off, and 2 / D of the spread with it.
    own = own - own.mean(dim=1, keepdim=True)
    return (own * (own - expected)).sum(dim=1) * (dim / (dim - 2))
