"""What encode, decode and interpolate have in common: one way to cross between data and latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdediff.samplers import SAMPLERS, Sampler
from sdediff.sampling import resolve
from sdediff.tables import Part

DETERMINISTIC: Mapping[str, Sampler] = Part(SAMPLERS, lambda solver: not solver.stochastic)
"""Solvers that go both ways, entries made later too."""


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
