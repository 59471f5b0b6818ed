"""The library's tables as text, for the help and ``sdediff info``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdediff.cli.console import columns
from sdediff.config import PROCESSES
from sdediff.data import DATASETS
from sdediff.data.toy import TOYS
from sdediff.grids import GRIDS
from sdediff.networks import NETWORKS, SIZES, parameter_count
from sdediff.samplers import AUTO, SOLVERS, Sampler
from sdediff.tables import FilteredTable

AUTO_ROW = ["-", "N", "20 on its own", "ODE", "chosen for the model: at most 1,280 forwards of one item, once"]
"""Row of ``"auto"`` after its name: order and nodes are those of what is chosen."""


def solvers(table: Mapping[str, Sampler] = SOLVERS) -> str:
    """List name, order, cost and kind of every solver."""
    rows = [
        [
            name,
            str(solver.order),
            cost(solver),
            "-" if solver.adaptive else f"{solver.steps} on {solver.grid}",
            "SDE" if solver.stochastic else "ODE",
            repr(solver),
        ]
        for name, solver in table.items()
        if name != AUTO
    ]
    rows += [[AUTO, *AUTO_ROW]] * (AUTO in table)
    return columns([["solver", "order", "NFE", "default steps", "kind", "method"], *rows])


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
    return columns(
        [["grid", "nodes", "rule"], *([name, summary(type(grid)), repr(grid)] for name, grid in GRIDS.items())]
    )


def processes() -> str:
    """List name and parameters of every forward process."""
    rows = [[name, _signature(make), summary(make)] for name, make in PROCESSES.items()]
    return columns([["process", "parameters", "description"], *rows])


def datasets() -> str:
    """List the data sets."""
    rows = [[name, summary(TOYS.get(name, make))] for name, make in DATASETS.items()]
    return columns([["data", "description"], *rows])


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
    return columns([["network", "size", f"weights for {shape}", "parameters"], *rows])


def _signature(make: Callable[..., Any]) -> str:
    parameters = inspect.signature(make).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)


def as_epilog(examples: str, *tables: str) -> str:
    r"""Return examples and tables as the end of a help text, without rewrapping (click's ``\b``)."""
    return "\n\n".join(f"\b\n{block}" for block in (f"Examples:\n{examples}", *tables))
