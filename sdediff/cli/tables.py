"""The library's tables as text, for the help and ``sdediff info``."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdediff.cli.console import columns
from sdediff.cli.help import WIDTH
from sdediff.config import PROCESSES
from sdediff.data import DATASETS
from sdediff.data.toy import TOYS
from sdediff.grids import GRIDS
from sdediff.networks import NETWORKS, SIZES, parameter_count
from sdediff.samplers import AUTO, SOLVERS, Sampler
from sdediff.tables import FilteredTable

_USES = {
    "few forwards": ("ode",),
    "chosen for the run": (AUTO, "tuned"),
    "with noise": ("sde", "ancestral"),
    "a learned variance": ("ancestral-learned",),
    "to a tolerance": ("adaptive", "adaptive-sde"),
    "exact round trips": ("reversible",),
}
"""Uses of solvers, in the order of the help; others are those of their kind by name."""


def solvers(table: Mapping[str, Sampler] = SOLVERS) -> str:
    """List what every solver is for, its kind, order, cost and default steps."""
    rows = [
        [
            name,
            "SDE" if solver.stochastic else "ODE",
            "-" if name == AUTO else str(solver.order),  # that of what is chosen
            cost(solver),
            "-" if solver.adaptive else f"{solver.steps}{', chain' * (solver.grid == 'chain')}",
            use(name, solver),
        ]
        for name, solver in table.items()
    ]
    return columns([["solver", "kind", "order", "NFE", "steps", "for"], *rows], width=WIDTH)


def solvers_by_use(table: Mapping[str, Sampler | None]) -> str:
    """List the names of solvers by what they are for."""
    uses: dict[str, list[str]] = {each: [] for each in _USES}
    for name, solver in table.items():
        uses.setdefault(use(name, solver), []).append(name)
    rows = [[each, ", ".join(sorted(names, key=list(table).index))] for each, names in uses.items() if names]
    return f"Solvers, which `sdediff info --list` describes:\n{columns(rows, width=WIDTH)}"


def use(name: str, solver: Sampler | None) -> str:
    """Return what a solver is for."""
    known = (each for each, names in _USES.items() if name in names)
    return next(known, "by name, with noise" if solver is not None and solver.stochastic else "by name, no noise")


DETERMINISTIC: Mapping[str, Sampler] = FilteredTable(SOLVERS, lambda solver: not solver.stochastic)
"""Solvers between data and latents, in both directions; those added to ``SAMPLERS`` later included."""


def cost(solver: Sampler) -> str:
    """Return the NFE of a solve of N steps that ends on the data, as a formula."""
    one, two = (solver.nfe(steps) for steps in (1, 2))
    if one is None or two is None:
        return "by tolerance"
    each, rest = two - one, 2 * one - two
    return f"{'' if each == 1 else each}N" + (f" {'-' if rest < 0 else '+'} {abs(rest)}" if rest else "")


def grids() -> str:
    """List name and rule of every grid."""
    rows = [[name, ", ".join(_numbers(grid)) or "-", summary(type(grid))] for name, grid in GRIDS.items()]
    return columns([["grid", "parameters", "nodes"], *rows], width=WIDTH)


def _numbers(record: Any) -> list[str]:
    """Return the numbers among the fields of a dataclass, by name."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return [f"{name}={value:g}" for name, value in values.items() if isinstance(value, int | float)]


def processes() -> str:
    """List name and parameters of every forward process."""
    rows = [[name, _signature(make), summary(make)] for name, make in PROCESSES.items()]
    return columns([["process", "parameters", "description"], *rows], width=WIDTH)


def datasets() -> str:
    """List the data sets."""
    rows = [[name, summary(TOYS.get(name, make))] for name, make in DATASETS.items()]
    return columns([["data", "description"], *rows], width=WIDTH)


def summary(thing: object) -> str:
    """Return the first sentence of a docstring, without markup."""
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split()).replace("`", "")
    return re.split(r"\.(?: (?=[A-Z])|$)", text, maxsplit=1)[0]


def networks(shape: tuple[int, ...] = (3, 32, 32)) -> str:
    """List the networks with their sizes, and the number of weights of each for items of a shape."""
    rows = [
        [
            name,
            size,
            f"{parameter_count(name, size, shape):,}",
            ", ".join(f"{k}={v}" for k, v in made._asdict().items()),
        ]
        for name, sizes in SIZES.items()
        for size, made in sizes.items()
    ]
    rows += [[name, "-", "-", summary(make)] for name, make in NETWORKS.items() if name not in SIZES]
    return columns([["network", "size", f"weights for {shape}", "parameters"], *rows], width=WIDTH)


def _signature(make: Callable[..., Any]) -> str:
    parameters = inspect.signature(make).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
