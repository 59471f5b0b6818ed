"""Noise as a function of ``(seed, sample, step, stage)``: the same for any batch size, order, device or resume.

Each ``(seed, step, stage)`` has its own stream of PCG64DXSM (O'Neill 2014; Steele & Vigna 2021), keyed by a hash of the
three, and each sample its own section of that stream, to which the generator jumps: sample 7 of a batch of 64 is sample
7 drawn alone, and a batch of neighbours is one run. Random words become normals two by two (Box & Muller 1958). No
global generator is touched. Draws are made on the CPU and moved, so that a seed means the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum, unique
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_PAIRS = 1 << 15  # pairs drawn at a time, so that their intermediates stay in the cache


@unique
class Stage(IntEnum):
    """Register of the stages: one for every use of the noise, so that no two draws share a stream.

    Within a stage the step counts nodes or draws.
    """

    SOLVER = 0
    """Noise of the initial state (step :attr:`NoiseSource.START`), of a solver's step i (step i, stages from 0 on), and
    of the nodes of a Brownian path (steps from :data:`BROWNIAN_STEP` on)."""
    DEQUANTISATION = 2
    """Values for integers; the step is the number of the draw."""
    PROBES = 3
    """Probes of a divergence; the step is :func:`probe_step` or :func:`sign_step`."""
    BOUND = 4
    """Noise of the terms of a bound at every node: draw k has stage ``BOUND + k``, the step is the node."""
    BOUND_LEVELS = -1
    """Levels of the sampled terms of a bound; the step is their number."""
    BOUND_SAMPLED = -2
    """Noise of the sampled terms of a bound; the step is the number of the term."""
    LOSS = -12
    """Draws of a training loss at a step: the noise, then the levels, then the dequantisation, three stages."""


BROWNIAN_STEP = 1 << 32
"""First step of the nodes of a Brownian path, above the steps of any solver."""


def probe_step(draw: int, node: int, number: int) -> int:
    """Return the step of one probe of a node, in :attr:`Stage.PROBES`."""
    return (draw << 40) | (node << 20) | number


def sign_step(draw: int, replicate: int) -> int:
    """Return the first of two steps of a replicate of orthogonal probes, in :attr:`Stage.PROBES` above the nodes'."""
    return (draw << 40) | (1 << 39) | (2 * replicate)


class NoiseSource:
    """Source of standard normals for a batch of states.

    Args:
        seed: any integer.
        shape: shape of a draw, ``(B, *shape)``.
        samples: index of each sample, ``B`` integers; by default ``first, first + 1, ...``.
        first: index of the first sample.
        dtype: dtype of the draws (float32 or float64 are drawn natively, others converted).
        device: device of the draws.

    >>> batch, alone = sdediff.NoiseSource(0, (8, 2)), sdediff.NoiseSource(0, (1, 2), first=7)
    >>> torch.equal(batch.normal(step=3)[7:], alone.normal(step=3))
    True
    """

    START = -1
    """The step of the draw of the initial state."""

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
        self._pairs = -(-math.prod(self.shape[1:]) // 2)  # of each sample
        # Neighbours have one difference between index and row, and are drawn in one run.
        rows = groupby(enumerate(self.samples), key=lambda row: row[1] - row[0])
        self._runs = [(run[0][1], len(run)) for run in (list(group) for _, group in rows)]

    def subset(self, rows: Sequence[int]) -> NoiseSource:
        """Return the source of some of the samples, by their rows; each keeps its noise."""
        samples = [self.samples[row] for row in rows]
        return NoiseSource(
            self.seed, (len(rows), *self.shape[1:]), samples=samples, dtype=self.dtype, device=self.device
        )

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Draw standard normals ``(B, *shape)`` of one step and stage."""
        kind = np.float64 if self.dtype == torch.float64 else np.float32
        pairs = np.empty((len(self.samples) * self._pairs, 2), dtype=kind)
        start = 0
        for first, count in self._runs:
            stop = start + count * self._pairs
            bits = self._stream(step, stage).advance(first * self._pairs * pairs.itemsize // 4)
            for low in range(start, stop, _PAIRS):
                _box_muller(bits, pairs[low : min(low + _PAIRS, stop)])
            start = stop
        size = math.prod(self.shape[1:])
        normals = torch.from_numpy(pairs).reshape(len(self.samples), -1)[:, :size].reshape(self.shape).to(self.dtype)
        return to_device(normals, self.device)

    def _stream(self, step: int, stage: int) -> np.random.PCG64DXSM:
        """Return the generator at the start of the stream of ``(seed, step, stage)``."""
        key = np.array([self.seed & _MASK, step & _MASK, stage & _MASK], dtype="<u8")
        return np.random.PCG64DXSM(np.random.SeedSequence(key.view("<u4").tolist()))


def _box_muller(bits: np.random.PCG64DXSM, out: NDArray[np.floating]) -> None:
    """Fill ``(n, 2)`` with normals: ``sqrt(-2 log u) (cos, sin)(angle)`` of an even u in (0, 1] and an even angle."""
    width = 8 * out.itemsize
    words = bits.random_raw(len(out) * out.itemsize // 4).astype("<u8", copy=False)
    words = words.view(f"<u{out.itemsize}").reshape(-1, 2)
    radius = words[:, 0].astype(out.dtype)  # small u, the tails, keep all their digits
    radius += out.dtype.type(0.5)
    radius *= out.dtype.type(2.0**-width)
    np.log(radius, out=radius)
    radius *= out.dtype.type(-2.0)
    np.sqrt(radius, out=radius)
    angle = words[:, 1].view(f"<i{out.itemsize}").astype(out.dtype)
    angle *= out.dtype.type(math.pi * 2.0 ** (1 - width))
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])


def to_device(normals: Tensor, device: torch.device) -> Tensor:
    """Move a draw without waiting for the device: the copy is queued after the work already there."""
    if device.type == "cpu":
        return normals
    pinned = normals.pin_memory() if device.type == "cuda" else normals  # else the copy would be a host barrier
    return pinned.to(device, non_blocking=device.type == "cuda")


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
