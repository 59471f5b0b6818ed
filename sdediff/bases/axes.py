"""The axes of a basis as rows, a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdediff.bases.base import Basis

_HELD = 1024  # dimensions up to which the whole matrix is made once


@dataclass(frozen=True, eq=False)
class Axes:
    """The axes of a basis as orthonormal rows.

    Attributes:
        basis: the basis, in the dtype and on the device of ``like``.
        dim: number of dimensions.
        like: tensor of the dtype and on the device of the rows.

    >>> from sdediff.bases import Axes, Identity
    >>> Axes(Identity(), 3, torch.zeros(0)).rows(1, 2)
    tensor([[0., 1., 0.]])
    """

    basis: Basis
    dim: int
    like: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """Return axes ``start`` to ``stop``, ``(stop - start, D)``."""
        if self.dim <= _HELD:
            return self.matrix[start:stop]
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> Tensor:
        rows = self.like.new_zeros(stop - start, self.dim)
        rows[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        return self.basis.rotate_back(rows)

    @cached_property
    def matrix(self) -> Tensor:
        """All axes, ``(D, D)``."""
        return self._rows(0, self.dim)
