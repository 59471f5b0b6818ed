"""Schedules of the learning rate: the factor of the rate at each step, after a linear warm-up.

Each is a function of ``(step, steps)``, the number of a step and of all steps; further arguments are its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sdediff.documents import Finite, Named, function, typed_entry

Schedule = Callable[[int, int], float]
"""``(step, steps)`` to the factor of the learning rate, in [0, 1]."""


def constant(step: int, steps: int) -> float:  # noqa: ARG001 - the table's signature
    """Keep the full rate; a run can be extended without a trace."""
    return 1.0


def cosine(step: int, steps: int, floor: Finite = 0.0) -> float:
    """Fall along half a cosine from the full rate to a share ``floor`` of it (Loshchilov & Hutter 2017)."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def linear(step: int, steps: int, floor: Finite = 0.0) -> float:
    """Fall in a line from the full rate to a share ``floor`` of it."""
    return floor + (1.0 - floor) * (1.0 - step / steps)


def inverse_root(step: int, steps: int, start: Finite = 1000.0) -> float:  # noqa: ARG001 - the table's signature
    """Fall as ``sqrt(start / step)`` from step ``start`` on (Karras et al. 2024, eq. 67); independent of the end."""
    return math.sqrt(start / max(step, start, 1.0))


SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "inverse-root": inverse_root,
}

_GIVEN = ("step", "steps")
"""Arguments that a configuration cannot set."""


def typed_schedule(schedule: str | Named) -> str | Named:
    """Return the setting ``training.schedule`` with parameters of the types that it takes.

    Raises:
        ValueError: for a name that is not in the table, or parameters that its entry does not take.
    """
    return typed_entry(SCHEDULES, schedule, "training.schedule", "schedule", given=_GIVEN)


def rate_factor(schedule: str | Named, warmup: int, step: int, steps: int) -> float:
    """Return the factor of the learning rate of a step: that of the schedule, times the share of the warm-up done.

    Args:
        schedule: an entry of ``SCHEDULES``, or its name and parameters.
        warmup: number of steps of the warm-up.
        step: number of steps before this one.
        steps: number of all steps.
    """
    course = function(SCHEDULES, schedule, "schedule", given=_GIVEN)
    return min(1.0, (step + 1) / (warmup + 1)) * course(step, steps)
