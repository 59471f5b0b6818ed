"""Conditions: inputs of a network for each item besides its noisy state and the noise level.

A condition is a tensor, a tuple or a dict of tensors, each with one row an item, or with a single row for all items.
The network is called ``network(x, t, *condition)`` or ``network(x, t, **condition)``. Rows are selected with the items
of a batch wherever these are removed, repeated or solved again (:meth:`Condition.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ConditionLike = Any
"""A tensor (or a number, or a list of numbers), or a tuple or a dict of such; ``None`` for no condition."""
Rows = Tensor | NDArray[np.int64] | Sequence[int] | slice
"""Selection of items of a batch: indices, with repeats or without, a mask, or a slice."""


@dataclass(frozen=True, eq=False)
class Condition:
    """The arguments of a network beside the state and the time.

    Attributes:
        positional: tensors with one row an item, or a single row for all, in the order of the network's arguments.
        named: tensors likewise, by the names of the network's arguments.
    """

    positional: tuple[Tensor | None, ...] = ()
    named: Mapping[str, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, given: ConditionLike) -> Condition:
        """Return the condition of a tensor, or a tuple or dict of tensors.

        Raises:
            ValueError: for anything else, or tensors whose numbers of rows differ.
        """
        if given is None or isinstance(given, Condition):
            return cls() if given is None else given
        if isinstance(given, Mapping):
            if not all(isinstance(name, str) for name in given):
                raise ValueError("the keys of a condition are the names of the network's arguments")
            condition = cls((), {name: _rows_of(value, name) for name, value in given.items()})
        else:
            several = given if isinstance(given, tuple) else (given,)
            condition = cls(tuple(_rows_of(value, f"{i}") for i, value in enumerate(several)))
        condition.count  # noqa: B018 (refuses numbers of rows that differ)
        return condition

    def __bool__(self) -> bool:
        return bool(self.positional or self.named)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors, the positional ones first."""
        yield from (value for value in (*self.positional, *self.named.values()) if value is not None)

    @property
    def count(self) -> int | None:
        """The number of items with their own rows; ``None`` where one row is for all.

        Raises:
            ValueError: for tensors whose numbers of rows differ.
        """
        counts = sorted({len(value) for value in self.tensors() if len(value) != 1})
        if len(counts) > 1:
            raise ValueError(f"the tensors of a condition have {' and '.join(map(str, counts))} rows: one an item each")
        return counts[0] if counts else None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with a function applied to every tensor."""

        def of(value: Tensor | None) -> Tensor | None:
            return None if value is None else change(value)

        return Condition(tuple(map(of, self.positional)), {name: of(value) for name, value in self.named.items()})

    def rows(self, index: Rows) -> Condition:
        """Return the rows of some items; a single row is for all of them."""

        def pick(value: Tensor) -> Tensor:
            if len(value) == 1:
                return value
            if isinstance(index, slice):
                return value[index]
            return value[torch.as_tensor(index, device=value.device)]

        return self.map(pick) if self else self

    def followed_by(self, other: Condition, count: int) -> Condition:
        """Return the rows of ``count`` items, then as many of another condition.

        Numbers of another dtype are converted to that of the former where it has them, as it has not half a label.

        Another condition of a single tensor stands for the only one of this, whatever its name.

        Raises:
            ValueError: for conditions of other tensors, or other shapes, and without one.
        """
        if not self:
            raise ValueError("guidance needs a model under a condition: condition=...")
        if len([*self.tensors()]) == len([*other.tensors()]) == 1:
            (only,) = other.tensors()
            other = self.map(lambda _: only)
        same = len(self.positional) == len(other.positional) and self.named.keys() == other.named.keys()
        if not same or any((a is None) != (b is None) for a, b in self._beside(other)):
            raise ValueError("the null condition needs the same tensors as the condition, in a tuple or dict alike")

        def both(a: Tensor, b: Tensor) -> Tensor:
            if a.dtype != b.dtype and torch.equal(b.to(a.dtype).to(b.dtype), b):
                b = b.to(a.dtype)
            rows = [value.expand(count, *value.shape[1:]) for value in (a, b.to(a.device))]
            if rows[0].shape != rows[1].shape:
                raise ValueError(f"a row of the null condition is {tuple(b.shape[1:])}, not {tuple(a.shape[1:])}")
            return torch.cat(rows)

        joined = [None if a is None or b is None else both(a, b) for a, b in self._beside(other)]
        head = len(self.positional)
        return Condition(tuple(joined[:head]), dict(zip(self.named, joined[head:], strict=True)))

    def _beside(self, other: Condition) -> list[tuple[Tensor | None, Tensor | None]]:
        """Return the pairs of tensors of two conditions of one structure."""
        named = [(value, other.named[name]) for name, value in self.named.items()]
        return [*zip(self.positional, other.positional, strict=True), *named]

    def check(self, items: int) -> None:
        """Refuse a condition that is not one row an item, or a single one.

        Raises:
            ValueError: naming the numbers of rows and items.
        """
        if self.count not in (None, items):
            raise ValueError(
                f"the condition has {self.count} rows for {items} items: give one row an item, or one for all"
            )

    def arguments(self, x: Tensor, dtype: torch.dtype) -> Condition:
        """Return the network's arguments for the states ``x`` ``(B, *shape)``: copies, one row an item.

        Floats are converted to the network's ``dtype``; integers stay as they are.
        """
        if not self:
            return self
        self.check(len(x))

        def ready(value: Tensor) -> Tensor:
            kind = dtype if value.is_floating_point() else value.dtype
            return value.to(x.device, kind).expand(len(x), *value.shape[1:]).clone()

        return self.map(ready)


def _rows_of(value: Any, name: str) -> Tensor | None:
    """Return a value as a tensor with a first dimension for the items."""
    if value is None:
        return None
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"a condition is a tensor, or a tuple or a dict of tensors; entry {name} is of type {type(value).__name__}"
        ) from None
    return tensor.reshape(1) if tensor.ndim == 0 else tensor
