"""Signals that end a program, taken where nothing is lost: Ctrl-C, SIGTERM and, where there is one, SIGHUP.

They reach the main thread alone; in any other nothing here does anything. A signal that is ignored from the start, as
SIGHUP under ``nohup``, stays so.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What supervisors, schedulers and closed terminals send."""

_TOGETHER = 1.0  # seconds within which several of them are one: some send two in a row

Handler = Callable[[int, FrameType | None], Any]


class Interrupt:
    """While entered, signals only set ``wanted``, to be looked at between two steps; a second Ctrl-C is not patient."""

    def __init__(self) -> None:
        self.wanted = False
        self._handlers = _handlers((signal.SIGINT, *ENDING), self._note)

    def __enter__(self) -> Interrupt:
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True


@contextmanager
def ending_interrupts() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP raise ``KeyboardInterrupt``, as Ctrl-C does."""
    last = -_TOGETHER

    def handle(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TOGETHER:
            last = now
            raise KeyboardInterrupt

    with _handlers(ENDING, handle):
        yield


@contextmanager
def _handlers(numbers: tuple[int, ...], handler: Handler) -> Iterator[None]:
    """While entered, a handler of some signals."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                # Shells start background jobs with SIGINT ignored; whoever sends it to one by number means it.
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
