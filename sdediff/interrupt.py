"""Handling of the signals that end a program, without loss of work: Ctrl-C, SIGTERM and, where it exists, SIGHUP.

Signals reach the main thread only; in other threads nothing here has an effect. A signal that is ignored from the
start, as SIGHUP under ``nohup``, stays ignored.
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
"""Signals of supervisors, schedulers and closed terminals."""

_REPEAT = 1.0  # seconds within which several signals count as one: some supervisors send two in a row

Handler = Callable[[int, FrameType | None], Any]


class Interrupt:
    """A context in which signals only set ``wanted``, to be tested between two steps; a second Ctrl-C interrupts."""

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
    """Raise ``KeyboardInterrupt`` on SIGTERM and SIGHUP, as on Ctrl-C, while entered."""
    last = -_REPEAT

    def handle(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPEAT:
            last = now
            raise KeyboardInterrupt

    with _handlers(ENDING, handle):
        yield


@contextmanager
def _handlers(numbers: tuple[int, ...], handler: Handler) -> Iterator[None]:
    """Handle some signals while entered."""
    previous: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                # Shells start background jobs with SIGINT ignored; one that is sent explicitly is to be obeyed.
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    previous[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
