"""Items of data as centred rows, a part at a time, some of them held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.bases import Basis
from sdediff.numerics import in_parts

_EVERY = 10  # every tenth item is held out


class Covariance(NamedTuple):
    """Variances ``(D,)`` along the directions of a basis: a matrix ``(D, D)``, a basis, ``None`` for the axes."""

    variances: Tensor
    basis: Tensor | Basis | None = None


class SecondMoments(NamedTuple):
    """Mean products of centred rows: over the items that are fitted, over those held out, and over all.

    Attributes:
        fit: means over the items that are fitted.
        held: means over the items that are held out.
        whole: means over all items.
    """

    fit: Tensor
    held: Tensor
    whole: Tensor


@dataclass(frozen=True, eq=False)
class Items:
    """Items of data as centred rows.

    Attributes:
        flat: data ``(n, D)`` of any number type.
        shape: shape of an item.
        transform: function from rows ``(k, D)`` to the rows, as many, that are fitted.
        mean: mean of the transformed rows, float64 ``(D,)``.
    """

    flat: Tensor
    shape: tuple[int, ...]
    transform: Callable[[Tensor], Tensor]
    mean: Tensor

    @classmethod
    def of(cls, data: Tensor, transform: Callable[[Tensor], Tensor]) -> Items:
        """Return the items of data ``(n, *shape)``."""
        flat = data.reshape(len(data), math.prod(data.shape[1:]))
        total = torch.stack([transform(part).double().sum(dim=0) for part in in_parts(flat)]).sum(dim=0)
        return cls(flat, tuple(data.shape[1:]), transform, total / len(flat))

    @property
    def count(self) -> int:
        """The number of items."""
        return len(self.flat)

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.mean)

    @property
    def fitted(self) -> int:
        """The number of items that are not held out."""
        return self.count - self.count // self._every

    @property
    def _every(self) -> int:
        return min(_EVERY, self.count)

    def parts(self) -> Iterator[Tensor]:
        """Yield the centred rows, float64 ``(k, D)``."""
        for part in in_parts(self.flat):
            yield self.transform(part).double() - self.mean

    def second_moments(self, products: Callable[[Tensor], Tensor]) -> SecondMoments:
        """Average sums of products of centred rows.

        Args:
            products: function from rows ``(k, D)`` to the sum of their products, a tensor of one shape.
        """
        first, sums = 0, [torch.zeros((), dtype=torch.float64, device=self.mean.device)] * 2
        for part in self.parts():
            held = torch.arange(first, first + len(part), device=part.device) % self._every == self._every - 1
            sums = [total + products(part[chosen]) for total, chosen in zip(sums, (~held, held), strict=True)]
            first += len(part)
        fit, held_out = sums
        return SecondMoments(fit / self.fitted, held_out / (self.count - self.fitted), (fit + held_out) / self.count)
