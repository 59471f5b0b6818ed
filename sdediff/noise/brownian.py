"""Brownian paths whose increments do not depend on the order in which they are read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.noise.source import NoiseSource
from sdediff.noise.stages import BROWNIAN_STEP


class BrownianPath:
    """A Brownian motion on ``[start, end]`` whose path does not depend on the order of evaluation.

    Values come from dyadic midpoint refinement (a virtual Brownian tree, Li et al. 2020): the normal of every node of
    the tree is a function of (seed, sample, node), so halving a step splits its increment instead of drawing anew.
    Times are rounded to the finest dyadic node, ``(end - start) / 2**depth``.

    >>> path = sdediff.BrownianPath(sdediff.NoiseSource(0, (1, 2)), 0.0, 1.0)
    >>> torch.allclose(path.increment(0.0, 0.5) + path.increment(0.5, 1.0), path.increment(0.0, 1.0))
    True
    """

    def __init__(self, noise: NoiseSource, start: float, end: float, depth: int = 20) -> None:
        if not end > start:
            raise ValueError(f"the path needs start < end, not {start:g} and {end:g}")
        self.noise, self.start, self.end, self.depth = noise, start, end, depth
        self._cache: dict[int, Tensor] = {0: torch.zeros(noise.shape, dtype=noise.dtype, device=noise.device)}
        self._cache[1 << depth] = math.sqrt(end - start) * noise.normal(BROWNIAN_STEP)

    def _value(self, node: int) -> Tensor:
        """Return W at dyadic node number ``node`` (0 at the start, ``2**depth`` at the end)."""
        if node not in self._cache:
            reach = node & -node  # the node halves an interval of this half-width
            left, right = self._value(node - reach), self._value(node + reach)
            std = math.sqrt((self.end - self.start) * reach / (2 << self.depth))
            self._cache[node] = 0.5 * (left + right) + std * self.noise.normal(BROWNIAN_STEP + node)
        return self._cache[node]

    def increment(self, s: float, t: float) -> Tensor:
        """Return ``W(t) - W(s)``, shape ``(B, *shape)``."""
        width = (self.end - self.start) / (1 << self.depth)
        low, high = round((s - self.start) / width), round((t - self.start) / width)
        if not 0 <= low <= high <= 1 << self.depth:
            raise ValueError(f"[{s:g}, {t:g}] is not within [{self.start:g}, {self.end:g}]")
        return self._value(high) - self._value(low)
