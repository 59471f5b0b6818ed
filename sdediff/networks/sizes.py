"""Named sizes of a network, changed by what is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from sdediff.numerics import choose

SizeT = TypeVar("SizeT", bound=NamedTuple)


def sized(table: Mapping[str, SizeT], size: str, what: str, **given: Any) -> SizeT:
    """Return a size by its name, with the parameters that are given and not ``None``.

    Raises:
        ValueError: for a name that is not in the table.
    """
    chosen = choose(table, size, f"size of the {what}")
    return chosen._replace(**{name: value for name, value in given.items() if value is not None})
