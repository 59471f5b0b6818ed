"""Batches as a function of ``(seed, step)``: resuming and the number of processes change nothing.

Items stay as small as they are until they are on the device: indexed, mirrored, dequantised and noised there. The draws
of an item depend on its place in the whole batch, so that a process draws for its own share alone. A set beyond
``ON_DEVICE`` stays where it is, in memory or in its file, and a thread gathers the items of the next step while this
one trains.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.data import to_model
from sdediff.data.levels import place
from sdediff.noise import NoiseSource, Stage, stratified
from sdediff.types import DataInfo

ON_DEVICE = 1 << 31
"""Bytes of the largest data set that lies on the device as a whole."""

_HELD_OUT = -1  # step of the draws that never change


class Batch(NamedTuple):
    """A batch of training items.

    Attributes:
        x0: clean states ``(B, *shape)`` in the model's coordinates, levels dequantised.
        u: uniforms ``(B,)``, for the noise levels.
        eps: standard normals ``(B, *noise_shape)``.
        items: the items themselves, levels where they are integers, ``(B, *shape)``.
    """

    x0: Tensor
    u: Tensor
    eps: Tensor
    items: Tensor


class Batches:
    """Batches of a run, each restricted to the share of one process.

    Args:
        data: ``(n, *shape)``, integer levels or float32.
        info: description of the data.
        batch_size: size of the whole batch, over all processes.
        seed: seed of the order, the mirroring, the dequantisation, the noise levels and the noise.
        rank: index of this process.
        world: number of processes.
        device: device of the batches.
        flips: whether to mirror images left to right, each with probability 1/2.
        noise_shape: shape of an item's normals; that of the item by default.

    Raises:
        ValueError: if the batch cannot be divided evenly, or items to mirror are no images.
    """

    def __init__(
        self,
        data: Tensor,
        info: DataInfo,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        flips: bool = False,
        noise_shape: tuple[int, ...] | None = None,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"a batch of {batch_size} cannot be shared evenly by {world} processes")
        if flips and len(info.shape) != 3:
            raise ValueError(f"only images (C, H, W) are mirrored (data.flips), not items {info.shape}")
        self.info, self.batch_size, self.seed = info, batch_size, seed
        self.device, self.count, share = torch.device(device), len(data), batch_size // world
        self._share = slice(rank * share, (rank + 1) * share)
        self._dither = NoiseSource(seed, (share, *info.shape), first=rank * share, device=device)
        shape = info.shape if noise_shape is None else noise_shape
        self._noise = NoiseSource(seed, (share, *shape), first=rank * share, device=device)
        self._coins = NoiseSource(seed, (share, 1, 1, 1), first=rank * share, device=device) if flips else None
        self._order = lru_cache(maxsize=2)(self._permutation)
        whole = data.nbytes <= ON_DEVICE
        self.data = _in_place(data.to(self.device), info) if whole else data
        self._thread = None if whole else ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[Tensor]] | None = None

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed % (1 << 64), epoch)).permutation(self.count)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the items of the whole batch of a step: epochs are permutations, and batches may span two of them."""
        epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.count)
        parts = [self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def rows(self, step: int) -> Tensor:
        """Return the items of this process's share of the batch of a step, int64 ``(B,)``, as of their labels."""
        return torch.from_numpy(self.indices(step)[self._share])

    def __call__(self, step: int) -> Batch:
        """Return this process's share of the batch of a step."""
        return self._batch(self._items(step), step)

    def _items(self, step: int) -> Tensor:
        """Return the items of a step on the device, and have those of the next one gathered."""
        if self._thread is None:
            return self.data[self.rows(step).to(self.device)]
        now = self._next[1] if self._next and self._next[0] == step else self._thread.submit(self._gather, step)
        self._next = step + 1, self._thread.submit(self._gather, step + 1)
        return _in_place(now.result().to(self.device, non_blocking=True), self.info)

    def _gather(self, step: int) -> Tensor:
        items = self.data[self.rows(step)]
        return items.pin_memory() if self.device.type == "cuda" else items

    def _batch(self, items: Tensor, step: int) -> Batch:
        """Return a batch of the items of a step: dequantised, mirrored, with a noise level a stratum, and noise."""
        x0 = _values(items, self.info, self._dither, step)
        if self._coins is not None:
            mirrored = self._coins.uniform(step, Stage.BATCH_FLIPS) < 0.5
            x0, items = (torch.where(mirrored, x.flip(-1), x) for x in (x0, items))
        u = stratified(self.seed, self.batch_size, step, Stage.BATCH_LEVELS)[self._share]
        return Batch(x0, u, self._noise.normal(step, Stage.BATCH), items)


def held_out_batch(
    data: Tensor,
    info: DataInfo,
    seed: int,
    most: int = 1024,
    device: torch.device | str = "cpu",
    noise_shape: tuple[int, ...] | None = None,
) -> Batch:
    """Return held-out items with draws that never change, so that the losses of a run are comparable."""
    items = _in_place(data[:most].to(device), info)
    dither = NoiseSource(seed, items.shape, device=device)
    noise = NoiseSource(seed, (len(items), *(info.shape if noise_shape is None else noise_shape)), device=device)
    u = stratified(seed, len(items), _HELD_OUT, Stage.BATCH_LEVELS)
    return Batch(_values(items, info, dither, _HELD_OUT), u, noise.normal(_HELD_OUT, Stage.BATCH), items)


def _in_place(items: Tensor, info: DataInfo) -> Tensor:
    """Return rows of floats in the model's coordinates, levels as they are."""
    return to_model(items, info) if items.is_floating_point() else items


def _values(items: Tensor, info: DataInfo, noise: NoiseSource, step: int) -> Tensor:
    """Dequantise levels, each with its own uniform number; floats pass."""
    if items.is_floating_point():
        return items
    return place(items, info, noise.uniform(step, Stage.BATCH_VALUES), noise.dtype)
