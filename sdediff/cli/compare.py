"""``sdediff compare``."""

from __future__ import annotations

import csv
import io
import math
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from sdediff import plots, tuning
from sdediff.cli import tables
from sdediff.cli.conditions import Told, condition_option, tell
from sdediff.cli.console import Console, columns
from sdediff.cli.group import INTERRUPTED
from sdediff.cli.options import (
    PATH,
    POSITIVE,
    Decorator,
    TableName,
    batch_size_option,
    device_option,
    force_option,
    json_option,
    run_option,
    seed_option,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import Run, open_run
from sdediff.evaluation.solvers import (
    JUDGE,
    NFE_BUDGETS,
    SOLVERS,
    TOLERANCES,
    Comparison,
    ComparisonRow,
    Solvers,
    compare,
)
from sdediff.files import write
from sdediff.samplers import SAMPLERS, Sampler

EXAMPLES = """\
  sdediff compare                                # the defaults, on the most recent run
  sdediff compare --solver ode,unipc3,dpm++2m --forwards 6,12,24
  sdediff compare --solver sde,ancestral,edm-churn --count 1000 --out laws.png"""

NAMES: Mapping[str, Any] = ChainMap({"tuned": None}, SAMPLERS)

MEASURES: dict[str, tuple[str, Callable[[ComparisonRow], float | None]]] = {
    "RMS error": ("RMS error", lambda row: row.rms),
    "median error": ("median error", lambda row: row.median),
    "energy distance": ("energy distance of the samples' law", lambda row: row.distance),
}
"""What is shown: a name, the title of its axes, and its figure; stochastic solvers have the last alone."""


class Several(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """One or more values commas between.

    Args:
        inner: the type of each.
    """

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.inner, self.name = inner, inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The values."""
        return tuple(self.inner.convert(part.strip(), param, ctx) for part in str(value).split(","))


def _several(
    name: str, variable: str, inner: click.ParamType[Any], default: Sequence[Any], words: str
) -> Decorator[Any]:
    """An option with several values, by commas or by repeating it."""
    shown = ",".join(f"{value}" for value in default)
    return click.option(
        name, variable, type=Several(inner), multiple=True, help=f"{words}; commas between.  [default: {shown}]"
    )


@click.command("compare", epilog=tables.as_epilog(EXAMPLES, tables.solvers()))
@run_option
@_several("--solver", "solvers", TableName(NAMES, "solver"), SOLVERS, "Solvers, of those below, or tuned")
@_several("--forwards", "forwards", click.IntRange(min=1), NFE_BUDGETS, "Forwards that solvers on a grid may spend")
@_several("--rtol", "rtols", POSITIVE, TOLERANCES, "Tolerances of adaptive solvers")
@click.option("--count", type=click.IntRange(min=3), default=128, show_default=True, help="How many starts.")
@click.option("--tolerance", type=POSITIVE, default=1e-6, show_default=True, help="Of the reference, a tight solve.")
@seed_option
@batch_size_option(256)
@condition_option
@device_option
@click.option("--out", type=PATH, help="Folder, or name of the two files.  [default: comparisons/ in the run]")
@force_option
@json_option
def command(
    run: Path | None,
    solvers: tuple[tuple[str, ...], ...],
    forwards: tuple[tuple[int, ...], ...],
    rtols: tuple[tuple[float, ...], ...],
    count: int,
    tolerance: float,
    seed: int,
    batch_size: int,
    told: Told,
    device: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Error against forwards for several solvers: tables, a picture (.png) and the numbers (.csv).

    All solve from the same starts; errors are distances, in the model's values, from a tight solve of the
    probability-flow ODE. Stochastic solvers have no such truth: their samples' law is compared with the tight solve's
    by the energy distance, which small numbers of starts cannot resolve.
    """
    console = Console(as_json)
    opened = tell(open_run(run, device, console), told)
    files = plan(out, opened.folder / "comparisons", "compare", (".png", ".csv"), force=force)
    start, found, interrupted = time.perf_counter(), list[Comparison](), False
    try:
        with console.bar("comparing", unit="forward") as report:
            result = compare(
                opened.model,
                (count, *opened.info.shape),
                _entries(_flat(solvers, SOLVERS), opened),
                forwards=_flat(forwards, NFE_BUDGETS),
                rtols=_flat(rtols, TOLERANCES),
                tolerance=tolerance,
                seed=seed,
                batch_size=batch_size,
                progress=report,
                report=found.append,
            )
    except KeyboardInterrupt:
        if not found:
            raise
        result, interrupted = found[-1], True
    seconds = time.perf_counter() - start
    _write_csv(files[".csv"], result.rows)
    plots.trade_off(_panels(result), files[".png"], xlabel="forwards of the network")
    console.say(_report(result))
    console.say(f"  {seconds:.1f} s\n  picture  {files['.png']}\n  numbers  {files['.csv']}")
    console.result(
        run=opened.folder,
        starts=count,
        reference=result.reference._asdict(),
        rows=[_plain(row) for row in result.rows],
        seconds=seconds,
        seed=seed,
        interrupted=interrupted,
        picture=files[".png"],
        numbers=files[".csv"],
    )
    if interrupted:
        console.note(f"stopped after {len(result.rows)} rows; the last solvers are missing")
        raise SystemExit(INTERRUPTED)


def _flat(given: tuple[tuple[Any, ...], ...], default: Sequence[Any]) -> tuple[Any, ...]:
    """The values of an option, each once, or the default."""
    return tuple(dict.fromkeys(value for part in given for value in part)) or tuple(default)


def _entries(names: Sequence[str], run: Run) -> Solvers:
    """Solvers by name; the tuned one is another for every number of steps.

    Raises:
        FileNotFoundError: if the run has none, and it was asked for.
        ValueError: if it is damaged, or another model's.
    """
    if "tuned" in names:
        tuning.load(run.folder, run.model)  # refuses what cannot be read; below, only a number of steps may be missing

    def tuned(steps: int) -> Sampler | None:
        try:
            return tuning.load(run.folder, run.model, steps)
        except ValueError:
            return None

    return {name: tuned if name == "tuned" else name for name in names}


def _plain(row: ComparisonRow) -> dict[str, Any]:
    """A row as JSON knows it: what is no number is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row._asdict().items()
    }


def _write_csv(path: Path, rows: Sequence[ComparisonRow]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(ComparisonRow._fields)
    writer.writerows(rows)
    write(path, buffer.getvalue().encode())


def _shown(result: Comparison) -> list[str]:
    """The measures that the rows have: the law only where a solver has nothing else."""
    pathwise = [row.rms is not None for row in result.rows]
    return ["RMS error", "median error"] * any(pathwise) + ["energy distance"] * (not all(pathwise))


def _floor(result: Comparison, measure: str) -> float:
    """The reference's own error."""
    return {"RMS error": result.reference.rms, "median error": result.reference.median}.get(measure, 0.0)


def _panels(result: Comparison) -> list[plots.Panel]:
    """What the picture shows: as the tables, with the law's noise as hollow markers."""
    panels = []
    for measure in _shown(result):
        title, figure = MEASURES[measure]
        series: dict[str, tuple[list[float], list[float], list[bool]]] = {}
        for row in result.rows:
            value = figure(row)
            if value is not None and 0.0 < _at_least(row, measure) < math.inf:  # what a logarithm can show
                x, y, told = series.setdefault(row.solver, ([], [], []))
                x.append(row.nfe)
                y.append(_at_least(row, measure))
                told.append(value > 2.0 * _noise(row, measure))
        title, bottom = f"{title}, {result.starts} starts", None
        if measure == "energy distance":
            # Deterministic solvers share the reference's starts and are told from it far below what noise allows.
            title += " (hollow: may be 0)"
            noisy = {row.solver for row in result.rows if row.rms is None}
            bottom = 0.1 * min((min(series[name][1]) for name in noisy & set(series)), default=0.0)
        panels.append(plots.Panel(title, series, _floor(result, measure) or None, bottom))
    return panels


def _noise(row: ComparisonRow, measure: str) -> float:
    """The standard error of a row's figure."""
    return row.distance_error if measure == "energy distance" else 0.0


def _at_least(row: ComparisonRow, measure: str) -> float:
    """A row's figure, or its standard error if that is larger."""
    value = MEASURES[measure][1](row)
    return max(math.inf if value is None else value, _noise(row, measure))


def _report(result: Comparison) -> str:
    """Tables of every measure, and what the reference is worth."""
    own = result.reference
    blocks = [block for measure in _shown(result) for block in _tables(result, measure)]
    text = "\n\n".join(blocks)
    legend = {"*": "best of its column", "~": "within 3 times the reference's own error",
              "?": "within 2 standard errors of none", ")": "forwards spent"}  # fmt: skip
    marks = ", ".join(f"{'( )' if mark == ')' else mark} {words}" for mark, words in legend.items() if mark in text)
    return (
        f"{text}\n\n{result.starts} starts; reference: {JUDGE} at rtol {own.rtol:g}, {own.nfe:g} forwards, "
        f"own error at most about {own.rms:.1e} RMS, {own.median:.1e} median\n{marks}"
    )


def _tables(result: Comparison, measure: str) -> list[str]:
    """One table by forwards, one by tolerance; those that have rows."""
    figure, worth, blocks = MEASURES[measure][1], partial(_at_least, measure=measure), []
    for head, key, text in (
        (f"{measure} by forwards", "budget", "{:d}".format),
        (f"{measure} by rtol", "rtol", "{:g}".format),
    ):
        rows = [row for row in result.rows if getattr(row, key) is not None and figure(row) is not None]
        places = list(dict.fromkeys(getattr(row, key) for row in rows))
        if key == "budget":
            places.sort()
        best = [min((row for row in rows if getattr(row, key) == place), key=worth) for place in places]
        if key == "rtol" or len(_names(rows)) < 2:  # at one tolerance solvers differ in cost, and none is best
            best = []
        cells = {(row.solver, getattr(row, key)): _cell(row, result, measure, row in best) for row in rows}
        lines = [[name, *(cells.get((name, place), "-") for place in places)] for name in _names(rows)]
        if rows:
            blocks.append(f"{head}\n" + columns([["solver", *map(text, places)], *lines]))
    return blocks


def _names(rows: Sequence[ComparisonRow]) -> list[str]:
    return list(dict.fromkeys(row.solver for row in rows))


def _cell(row: ComparisonRow, result: Comparison, measure: str, best: bool) -> str:
    """A figure, marks if it says little or is the best, and what it cost where the column does not say."""
    value = MEASURES[measure][1](row)
    if value is None or not math.isfinite(value):
        return "diverged"
    unsure = "~" if value < 3.0 * _floor(result, measure) else ""
    if value < 2.0 * _noise(row, measure):
        unsure = "?"
    return f"{value:.1e}{unsure}{'*' * best}" + ("" if row.nfe == row.budget else f" ({row.nfe:g})")
