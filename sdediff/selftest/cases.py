"""Cases: figures that are measured on an exact problem, and the interval in which each is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sdediff.sde import SDE


class Finding(NamedTuple):
    """A measured figure.

    Attributes:
        name: what it measures, with its unit.
        value: value found.
        low: least value allowed.
        high: largest value allowed.
    """

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf


class Case(NamedTuple):
    """One thing that is tested: its name, and the function that measures its figures."""

    subject: str
    measure: Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Settings:
    """The settings of all cases.

    Attributes:
        seed: seed of all randomness.
        sde: forward process.
    """

    seed: int
    sde: SDE
