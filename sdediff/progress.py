"""Progress of long work: a bar on a terminal, elsewhere a plain line now and then, so that logs stay short."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

FIRST_WAIT, LONGEST_WAIT = 5.0, 600.0
"""Seconds until the first plain line, and at most between two; each wait is 1.5 times the one before."""

_NOTEBOOK = "ipykernel.iostream"  # the module of a notebook's error stream

ProgressLike = Callable[[int, int], None] | bool | None
"""What functions take as ``progress=``: true for a bar, or a function called as ``progress(done, total)``."""


def reporter(progress: ProgressLike, title: str, unit: str) -> Callable[[int, int], None] | None:
    """Return the function that reports, ``None`` for none; a bar closes where all is done, or with its function."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return None
    bar = Progress(title, unit).__enter__()

    def report(done: int, total: int) -> None:
        bar(done, total)
        if done >= total:
            bar.__exit__(None, None, None)

    return report


class Progress:
    """A context manager that reports on the error stream; errors of that stream are ignored.

    Args:
        title: name of the work.
        unit: name of a unit of work, in the singular.
        total: number of units; 0 if unknown.
        done: number of units done already.
        show: whether to report.
    """

    def __init__(self, title: str, unit: str, total: int = 0, done: int = 0, *, show: bool = True) -> None:
        self.title, self.unit, self.total, self.begin, self.show = title, unit, total, done, show
        self._bar: Any = None
        self._start = self._last = time.monotonic()
        self._wait = FIRST_WAIT

    def __enter__(self) -> Self:
        self.show = self.show and sys.stderr is not None
        if self.show and (sys.stderr.isatty() or type(sys.stderr).__module__ == _NOTEBOOK):
            from tqdm.auto import tqdm

            total = self.total or None
            self._bar = tqdm(
                desc=self.title, unit=self.unit, total=total, initial=self.begin, leave=False, dynamic_ncols=True
            )
        self._start = self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None and self.show:
            self._try(self._bar.close)

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report that ``done`` of ``total`` units are done, with a note."""
        self.total = self.total if total is None else total
        if not self.show:
            return
        if self._bar is not None:
            self._try(self._move, done, note)
        elif (now := time.monotonic()) - self._last >= self._wait:
            self._last, self._wait = now, min(1.5 * self._wait, LONGEST_WAIT)
            self._try(print, self._line(done, now - self._start, note), file=sys.stderr, flush=True)

    def _try(self, write: Any, *args: Any, **settings: Any) -> None:
        try:
            write(*args, **settings)
        except (OSError, ValueError):  # a closed terminal or stream, a full disk
            self.show = False
            if self._bar is not None:
                self._bar.disable = True

    def _move(self, done: int, note: str) -> None:
        self._bar.total = self.total or None
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def _line(self, done: int, seconds: float, note: str) -> str:
        """Return a line such as ``likelihood: 128 of 360 items (36 %), 12 s, about 21 s to go; note``."""
        units = f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"
        if not self.total:
            line = f"{self.title}: {done:,} {units}, {_duration(seconds)}"
        else:
            line = (
                f"{self.title}: {done:,} of {self.total:,} {units} ({100 * done // self.total} %), {_duration(seconds)}"
            )
            if self.begin < done < self.total:
                line += f", about {_duration(seconds * (self.total - done) / (done - self.begin))} to go"
        return f"{line}; {note}" if note else line


def _duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"
