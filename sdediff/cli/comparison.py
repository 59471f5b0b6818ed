"""Output of ``sdediff compare``: tables, their marks, and the panels of the picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sdediff import plots
from sdediff.cli.console import columns
from sdediff.evaluation.comparison import Comparison, ComparisonRow
from sdediff.evaluation.solvers import JUDGE

MEASURES: dict[str, tuple[str, Callable[[ComparisonRow], float | None]]] = {
    "RMS error": ("RMS error", lambda row: row.rms),
    "median error": ("median error", lambda row: row.median),
    "energy distance": ("energy distance of the samples' law", lambda row: row.distance),
}
"""Measures by name, each the title of its axes and its value; stochastic solvers have the last one only."""


def _measures(result: Comparison) -> list[str]:
    """Return the measures of the rows; the energy distance only if there are stochastic solvers."""
    pathwise = [row.rms is not None for row in result.rows]
    return ["RMS error", "median error"] * any(pathwise) + ["energy distance"] * (not all(pathwise))


def _floor(result: Comparison, measure: str) -> float:
    """Return the reference's own error."""
    return {"RMS error": result.reference.rms, "median error": result.reference.median}.get(measure, 0.0)


def comparison_panels(result: Comparison) -> list[plots.Panel]:
    """Return the panels of the picture, one a measure; insignificant energy distances get hollow markers."""
    panels = []
    for measure in _measures(result):
        title, evaluate = MEASURES[measure]
        series: dict[str, tuple[list[float], list[float], list[bool]]] = {}
        for row in result.rows:
            value = evaluate(row)
            if value is not None and 0.0 < _at_least(row, measure) < math.inf:  # finite on a logarithmic scale
                x, y, significant = series.setdefault(row.solver, ([], [], []))
                x.append(row.nfe)
                y.append(_at_least(row, measure))
                significant.append(value > 2.0 * _noise(row, measure))
        title, bottom = f"{title}, {result.starts} starts", None
        if measure == "energy distance":
            # Deterministic solvers share the reference's starts: their distances lie far below the sampling noise.
            title += " (hollow: may be 0)"
            noisy = {row.solver for row in result.rows if row.rms is None}
            bottom = 0.1 * min((min(series[name][1]) for name in noisy & set(series)), default=0.0)
        panels.append(plots.Panel(title, series, _floor(result, measure) or None, bottom))
    return panels


def _noise(row: ComparisonRow, measure: str) -> float:
    """Return the standard error of a row's value."""
    return row.distance_error if measure == "energy distance" else 0.0


def _at_least(row: ComparisonRow, measure: str) -> float:
    """Return a row's value, or its standard error if that is larger."""
    value = MEASURES[measure][1](row)
    return max(math.inf if value is None else value, _noise(row, measure))


def format_comparison(result: Comparison) -> str:
    """Format the tables of every measure, the error of the reference and a legend."""
    blocks = comparison_tables(result)
    text = "\n\n".join(f"{head}\n{columns(rows)}" for head, rows in blocks.items())
    return f"{text}\n\n{describe_reference(result)}\n{legend(blocks)}"


def describe_reference(result: Comparison) -> str:
    """Return how many starts there are, and what they are compared with."""
    own = result.reference
    return (
        f"{result.starts} starts; reference: {JUDGE} at rtol {own.rtol:g}, {own.nfe:g} forwards, "
        f"own error at most about {own.rms:.1e} RMS, {own.median:.1e} median"
    )


def legend(blocks: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Return what the marks in tables mean."""
    text = " ".join(cell for rows in blocks.values() for row in rows for cell in row)
    words = {"*": "best of its column", "~": "within 3 times the reference's own error",
             "?": "within 2 standard errors of none", ")": "forwards spent"}  # fmt: skip
    return ", ".join(f"{'( )' if mark == ')' else mark} {each}" for mark, each in words.items() if mark in text)


def comparison_tables(result: Comparison) -> dict[str, list[list[str]]]:
    """Return the tables of every measure by their heads, each a row of names above rows of cells."""
    return {head: rows for measure in _measures(result) for head, rows in _tables(result, measure).items()}


def _tables(result: Comparison, measure: str) -> dict[str, list[list[str]]]:
    """Return a table by NFE and a table by tolerance, each if it has rows."""
    evaluate, size, blocks = MEASURES[measure][1], partial(_at_least, measure=measure), {}
    for head, key, text in (
        (f"{measure} by forwards", "budget", "{:d}".format),
        (f"{measure} by rtol", "rtol", "{:g}".format),
    ):
        rows = [row for row in result.rows if getattr(row, key) is not None and evaluate(row) is not None]
        names, values = _distinct(row.solver for row in rows), _distinct(getattr(row, key) for row in rows)
        if key == "budget":
            values.sort()
        best = [min((row for row in rows if getattr(row, key) == value), key=size) for value in values]
        if key == "rtol" or len(names) < 2:  # at one tolerance solvers differ in cost, and none is best
            best = []
        cells = {(row.solver, getattr(row, key)): _cell(row, result, measure, row in best) for row in rows}
        lines = [[name, *(cells.get((name, value), "-") for value in values)] for name in names]
        if rows:
            blocks[head] = [["solver", *map(text, values)], *lines]
    return blocks


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _cell(row: ComparisonRow, result: Comparison, measure: str, best: bool) -> str:
    """Format a value, its marks (uncertain, best), and its NFE if that is not the column's."""
    value = MEASURES[measure][1](row)
    if value is None or not math.isfinite(value):
        return "diverged"
    uncertain = "~" if value < 3.0 * _floor(result, measure) else ""
    if value < 2.0 * _noise(row, measure):
        uncertain = "?"
    return f"{value:.1e}{uncertain}{'*' * best}" + ("" if row.nfe == row.budget else f" ({row.nfe:g})")
