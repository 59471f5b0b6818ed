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

_ORDER_STREAM, _NOISE_STREAM, _HELD_OUT_STREAM = 0, 1, 2


class Batch(NamedTuple):
    """Clean states ``(B, *shape)`` in the model's coordinates, uniforms ``(B,)`` for the levels, and normals."""

    x0: Tensor
    u: Tensor
    eps: Tensor


def _rng(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed % (1 << 64), stream, index))


def _make_batch(items: Tensor, info: DataInfo, rng: np.random.Generator) -> Batch:
    """Dequantise integer items, standardise rows, choose noise levels one a stratum, draw the noise."""
    eps = torch.from_numpy(rng.standard_normal(items.shape, dtype=np.float32))
    u = stratified(rng.uniform(), torch.from_numpy(rng.permutation(len(items))), len(items))
    if items.is_floating_point():
        return Batch(to_model(items, info), u, eps)
    offsets = torch.from_numpy(rng.random(items.shape, dtype=np.float32))
    return Batch(to_values(items, info, offsets), u, eps)


class Batches:
    """Batches of a run, each restricted to the share of one process.

    Args:
        data: ``(n, *shape)``, integer levels or float32.
        info: description of the data.
        batch_size: size of the whole batch, over all processes.
        seed: seed of the order, the dequantisation, the noise levels and the noise.
        rank: index of this process.
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
        self._share = slice(rank * share, (rank + 1) * share)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return _rng(self.seed, _ORDER_STREAM, epoch).permutation(len(self.data))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the items of the whole batch of a step: epochs are permutations, and batches may span two of them."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(position, len(self.data))
        return np.array([self._order(int(e))[i] for e, i in zip(epochs, places, strict=True)], dtype=np.int64)

    def __call__(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""
        whole = _make_batch(self.data[self.indices(step)], self.info, _rng(self.seed, _NOISE_STREAM, step))
        return Batch(*(tensor[self._share] for tensor in whole))


def held_out_batch(data: Tensor, info: DataInfo, seed: int, most: int = 1024) -> Batch:
    """Return held-out items with draws that never change, so that the losses of a run are comparable."""
    return _make_batch(data[:most], info, _rng(seed, _HELD_OUT_STREAM, 0))
