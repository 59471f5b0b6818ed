"""Rows of a table, printed as they come."""

from __future__ import annotations

Row = dict[str, str | int | float]
"""One line: names to figures."""


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def line(row: Row) -> None:
    """The figures with their names, for rows of one table need not have the same columns."""
    print("   ".join(f"{name} {_figure(value)}" for name, value in row.items()), flush=True)


def _figure(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.1e}"
    return str(value)
