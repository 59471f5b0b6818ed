"""Output of commands: text, one JSON object for programs, progress bars.

Failures to write remarks and bars are ignored. A result that cannot be written is an error, unless the reader has
closed the pipe.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import click

from sdediff.files import json_value
from sdediff.progress import Progress

ProgressReport = Callable[[int, int], None]
"""Function called as ``report(done, total)``; ``total`` is 0 if unknown."""


@dataclass(frozen=True)
class Console:
    """The streams of a command.

    Args:
        as_json: reserve the standard output for one JSON object; text goes to the error stream.
    """

    as_json: bool = False

    def say(self, text: str) -> None:
        """Print a line of the result."""
        if self.as_json:
            self.note(text)
        else:
            _print(text)

    def note(self, text: str) -> None:
        """Print a remark, always on the error stream."""
        print_error(text)

    def result(self, **figures: Any) -> None:
        """Print the JSON object, if ``as_json``."""
        if self.as_json:
            _print(json.dumps(json_value(figures), allow_nan=False))

    @contextmanager
    def bar(self, title: str, unit: str = "step") -> Iterator[ProgressReport]:
        """Show progress on the error stream: a bar, removed when done, or plain lines without a terminal."""
        with Progress(title, unit) as progress:
            yield progress


def _print(text: str) -> None:
    """Print on the standard output.

    Raises:
        OSError: if it cannot be written to, as on a full disk.
    """
    try:
        click.echo(text)
    except BrokenPipeError:  # as of `| head`
        _discard(sys.stdout)
    except OSError as error:
        error.filename = "standard output"
        raise


def paint(text: str, **style: Any) -> str:
    """Return a text in a style, plain where ``NO_COLOR`` is set; what is no terminal gets it plain from click."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def print_error(text: str) -> None:
    """Print on the error stream; failures are ignored."""
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def open_streams() -> None:
    """Open standard streams that are closed, so that no other file gets their descriptors and their text."""
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the error stream's number
            pass
        os.close(number)


def exit_with(code: int) -> NoReturn:
    """Exit; buffered text that cannot be written is discarded."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _discard(stream)
    sys.exit(code)


def _discard(stream: TextIO) -> None:
    """Redirect a failed stream to the null device, for Python flushes it once more at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def warnings_as_lines(*, show: bool = True) -> Iterator[None]:
    """Print the library's warnings about data, each once and in one line on the error stream, whatever the filters."""
    from sdediff.data import DataWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught) if show else ():
                print_error(f"{paint('warning:', fg='yellow')} {text}")


def columns(rows: list[list[str]], indent: str = "  ", width: int | None = None) -> str:
    """Format a table as text with aligned columns; with ``width``, the last one is wrapped."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    start = len(indent) + sum(each + 2 for each in widths[:-1])
    lines = []
    for *cells, last in rows:
        wrapped = (
            [last] if width is None else textwrap.wrap(last, max(width - start, 20), break_on_hyphens=False) or [""]
        )
        first = indent + "".join(f"{cell.ljust(each)}  " for cell, each in zip(cells, widths, strict=False))
        lines += [f"{first}{wrapped[0]}".rstrip(), *(" " * start + more for more in wrapped[1:])]
    return "\n".join(lines)
