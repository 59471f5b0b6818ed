"""Batches as a function of ``(seed, step)``: resuming and the number of processes change nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.data import to_model, to_values
from sdediff.training.objective import stratified
from sdediff.types import DataInfo

_ORDER, _NOISE, _HELD_OUT = 0, 1, 2


class Batch(NamedTuple):
    """Clean states ``(B, *shape)`` in the model's coordinates, uniforms ``(B,)`` for the levels, and normals."""

    x0: Tensor
    u: Tensor
    eps: Tensor


def _rng(seed: int, kind: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed % (1 << 64), kind, index))


def _draw(items: Tensor, info: DataInfo, rng: np.random.Generator) -> Batch:
    """Dequantise integer items, standardise rows, choose noise levels one a stratum, draw the noise."""
    eps = torch.from_numpy(rng.standard_normal(items.shape, dtype=np.float32))
    u = stratified(rng.uniform(), torch.from_numpy(rng.permutation(len(items))), len(items))
    if items.is_floating_point():
        return Batch(to_model(items, info), u, eps)
    within = torch.from_numpy(rng.random(items.shape, dtype=np.float32))
    return Batch(to_values(items, info, within), u, eps)


class Batches:
    """The part of every batch that one process works on.

    Args:
        data: ``(n, *shape)``, integer levels or float32.
        info: of the data.
        batch_size: of the whole batch, over all processes.
        seed: of the order, the dequantisation, the noise levels and the noise.
        rank: of this process.
        world: number of processes.

    Raises:
        ValueError: if the batch cannot be divided evenly.
    """

    def __init__(
        self, data: Tensor, info: DataInfo, batch_size: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} processes")
        self.data, self.info, self.batch_size, self.seed = data, info, batch_size, seed
        share = batch_size // world
        self._mine = slice(rank * share, (rank + 1) * share)
        self._order = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return _rng(self.seed, _ORDER, epoch).permutation(len(self.data))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Items of the whole batch of a step: every epoch is a permutation, and batches run across its end."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(position, len(self.data))
        return np.array([self._order(int(e))[i] for e, i in zip(epochs, within, strict=True)], dtype=np.int64)

    def __call__(self, step: int) -> Batch:
        """This process's part of the batch of a step."""
        whole = _draw(self.data[self.indices(step)], self.info, _rng(self.seed, _NOISE, step))
        return Batch(*(part[self._mine] for part in whole))


def held_out_batch(data: Tensor, info: DataInfo, seed: int, most: int = 1024) -> Batch:
    """Held-out items with draws that never change, so that losses along a run compare."""
    return _draw(data[:most], info, _rng(seed, _HELD_OUT, 0))
