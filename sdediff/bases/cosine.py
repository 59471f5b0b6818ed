"""The orthonormal cosine transform over the places of items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdediff.bases.base import Basis

LARGEST_TRANSFORM = 4096
"""Largest number of points of an axis that is transformed: its matrix is held in memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Cosine(Basis):
    """The orthonormal DCT-II along all but the first axis of items; frequencies take the places of the entries.

    Attributes:
        shape: shape of an item, ``(C, H, W)``, ``(C, L)`` or another of at least two axes.
        matrices: transforms of the axes but the first, ``(n, n)`` each, a row a frequency.

    >>> from sdediff.bases import Cosine
    >>> Cosine.of((1, 4)).rotate(torch.ones(4, dtype=torch.float64)).round(decimals=6).abs()
    tensor([2., 0., 0., 0.], dtype=torch.float64)
    """

    shape: tuple[int, ...]
    matrices: tuple[Tensor, ...]

    @classmethod
    def of(cls, shape: Sequence[int]) -> Self:
        """Return the transform of items of a shape, in float64."""
        return cls(tuple(shape), tuple(map(cosines, shape[1:])))

    def __repr__(self) -> str:
        return f"Cosine(shape={self.shape})"

    def rotate(self, x: Tensor) -> Tensor:
        return self._transform(x, [matrix.T for matrix in self.matrices])

    def rotate_back(self, x: Tensor) -> Tensor:
        return self._transform(x, self.matrices)

    def _transform(self, x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        y = x.reshape(*x.shape[:-1], *self.shape)
        for axis, matrix in enumerate(reversed(matrices), start=1):
            y = (y.movedim(-axis, -1) @ matrix).movedim(-1, -axis)
        return y.reshape(x.shape)

    def check(self, shape: Sequence[int]) -> None:
        if self.shape != tuple(shape):
            raise ValueError(f"a cosine transform of items {self.shape} is none of items {tuple(shape)}")

    def to(self, x: Tensor) -> Self:
        return replace(self, matrices=tuple(matrix.to(x) for matrix in self.matrices))

    def tensors(self) -> dict[str, Tensor]:
        return {"shape": torch.tensor(self.shape)}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Self:
        shape = tensors.get("shape")
        if len(tensors) != 1 or shape is None or shape.ndim != 1 or shape.dtype != torch.int64 or len(shape) < 2:
            raise ValueError("a cosine transform has one tensor, the shape of an item of two axes or more")
        if not 1 <= int(shape.min()) <= int(shape.max()) <= LARGEST_TRANSFORM:
            raise ValueError(f"a cosine transform is of axes of 1 to {LARGEST_TRANSFORM} points")
        return cls.of(shape.tolist())


def cosines(n: int) -> Tensor:
    """Return the orthonormal DCT-II of n points, ``(n, n)``, a row a frequency, float64 (Ahmed et al. 1974)."""
    frequency, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64) + 0.5
    rows = torch.cos(math.pi / n * frequency * place) * math.sqrt(2.0 / n)
    rows[0] /= math.sqrt(2.0)
    return rows
