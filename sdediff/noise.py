"""Noise as a function of ``(seed, sample, step)``: the same for any batch size, order, device or resume.

Each (sample, step) has its own stream of the counter-based generator Philox (Salmon et al. 2011), keyed by the seed
and the sample's index, so sample 7 of a batch of 64 is sample 7 drawn alone. No global generator is touched. Draws are
made on the CPU and moved, so that a seed means the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class NoiseSource:
    """Standard normals for a batch of states.

    Args:
        seed: any integer.
        shape: ``(B, *shape)``.
        samples: the index of each sample, ``B`` integers; by default ``first, first + 1, ...``.
        first: index of the first sample.
        dtype: of the draws (float32 or float64 are drawn natively, others converted).
        device: of the draws.
    """

    START = -1
    """The step under which the initial state is drawn."""

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        *,
        samples: Sequence[int] | None = None,
        first: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seed, self.shape, self.dtype, self.device = int(seed), tuple(shape), dtype, torch.device(device)
        self.samples = tuple(range(first, first + self.shape[0])) if samples is None else tuple(samples)
        if len(self.samples) != self.shape[0]:
            raise ValueError(f"{len(self.samples)} sample indices for a batch of {self.shape[0]}")
        self._draw_dtype = np.float64 if dtype == torch.float64 else np.float32
        self._size = math.prod(self.shape[1:])
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Standard normals ``(B, *shape)`` of one step; ``stage`` tells several draws of a step apart."""
        out = np.empty((len(self.samples), self._size), dtype=self._draw_dtype)
        for row, sample in zip(out, self.samples, strict=True):
            self._seek(sample, step, stage).standard_normal(dtype=self._draw_dtype, out=row)
        return torch.from_numpy(out).reshape(self.shape).to(dtype=self.dtype, device=self.device)

    def _seek(self, sample: int, step: int, stage: int) -> np.random.Generator:
        """Put the generator at the start of the stream of ``(seed, sample, step, stage)``."""
        state = self._state
        state["state"]["key"][:] = self.seed & _MASK, sample & _MASK
        state["state"]["counter"][:] = 0, stage & _MASK, step & _MASK, 0
        state["buffer_pos"], state["has_uint32"] = 4, 0
        self._bits.state = state
        return self._generator


class BrownianPath:
    """A Brownian motion on ``[start, end]`` that is one path, however finely or in whatever order it is read.

    Values come from dyadic midpoint refinement (a virtual Brownian tree, Li et al. 2020): the normal of every node of
    the tree is a function of (seed, sample, node), so halving a step splits its increment instead of drawing anew.
    Times are rounded to the finest dyadic node, ``(end - start) / 2**depth``.
    """

    _TREE = 1 << 32  # the steps under which nodes are drawn, out of the way of a solver's own steps

    def __init__(self, noise: NoiseSource, start: float, end: float, depth: int = 20) -> None:
        if not end > start:
            raise ValueError(f"the path needs start < end, not {start:g} and {end:g}")
        self.noise, self.start, self.end, self.depth = noise, start, end, depth
        self._cache: dict[int, Tensor] = {0: torch.zeros(noise.shape, dtype=noise.dtype, device=noise.device)}
        self._cache[1 << depth] = math.sqrt(end - start) * noise.normal(self._TREE)

    def _value(self, node: int) -> Tensor:
        """W at dyadic node number ``node`` (0 at the start, ``2**depth`` at the end)."""
        if node not in self._cache:
            reach = node & -node  # the node halves an interval of this half-width
            left, right = self._value(node - reach), self._value(node + reach)
            std = math.sqrt((self.end - self.start) * reach / (2 << self.depth))
            self._cache[node] = 0.5 * (left + right) + std * self.noise.normal(self._TREE + node)
        return self._cache[node]

    def increment(self, s: float, t: float) -> Tensor:
        """``W(t) - W(s)``, shape ``(B, *shape)``."""
        width = (self.end - self.start) / (1 << self.depth)
        low, high = round((s - self.start) / width), round((t - self.start) / width)
        if not 0 <= low <= high <= 1 << self.depth:
            raise ValueError(f"[{s:g}, {t:g}] is not within [{self.start:g}, {self.end:g}]")
        return self._value(high) - self._value(low)
