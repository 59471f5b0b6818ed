"""The result of a self-test: every figure beside what it may be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure of a self-test.

    Attributes:
        check: name of the check.
        subject: what was tested.
        figure: what was measured, with its unit; the error where nothing could be.
        value: the figure; NaN where nothing could be measured.
        low: least value allowed.
        high: largest value allowed.
    """

    check: str
    subject: str
    figure: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Tell whether the figure is allowed."""
        return self.low <= self.value <= self.high

    @property
    def place(self) -> float:
        """Place between the limits: 1 or -1 on a limit, and 0 in the middle or, where there is one limit, at zero."""
        if math.isinf(self.low):
            return self.value / self.high
        if math.isinf(self.high):
            return -max(self.value / self.low, 0.0)  # a limit below zero
        return (2.0 * self.value - self.low - self.high) / (self.high - self.low)

    @property
    def allowed(self) -> str:
        """The limits in words."""
        if math.isinf(self.low):
            return f"at most {self.high:.3g}"
        if math.isinf(self.high):
            return f"at least {self.low:.3g}"
        return f"{self.low:.3g} to {self.high:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the verdict in JSON's types."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class SelfTest:
    """The rows of a self-test.

    Attributes:
        rows: figures, check by check.
        seed: seed of all randomness.
        target: name of what was tested; empty for the library itself.

    >>> result = sdediff.selftest.run(checks=["bounds"])
    >>> result.passed, result.rows[0].figure
    (True, 'mean gap to -log p, nats')
    """

    rows: tuple[Row, ...]
    seed: int = 0
    target: str = ""

    @property
    def passed(self) -> bool:
        """Tell whether every figure is allowed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The figures that are not allowed."""
        return tuple(row for row in self.rows if not row.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, seed, target and rows in JSON's types."""
        rows = [row.to_dict() for row in self.rows]
        return {"passed": self.passed, "seed": self.seed, "target": self.target, "rows": rows}

    def __repr__(self) -> str:
        """Show the verdict in one line."""
        return f"SelfTest({self.verdict})"

    @property
    def verdict(self) -> str:
        """The verdict in one line."""
        counts = Counter(row.check for row in self.rows)
        made = ", ".join(f"{count} of {check}" for check, count in counts.items())
        failed = len(self.failures)
        return f"{len(self.rows)} figures ({made}): {f'{failed} not allowed' if failed else 'all as they should be'}"

    def __str__(self) -> str:
        """Return a table of all figures, and the verdict."""
        head = ("check", "subject", "figure", "value", "allowed", "verdict")
        rows = [
            (row.check, row.subject, row.figure, f"{row.value:.3g}", row.allowed, "ok" if row.passed else "FAILED")
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in (head, *rows)
        ]
        return "\n".join([*lines, "", self.verdict])
