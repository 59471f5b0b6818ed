"""Orthogonal matrices on groups of coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.bases.base import Basis


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Basis):
    """Orthogonal matrices on groups of coordinates; the other coordinates stay.

    Attributes:
        index: coordinates of the groups, all different, int64 ``(G, k)``.
        matrices: orthogonal matrices ``(G, k, k)``, whose columns are directions.

    >>> from sdediff.bases import Blocks
    >>> swap = Blocks(torch.tensor([[0, 2]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    >>> swap.rotate(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 2., 1.])
    """

    index: Tensor
    matrices: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.matrices)

    def rotate_back(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.matrices.mT)

    def _multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        groups = flat[:, self.index].transpose(0, 1) @ matrices  # (G, B, k)
        found = flat.index_copy(1, self.index.reshape(-1), groups.transpose(0, 1).flatten(1))
        return found.reshape(x.shape)

    def check(self, shape: Sequence[int]) -> None:
        size, index = math.prod(shape), self.index
        if index.dtype != torch.int64 or index.ndim != 2 or self.matrices.shape != (*index.shape, index.shape[1]):
            raise ValueError("blocks have integer coordinates (G, k) and matrices (G, k, k)")
        if len(set(index.reshape(-1).tolist())) != index.numel() or bool(((index < 0) | (index >= size)).any()):
            raise ValueError(f"the coordinates of blocks must be different and of 0 .. {size - 1}")
