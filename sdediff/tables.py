"""The library's tables: views of them, in which entries added later are included, and names nearest to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")


class FilteredTable(Mapping[str, V]):
    """Entries of a table that pass a test, looked up on access.

    Args:
        table: the table.
        keep: test whether an entry belongs to the view.
    """

    def __init__(self, table: Mapping[str, V], keep: Callable[[V], bool]) -> None:
        self._table, self._keep = table, keep

    @property
    def whole(self) -> Mapping[str, V]:
        """The table of which this is a view."""
        return self._table

    def __getitem__(self, name: str) -> V:
        entry = self._table[name]
        if not self._keep(entry):
            raise KeyError(name)
        return entry

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in self._table.items() if self._keep(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def subtable(table: Mapping[str, V], prefix: str) -> dict[str, V]:
    """Return the entries whose names begin with a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in table.items() if name.startswith(prefix)}


def nearest(name: object, names: Iterable[str]) -> str:
    """Return `` (did you mean 'a'?)`` if one of the names is similar, else nothing."""
    similar = difflib.get_close_matches(name.lower(), list(names), n=1) if isinstance(name, str) else []
    return f" (did you mean {similar[0]!r}?)" if similar else ""
