"""What a basis is asked for; the coordinate axes, and a matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from torch import Tensor

from sdediff.types import brief


@dataclass(frozen=True, eq=False, repr=False)
class Basis(ABC):
    """An orthonormal basis of ``R^D``, a dataclass of tensors unless it says otherwise."""

    __repr__ = brief

    @abstractmethod
    def rotate(self, x: Tensor) -> Tensor:
        """Return the coordinates of ``(..., D)`` along the basis, ``x U``."""

    @abstractmethod
    def rotate_back(self, x: Tensor) -> Tensor:
        """Return the vectors ``(..., D)`` of coordinates along the basis, ``x U^T``."""

    @abstractmethod
    def check(self, shape: Sequence[int]) -> None:
        """Refuse a basis that is none of items of ``shape``.

        Raises:
            ValueError: saying what does not fit.
        """

    def to(self, x: Tensor) -> Self:
        """Return the basis in the dtype and on the device of ``x``; integers stay integers."""
        moved = {
            name: value.to(x) if value.is_floating_point() else value.to(x.device) for name, value in vars(self).items()
        }
        return replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Return the numbers that make the basis, by name."""
        return dict(vars(self))

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the basis of named :meth:`tensors`, which are not trusted.

        Raises:
            ValueError: if they are those of no such basis.
        """
        wanted = [field.name for field in fields(cls)]
        if sorted(tensors) != sorted(wanted):
            raise ValueError(f"a basis of {', '.join(wanted)} is not made of: {', '.join(sorted(tensors))[:200]}")
        return cls(**tensors)


class Identity(Basis):
    """The coordinate axes."""

    def rotate(self, x: Tensor) -> Tensor:
        return x

    def rotate_back(self, x: Tensor) -> Tensor:
        return x

    def check(self, shape: Sequence[int]) -> None:
        """Accept any shape."""


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(Basis):
    """The columns of an orthogonal matrix ``(D, D)``."""

    matrix: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        return x @ self.matrix

    def rotate_back(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def check(self, shape: Sequence[int]) -> None:
        size = math.prod(shape)
        if self.matrix.shape != (size, size):
            raise ValueError(f"a basis of items {tuple(shape)} is ({size}, {size}), not {tuple(self.matrix.shape)}")


def as_basis(basis: Tensor | Basis | None) -> Basis:
    """Return the basis that a matrix, a basis or nothing (the coordinate axes) stands for."""
    if isinstance(basis, Basis):
        return basis
    return Identity() if basis is None else Matrix(basis)
