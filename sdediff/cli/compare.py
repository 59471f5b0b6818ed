"""``sdediff compare``."""

from __future__ import annotations

import csv
import io
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from sdediff import plots, tuning
from sdediff.cli import tables
from sdediff.cli.auto import Task, choose_solver
from sdediff.cli.comparison import comparison_panels, format_comparison
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.group import INTERRUPTED
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import POSITIVE, Decorator, TableName, batch_size_option, run_option, seed_option
from sdediff.evaluation.comparison import Comparison, ComparisonRow
from sdediff.evaluation.solvers import (
    NFE_BUDGETS,
    SOLVERS,
    TOLERANCES,
    Solvers,
    compare,
)
from sdediff.files import write
from sdediff.samplers import AUTO, SAMPLERS, Sampler

EXAMPLES = """\
  sdediff compare                            # the most recent run
  sdediff compare --solver ode,unipc3,dpm++2m --forwards 6,12,24
  sdediff compare --solver ode,auto --forwards 5,10
  sdediff compare --solver sde,ancestral --count 1000 --out laws.png"""

COMPARABLE: Mapping[str, Any] = ChainMap({"tuned": None, AUTO: None}, SAMPLERS)
"""Solvers that can be compared."""


class Several(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """One or more values separated by commas.

    Args:
        inner: type of a value.
    """

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.inner, self.name = inner, inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the values."""
        return tuple(self.inner.convert(part.strip(), param, ctx) for part in str(value).split(","))


def _several(
    name: str, variable: str, inner: click.ParamType[Any], default: Sequence[Any], words: str
) -> Decorator[Any]:
    """Make an option with several values, separated by commas or given by repetition."""
    values = ",".join(f"{value}" for value in default)
    return click.option(
        name, variable, type=Several(inner), multiple=True, help=f"{words}, comma-separated.  [default: {values}]"
    )


@click.command("compare", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, COMPARABLE),))
@run_option
@_several("--solver", "solvers", TableName(COMPARABLE, "solver"), SOLVERS, "Solvers below, or tuned")
@_several("--forwards", "forwards", click.IntRange(min=1), NFE_BUDGETS, "Largest NFE of solvers on a grid")
@_several("--rtol", "rtols", POSITIVE, TOLERANCES, "Tolerances of adaptive solvers")
@click.option("--count", type=click.IntRange(min=3), default=128, show_default=True, help="Number of starts.")
@click.option("--tolerance", type=POSITIVE, default=1e-6, show_default=True, help="Tolerance of the reference solve.")
@seed_option
@batch_size_option(256)
@guidance_options
@frame_options("Folder, or name of the two files.  [default: comparisons/ in the run]")
def command(
    frame: CommandFrame,
    solvers: tuple[tuple[str, ...], ...],
    forwards: tuple[tuple[int, ...], ...],
    rtols: tuple[tuple[float, ...], ...],
    count: int,
    tolerance: float,
    seed: int,
    batch_size: int,
    guidance: Guidance,
) -> None:
    """Compare error and number of network evaluations (NFE) of several solvers.

    The results are tables, a picture (.png) and the numbers (.csv). All solvers start from the same draws; errors are
    distances, in the model's values, from a reference solve of the probability-flow ODE at a small tolerance.
    Stochastic solvers have no pathwise error: the distribution of their samples is compared with the reference's by the
    energy distance, which a small number of starts cannot resolve.
    """
    run = frame.open()
    model, guiding = guidance.of(run, frame.console)
    files = frame.plan(run.folder / "comparisons", "compare", ".png", ".csv")
    budgets = _flat(forwards, NFE_BUDGETS)
    task = Task.of(run, model, guiding)
    entries, chosen = _solvers(_flat(solvers, SOLVERS), budgets, frame, task)
    start, results, interrupted = time.perf_counter(), list[Comparison](), False
    try:
        with frame.console.bar("comparing", unit="forward") as report:
            result = compare(
                model,
                (count, *run.state_shape),
                entries,
                forwards=budgets,
                rtols=_flat(rtols, TOLERANCES),
                tolerance=tolerance,
                seed=seed,
                batch_size=batch_size,
                progress=report,
                report=results.append,
            )
    except KeyboardInterrupt:
        if not results:
            raise
        result, interrupted = results[-1], True
    seconds = time.perf_counter() - start
    _write_rows(files[".csv"], result.rows)
    plots.trade_off(comparison_panels(result), files[".png"], xlabel="forwards of the network")
    frame.finish(
        run,
        f"{format_comparison(result)}\n  {seconds:.1f} s",
        files,
        starts=count,
        reference=result.reference._asdict(),
        rows=[row._asdict() for row in result.rows],
        guidance=guiding,
        chosen=chosen,
        seconds=seconds,
        seed=seed,
        interrupted=interrupted,
    )
    if interrupted:
        frame.console.note(f"stopped after {len(result.rows)} rows; the last solvers are missing")
        raise SystemExit(INTERRUPTED)


def _flat(given: tuple[tuple[Any, ...], ...], default: Sequence[Any]) -> tuple[Any, ...]:
    """Return the values of an option, each once, or the default."""
    return tuple(dict.fromkeys(value for values in given for value in values)) or tuple(default)


def _solvers(
    names: Sequence[str], budgets: Sequence[int], frame: CommandFrame, task: Task
) -> tuple[Solvers, list[dict[str, Any]]]:
    """Return solvers by name, and what was chosen; those tuned and chosen depend on the number of steps.

    Raises:
        FileNotFoundError: if the tuned solver is wanted and the run has none.
        ValueError: if it is damaged, or another model's.
    """
    run = task.run
    if "tuned" in names:
        tuning.load(run.folder, run.model)  # refuses a bad file; below, only a number of steps may be missing

    def tuned(steps: int) -> Sampler | None:
        try:
            return tuning.load(run.folder, run.model, steps)
        except ValueError:
            return None

    chosen, figures = dict[int, Sampler](), list[dict[str, Any]]()
    for steps in budgets if AUTO in names else ():
        try:
            chosen[steps], found = choose_solver(frame.console, task, steps, (run.model.sde.t_max, 0.0))
            figures.append(found)
        except ValueError as error:  # too many steps for the instants of a chain
            frame.console.note(f"solver auto: {error}")
    by_steps: dict[str, Callable[[int], Sampler | None]] = {"tuned": tuned, AUTO: chosen.get}
    return {name: by_steps.get(name, name) for name in names}, figures


def _write_rows(path: Path, rows: Sequence[ComparisonRow]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(ComparisonRow._fields)
    writer.writerows(rows)
    write(path, buffer.getvalue().encode())
