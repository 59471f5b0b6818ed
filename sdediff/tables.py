"""Parts of the library's tables that follow them: an entry made later is seen, for nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


class Part(Mapping[str, V]):
    """The entries of a table that pass a test, looked up when they are asked for.

    Args:
        table: the table.
        keep: whether an entry belongs to the part.
    """

    def __init__(self, table: Mapping[str, V], keep: Callable[[V], bool]) -> None:
        self._table, self._keep = table, keep

    def __getitem__(self, name: str) -> V:
        entry = self._table[name]
        if not self._keep(entry):
            raise KeyError(name)
        return entry

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self._table.items() if self._keep(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)
