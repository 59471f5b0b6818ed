"""What a command says: text for people, one JSON object for machines, a bar for those who wait."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

Report = Callable[[int, int], None]
"""Called as ``report(done, total)``; ``total`` is 0 where it is unknown."""


@dataclass(frozen=True)
class Console:
    """Where text goes.

    Args:
        as_json: keep the standard output for one JSON object; text goes to the error stream.
    """

    as_json: bool = False

    def say(self, text: str) -> None:
        """A line of the result."""
        click.echo(text, err=self.as_json)

    def note(self, text: str) -> None:
        """A remark, always on the error stream."""
        click.echo(text, err=True)

    def result(self, **figures: Any) -> None:
        """What a machine wants: printed only if asked for."""
        if self.as_json:
            click.echo(json.dumps(_plain(figures), allow_nan=False))

    @contextmanager
    def bar(self, title: str, unit: str = "step") -> Iterator[Report]:
        """A progress bar on the error stream, if that is a terminal; gone when done."""
        from tqdm import tqdm

        with tqdm(desc=title, unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total if total > 0 else None
                bar.update(done - bar.n)

            yield report


@contextmanager
def warnings_as_lines(*, show: bool = True) -> Iterator[None]:
    """Print what the library warns of in data, each once and in one line on the error stream, whatever the filters."""
    from sdediff.data import DataWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught) if show else ():
                click.echo(f"warning: {text}", err=True)


def _plain(value: Any) -> Any:
    """What JSON knows: paths as text, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def columns(rows: list[list[str]], indent: str = "  ") -> str:
    """A table as text, columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(indent + line.rstrip() for line in padded)
