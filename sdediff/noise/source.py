"""Noise as a function of ``(seed, sample, step, stage)``: the same for any batch size, order, device or resume.

Sample 7 of a batch of 64 is sample 7 drawn alone. Words of integers are the same on every device, normals to rounding.
Draws are made on the device that they are for. No global generator is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdediff.noise.devices import draw_normals, draw_uniforms
from sdediff.noise.laws import host_normals, host_uniforms
from sdediff.noise.words import Words, signed, stream_key


class NoiseSource:
    """Source of standard normals for a batch of states.

    Args:
        seed: any integer.
        shape: shape of a draw, ``(B, *shape)``.
        samples: index of each sample, ``B`` integers; by default ``first, first + 1, ...``. Integers count modulo 2^64.
        first: index of the first sample.
        dtype: dtype of the draws (float32 or float64 are drawn natively, others converted).
        device: device of the draws.

    Raises:
        ValueError: for a seed that is no integer, or indices that are not one a row.

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
        if not isinstance(seed, int | np.integer):
            raise ValueError(f"the seed must be a whole number, not {seed!r}")
        self.seed, self.shape, self.dtype, self.device = int(seed), tuple(shape), dtype, torch.device(device)
        self.samples = tuple(range(first, first + self.shape[0]) if samples is None else (int(k) for k in samples))
        if len(self.samples) != self.shape[0]:
            raise ValueError(f"{len(self.samples)} sample indices for a batch of {self.shape[0]}")
        self._native = torch.float64 if dtype == torch.float64 else torch.float32
        self._indices = _indices(self.samples)
        self._on_device: Tensor | None = None

    def subset(self, rows: Sequence[int]) -> NoiseSource:
        """Return the source of some of the samples, by their rows; each keeps its noise."""
        samples = [self.samples[row] for row in rows]
        return NoiseSource(
            self.seed, (len(rows), *self.shape[1:]), samples=samples, dtype=self.dtype, device=self.device
        )

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Draw standard normals ``(B, *shape)`` of one step and stage."""
        key, size = stream_key("normal", self.seed, step, stage), math.prod(self.shape[1:])
        if self.device.type == "cpu":
            drawn = host_normals(key, self._indices, size, self._native)
        else:
            drawn = draw_normals(key, self._device_indices(), size, self._native)
        return drawn.reshape(self.shape).to(self.dtype)

    def uniform(self, step: int, stage: int = 0) -> Tensor:
        """Draw uniforms in [0, 1), ``(B, *shape)``, of one step and stage; they are independent of the normals there.

        They are multiples of 2^-53 in float64, otherwise of 2^-24 in float32, whose rounding to fewer digits could be
        1. Every device has the same, to the bit.

        >>> sdediff.NoiseSource(0, (2, 3)).uniform(step=0).shape
        torch.Size([2, 3])
        """
        key, size = stream_key("uniform", self.seed, step, stage), math.prod(self.shape[1:])
        if self.device.type == "cpu":
            return host_uniforms(key, self._indices, size, self._native).reshape(self.shape)
        return draw_uniforms(key, self._device_indices(), size, self._native).reshape(self.shape)

    def _device_indices(self) -> Tensor:
        """Return the samples' indices on the device, int64 ``(B,)``; neighbours are counted there, without a copy."""
        if self._on_device is None:
            first, count = (int(self._indices[0]) if len(self._indices) else 0), len(self._indices)
            if bool((np.diff(self._indices) == 1).all()):
                self._on_device = torch.arange(count, device=self.device).add_(signed(first))
            else:
                self._on_device = torch.from_numpy(self._indices.view(np.int64)).to(self.device)
        return self._on_device


def _indices(samples: Sequence[int]) -> Words:
    """Return integers modulo 2^64."""
    try:
        return np.asarray(samples, dtype=np.int64).view(np.uint64)
    except OverflowError:
        return np.array([signed(sample) for sample in samples], dtype=np.int64).view(np.uint64)
