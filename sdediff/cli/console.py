"""What a command says: text for people, one JSON object for machines, a bar for those who wait.

Remarks and bars are no work: a stream that does not take them is passed over. A result that cannot be said is an error,
unless whoever read it has had enough.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from sdediff.progress import Progress

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
        if self.as_json:
            self.note(text)
        else:
            _tell(text)

    def note(self, text: str) -> None:
        """A remark, always on the error stream."""
        complain(text)

    def result(self, **figures: Any) -> None:
        """What a machine wants: printed only if asked for."""
        if self.as_json:
            _tell(json.dumps(_plain(figures), allow_nan=False))

    @contextmanager
    def bar(self, title: str, unit: str = "step") -> Iterator[Report]:
        """Progress on the error stream: a bar, gone when done, or plain lines where it is no terminal."""
        with Progress(title, unit) as progress:
            yield progress


def _tell(text: str) -> None:
    """Print on the standard output.

    Raises:
        OSError: if it cannot be written to, as on a full disk.
    """
    try:
        click.echo(text)
    except BrokenPipeError:  # as of `| head`
        _to_nowhere(sys.stdout)
    except OSError as error:
        error.filename = "standard output"
        raise


def complain(text: str) -> None:
    """Print on the error stream, if that takes it."""
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


def open_streams() -> None:
    """Put something in the place of standard streams that came closed, lest files take their numbers and get text."""
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the error stream's number
            pass
        os.close(number)


def end(code: int) -> NoReturn:
    """Exit; what the streams still hold and cannot write is lost in silence."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _to_nowhere(stream)
    sys.exit(code)


def _to_nowhere(stream: TextIO) -> None:
    """Let a stream that failed end in nothing, for Python writes to it once more in the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


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
                complain(f"warning: {text}")


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
