"""``run``: the self-test of this installation, or the same exact problems against somebody else's function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sdediff.numerics import choose
from sdediff.samplers.base import Progress
from sdediff.sde import SDE, VPSDE
from sdediff.selftest.accelerators import devices
from sdediff.selftest.batches import batches
from sdediff.selftest.bounds import bound_cases, bounds
from sdediff.selftest.cases import Case, Settings
from sdediff.selftest.densities import likelihood_cases, likelihoods
from sdediff.selftest.laws import law_cases, laws
from sdediff.selftest.orders import orders
from sdediff.selftest.result import Row, SelfTest
from sdediff.selftest.round_trips import round_trips

CHECKS: dict[str, Callable[[Settings], list[Case]]] = {
    "orders": orders,
    "laws": laws,
    "likelihoods": likelihoods,
    "bounds": bounds,
    "round trips": round_trips,
    "batches": batches,
    "devices": devices,
}
"""Checks of the library by name: functions that return their cases."""

ROLES: dict[str, Callable[[Any, Settings], list[Case]]] = {
    "sample": law_cases,
    "likelihood": likelihood_cases,
    "bound": bound_cases,
}
"""What somebody else's function may be, by name: see the protocols of :mod:`sdediff.selftest.targets`."""


def run(
    target: Callable[..., Any] | None = None,
    role: str | None = None,
    *,
    checks: Iterable[str] | None = None,
    sde: SDE | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SelfTest:
    """Measure the library, or a function of one's own, on problems whose answers are known exactly.

    Args:
        target: a sampler, a likelihood or a bound, called as :mod:`sdediff.selftest.targets` says; the library itself
            by default.
        role: what it is: ``"sample"``, ``"likelihood"`` or ``"bound"``.
        checks: names of ``CHECKS``; all by default.
        sde: forward process; ``VPSDE()`` by default.
        seed: seed of all randomness. A right program fails under fewer than 1 of 10,000.
        progress: callback ``progress(done, total)`` after every case.

    Returns:
        The figures beside what they may be. What raises an error has failed, and the others go on.

    Raises:
        ValueError: for an unknown check or role, a target without a role or with checks, or a role without a target.

    >>> draw = lambda model, shape, *, steps, seed: sdediff.sample(model, shape, seed=seed)
    >>> sdediff.selftest.run(draw, "sample").passed
    True
    """
    settings = Settings(seed, VPSDE() if sde is None else sde)
    if target is None:
        if role is not None:
            raise ValueError(f"the role {role!r} is that of a target: give one")
        names = list(CHECKS if checks is None else checks)
        groups = {name: choose(CHECKS, name, "check")(settings) for name in names}
        return _measured(groups, seed, "", progress)
    if checks is not None:
        raise ValueError("the checks of a target follow from its role: leave checks out")
    if role is None:
        raise ValueError(f"say what the target is: {', '.join(ROLES)}")
    name = getattr(target, "__qualname__", type(target).__qualname__)
    return _measured({role: choose(ROLES, role, "role")(target, settings)}, seed, name, progress)


def _measured(groups: Mapping[str, list[Case]], seed: int, target: str, progress: Progress | None) -> SelfTest:
    total, done, rows = sum(map(len, groups.values())), 0, list[Row]()
    for check, cases in groups.items():
        for case in cases:
            rows.extend(_rows(check, case))
            done += 1
            if progress is not None:
                progress(done, total)
    return SelfTest(tuple(rows), seed, target)


def _rows(check: str, case: Case) -> Iterator[Row]:
    """Yield the rows of a case; an error is a row that is not allowed."""
    try:
        for name, value, low, high in case.measure():
            yield Row(check, case.subject, name, value, low, high)
    except Exception as error:  # whatever it is, the other cases are measured
        text = " ".join(f"{type(error).__name__}: {error}".split())
        yield Row(check, case.subject, text[:200], math.nan, -math.inf, math.inf)
