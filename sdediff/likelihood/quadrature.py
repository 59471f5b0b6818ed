r"""Integrals along a path that is known at its nodes.

What is left of the divergence when the data's own Gaussian is taken out is a smooth function of each coordinate's own
angle phi (:class:`~sdediff.gaussian.Whitened`). On every interval it is interpolated through the nodes nearest to it,
on both sides, by a kernel (:mod:`sdediff.samplers.interpolation`), and the result is integrated. The path was made by
extrapolation from one side; the same weights say by how much each of its steps missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Whitened
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
