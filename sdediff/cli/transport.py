"""What encode, decode and interpolate have in common: one way to cross between data and latents."""

from __future__ import annotations

from typing import Any

from sdediff.samplers import SAMPLERS, Sampler
from sdediff.sampling import resolve

DETERMINISTIC: dict[str, Sampler] = {name: solver for name, solver in SAMPLERS.items() if not solver.stochastic}
"""Solvers that go both ways."""


def transport_options(
    solver: str, steps: int | None, rtol: float | None, atol: float | None, grid: str | None
) -> dict[str, Any]:
    """The options that were given, once they are known to go together.

    Raises:
        ValueError: if they do not.
    """
    resolve(solver, steps=steps, rtol=rtol, atol=atol, grid=grid)
    given = {"steps": steps, "rtol": rtol, "atol": atol, "grid": grid}
    return {name: value for name, value in given.items() if value is not None}
