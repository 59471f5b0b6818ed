"""Progress: plain lines now and then where there is no terminal, a bar where there is one, and never a failure."""

from __future__ import annotations

import io
import math
import signal
import sys
from collections.abc import Callable

import pytest
import torch

import sdediff
from sdediff import interrupt, progress
from sdediff.interrupt import ENDING, Interrupt, ending_interrupts
from sdediff.progress import FIRST_WAIT, LONGEST_WAIT, Progress, ProgressLike


class Stream(io.StringIO):
    def __init__(self, terminal: bool = False, failure: Exception | None = None) -> None:
        super().__init__()
        self.terminal, self.failure = terminal, failure

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        if self.failure is not None:
            raise self.failure
        return super().write(text)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def reported(monkeypatch: pytest.MonkeyPatch, stream: Stream | None, seconds: int, total: int = 0) -> list[str]:
    """The lines of work that reports every second."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("working", "step", total) as report:
        for second in range(1, seconds + 1):
            clock.now = float(second)
            report(second, total, note="well")
    return [] if stream is None else stream.getvalue().splitlines()


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """None for short work, soon one for long work, and not many for very long work."""
    assert reported(monkeypatch, Stream(), int(FIRST_WAIT) - 1) == []
    lines = reported(monkeypatch, Stream(), 40_000, 40_000)
    assert lines[0] == "working: 5 of 40,000 steps (0 %), 5 s, about 11.1 h to go; well"
    growth = math.log(LONGEST_WAIT / FIRST_WAIT) / math.log(1.5)
    assert growth < len(lines) < growth + 40_000 / LONGEST_WAIT + 1
    assert not any("\r" in line for line in lines)
    assert reported(monkeypatch, Stream(), 6)[0] == "working: 5 steps, 5 s; well"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    reported(monkeypatch, stream, 10, 10)
    assert "working" in stream.getvalue()
    assert "\r" in stream.getvalue()
    assert "\n" not in stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
def test_a_stream_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool, failure: Exception) -> None:
    """A terminal that was closed while the work goes on, as with SIGHUP."""
    clock, stream = Clock(), Stream(terminal)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("working", "step", 100) as report:
        report(1)
        stream.failure = failure
        for second in range(2, 100):
            clock.now = float(second)
            report(second)
    assert reported(monkeypatch, None, 100) == []


MODEL = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
X = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
VERBS: dict[str, Callable[[ProgressLike], object]] = {
    "sampling": lambda progress: sdediff.sample(MODEL, (4, 2), steps=3, batch_size=2, progress=progress),
    "solving": lambda progress: sdediff.solve(MODEL, X, steps=3, progress=progress),
    "likelihood": lambda progress: sdediff.log_likelihood(MODEL, X, steps=3, batch_size=1, progress=progress),
    "bits/dim": lambda progress: sdediff.bits_per_dim(
        MODEL, X.long(), levels=4, low=-1.0, high=2.0, steps=8, batch_size=1, progress=progress
    ),
    "bound": lambda progress: sdediff.elbo(MODEL, X, steps=4, batch_size=1, progress=progress),
    "comparing": lambda progress: sdediff.compare(MODEL, (4, 2), ["ddim"], forwards=[5], progress=progress),
    "evaluating": lambda progress: sdediff.evaluate(
        torch.randn(64, 2, generator=torch.Generator().manual_seed(0)),
        torch.randn(64, 2, generator=torch.Generator().manual_seed(1)),
        resamples=2,
        measures=["frechet"],
        progress=progress,
    ),
}


@pytest.mark.parametrize("title", VERBS)
def test_verbs_show_a_bar_when_told_so(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the error stream, closed in the end; a function gets the same numbers; nobody is told nothing unasked."""
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    VERBS[title](None)
    VERBS[title](False)
    assert stream.getvalue() == ""
    told: list[tuple[int, int]] = []
    VERBS[title](lambda done, total: told.append((done, total)))
    assert stream.getvalue() == ""
    assert told
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    VERBS[title](True)
    assert title in stream.getvalue()
    assert stream.getvalue().rstrip(" ").endswith("\r")  # the line is cleared


def test_notebooks_have_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stream is no terminal."""
    made = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", made)
    with Progress("working", "step", 10) as report:
        report(10)
    assert "working" in made.getvalue()
    assert "\r" in made.getvalue()


def test_signals_of_supervisors_are_patient() -> None:
    with Interrupt() as waiting:
        for number in ENDING:
            signal.raise_signal(number)
            assert waiting.wanted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", ENDING)
def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A second one soon after the first does not break into what the first has begun; a later one does."""
    clock = Clock()
    clock.now = 100.0
    monkeypatch.setattr(interrupt, "time", clock)
    with ending_interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:  # which would end the tests
            pytest.fail("the second signal broke in")
        clock.now += 10.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@pytest.mark.parametrize("number", ENDING)
def test_what_is_ignored_stays_ignored(number: int) -> None:
    """As SIGHUP under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as waiting, ending_interrupts():
            signal.raise_signal(number)
            assert not waiting.wanted
            assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
