"""``sdediff likelihood``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from sdediff import evaluation
from sdediff.checkpoint import latest_run
from sdediff.cli.anomalies import anomaly_column, anomaly_options, anomaly_search
from sdediff.cli.conditions import labels_option, with_labels
from sdediff.cli.console import Console
from sdediff.cli.evaluation import WRITERS, OutputFiles, Task, evaluation_bar, write_evaluation
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.group import INTERRUPTED
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import read_items
from sdediff.cli.options import (
    COUNT,
    PATH,
    POSITIVE,
    Decorator,
    TableName,
    data_argument,
    number_option,
    run_option,
    seed_option,
    together,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import MAIN, counting, find_run, open_run
from sdediff.data import describe_items
from sdediff.denoiser import Denoiser
from sdediff.devices import pick_device
from sdediff.evaluation import LIKELIHOOD_METHODS, LikelihoodMethod
from sdediff.evaluation.dataset import BatchEvaluation
from sdediff.evaluation.methods import TensorColumns
from sdediff.extras import require
from sdediff.grids import GRIDS
from sdediff.likelihood.bits_per_dim import BOUNDS
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS
from sdediff.likelihood.flow.hutchinson import EXACT_UP_TO, PROBES
from sdediff.plots.canvas import FORMATS
from sdediff.samplers.ancestral import VARIANCES

TRACES = {"auto": f"exact up to {EXACT_UP_TO} dimensions", "exact": "D products", "hutchinson": "random probes"}
PRIORS = {"moments": "the data's mean and covariance", "standard": "N(0, sigma^2)"}

EXAMPLES = """\
  sdediff likelihood                         # the run's held-out data
  sdediff likelihood --out bits.csv          # a row an item; repeated: resumed
  sdediff likelihood rows.csv --top 9 --anomaly-label kind=bad --baseline gmm
  sdediff likelihood --target-error 0.01     # as many items as needed
  sdediff likelihood test.npz --trace hutchinson --probes 8 --json
  sdediff likelihood --elbo --samples 4      # the variational bound
  torchrun --nproc_per_node 2 -m -- sdediff likelihood"""


class StepCount(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A number of steps, or ``inf``."""

    name = "integer|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        if value == "inf":
            return math.inf
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"must be a whole number of at least 1, or inf, not {value!r}", param, ctx)
        return int(value)


def _table_option(flag: str, table: Mapping[str, Any], what: str, words: str, default: str = "") -> Decorator[Any]:
    """Make an option whose values are the names of a table."""
    return click.option(flag, type=TableName(table, what), help=f"{words}: {', '.join(table)}.{default}")


method_options = together(
    click.option(
        "--elbo",
        is_flag=True,
        help="The variational bound instead of the flow's likelihood; in latent models, of codes.",
    ),
    click.option("--solver", metavar="NAME", help="Solver of the flow.  [default: the library's choice]"),
    click.option(
        "--steps", type=StepCount(), help="Steps of a fixed grid; with --elbo, of the chain, or inf: continuous time."
    ),
    click.option("--grid", type=TableName(GRIDS, "grid"), help="Spacing of the steps, of `sdediff info --list`."),
    click.option("--rtol", type=POSITIVE, help="Relative tolerance: adaptive, instead of steps."),
    click.option("--atol", type=POSITIVE, help="Absolute tolerance."),
    click.option(
        "--trace",
        type=TableName(TRACES, "trace"),
        help=f"The divergence: {'; '.join(f'{name}, {what}' for name, what in TRACES.items())}.  [default: auto]",
    ),
    click.option("--probes", type=COUNT, help="Probes of the hutchinson trace, per item."),
    _table_option("--noise", PROBES, "law of the probes", "Distribution of the probes"),
    click.option("--item-error", "target_error", type=POSITIVE, help="Add probes until each item's error is this."),
    _table_option(
        "--dequantisation",
        DEQUANTISATIONS,
        "dequantisation",
        "Dequantisation of integer data",
        "  [default: uniform]",
    ),
    click.option("--samples", type=COUNT, help="Draws per item: of the dequantisation or, with --elbo, the noise."),
    click.option(
        "--draws", type=COUNT, help="Noise levels per item that --elbo samples.  [default: all steps of a chain]"
    ),
    _table_option("--bound", BOUNDS, "bound", "Bound from several draws"),
    _table_option("--variance", VARIANCES, "variance", "Variance of the steps of --elbo"),
    _table_option("--prior", PRIORS, "prior", "Prior at t_max"),
    click.option("--t-from", type=POSITIVE, help="Time at which the likelihood is evaluated.  [default: t_min]"),
)


@click.command("likelihood", cls=DescribedCommand, examples=EXAMPLES)
@data_argument
@run_option
@number_option
@click.option("--target-error", "target", type=POSITIVE, help="Stop when the standard error of the mean is this.")
@method_options
@seed_option
@click.option("--batch-size", type=COUNT, help="Items at a time, in each process.  [default: what memory holds]")
@labels_option
@anomaly_options
@click.option("--picture", type=PATH, help="Histogram and extreme items: .png, .pdf, .svg.  [default: beside --out]")
@frame_options(f"A row for each item: {', '.join(WRITERS)}; an unfinished file is resumed.")
def command(
    frame: CommandFrame,
    data: str | None,
    number: int | None,
    target: float | None,
    elbo: bool,
    seed: int,
    batch_size: int | None,
    labels: str | None,
    top: int | None,
    anomaly_label: tuple[str, ...],
    baseline: str | None,
    picture: Path | None,
    **options: Any,
) -> None:
    """Evaluate the log-likelihood of DATA and its errors.

    DATA is a data set's name, a file or a folder; by default the run's held-out data. Integer data are dequantised, and
    the result is in bits/dim (smaller is better); continuous data have a density in nats, in the units of DATA (larger
    is better). VAEs and latent models have the bound of both stages, from --samples draws of the codes, by --bound
    importance the importance-weighted one.

    Items are taken in a random order, which --seed fixes, so that the mean over some of them is a fair estimate of the
    mean over all. With --out the items done are kept: after Ctrl-C, or any other end, the same command resumes.
    """
    given = {option: value for option, value in options.items() if value is not None}
    files = _plan_files(frame, picture)
    processes = evaluation.Processes(pick_device(frame.device))
    folder = frame.run or (find_run(frame.console) if MAIN else latest_run())
    run = open_run(folder, str(processes.device), frame.console, frame.execution)
    method = "stages" if run.stage is not None else "elbo" if elbo else "flow"
    _check_method(method, given)
    if run.stage is not None and elbo:
        given["density"] = "continuous"
    scored = run.model if run.stage is None else run.stage
    items, name, *_ = loaded = read_items(data, run, number, anomaly_column(anomaly_label))
    condition = with_labels(run, frame.told(run), labels, loaded).condition or None
    if MAIN:
        frame.console.note(f"data: {name}, {describe_items(items, run.info)}")
    _check_data(LIKELIHOOD_METHODS[method], given, items)
    search = anomaly_search(run, loaded, top or 0, anomaly_label, baseline if MAIN else None, seed)
    task = Task(frame.console, run, items, loaded.named, name, method, files, search)
    settings = {**evaluation.identity(scored, items, condition), "method": method, "seed": seed, **given}
    with evaluation_bar(task, MAIN) as report, _hint_at_force():
        result = evaluation.evaluate(
            partial(_with_nfe, partial(LIKELIHOOD_METHODS[method].evaluate, scored), run.model, seed=seed, **given),
            items,
            seed=seed,
            batch_size=batch_size,
            target=target,
            partial=None if files.unfinished is None else evaluation.PartialResults(files.unfinished, settings),
            fresh=frame.force,
            processes=processes,
            model=scored,
            condition=condition,
            report=report,
        )
    if MAIN:
        write_evaluation(task, result, target)
    processes.close()
    if result.interrupted:
        sys.exit(INTERRUPTED)


def _with_nfe(function: BatchEvaluation, model: Denoiser, x: Tensor, first: int, **options: Any) -> TensorColumns:
    """Evaluate a batch, and add a column of the mean number of evaluations of a model for its items."""
    with counting(model) as measured:
        columns = function(x, first, **options)
    return {**columns, "nfe": torch.full((len(x),), measured.items / len(x), dtype=torch.float64)}


@contextmanager
def _hint_at_force() -> Iterator[None]:
    """Add the advice to use ``--force`` to errors of an unfinished file that cannot be resumed."""
    try:
        yield
    except evaluation.ResumeError as error:
        raise ValueError(f"{error}; --force starts anew") from None


def _check_method(name: str, given: Mapping[str, Any]) -> None:
    """Refuse the options of another method."""
    method = LIKELIHOOD_METHODS[name]
    wrong = [option for option in given if option not in method.options + method.integer_options]
    if wrong:
        flags = ", ".join(_flag(option) for option in wrong)
        raise ValueError(f"{flags}: not an option of the {method.description}{' (--elbo)' * (name == 'elbo')}")
    if name == "flow" and given.get("steps") == math.inf:
        raise ValueError("--steps inf is of the variational bound (--elbo); a path has a number of steps")


def _check_data(method: LikelihoodMethod, given: Mapping[str, Any], items: Tensor) -> None:
    """Refuse the options of integer data for continuous ones."""
    wrong = [_flag(option) for option in method.integer_options if option in given]
    if wrong and items.is_floating_point():
        raise ValueError(f"{', '.join(wrong)}: only integer data are dequantised, these are continuous")


def _flag(option: str) -> str:
    return {"target_error": "--item-error"}.get(option, f"--{option.replace('_', '-')}")


def _can_draw(console: Console) -> bool:
    """Tell whether pictures can be drawn; where nobody asked for one, its lack is a note."""
    try:
        require("plots")
    except ValueError as missing:
        console.note(f"no picture: {missing}")
        return False
    return True


def _plan_files(frame: CommandFrame, picture: Path | None) -> OutputFiles:
    """Choose the files to write, and refuse unknown suffixes and files that exist, unless they are unfinished."""
    out = frame.out
    if out is not None and out.suffix not in WRITERS:
        hint = "; the picture's name is --picture" if out.suffix in FORMATS else ""
        raise ValueError(f"--out must end in one of: {', '.join(WRITERS)}; not {str(out)!r}{hint}")
    unfinished = None if out is None else out.with_name(f"{out.name}.part")
    force = frame.force or (unfinished is not None and unfinished.exists())  # written by a run stopped at a target
    if picture is not None:
        if picture.suffix not in FORMATS and picture.suffix[1:].isalpha():
            raise ValueError(f"--picture must end in one of: {', '.join(FORMATS)}; not {str(picture)!r}")
        suffix = picture.suffix if picture.suffix in FORMATS else ".png"
        picture = plan(picture, picture.parent, "likelihood", (suffix,), force=force)[suffix]
    if out is None:
        return OutputFiles(None, None, picture)
    suffixes = (out.suffix,) if picture is not None or not _can_draw(frame.console) else (out.suffix, ".png")
    paths = plan(out, out.parent, out.stem, suffixes, force=force)
    return OutputFiles(paths[out.suffix], unfinished, paths.get(".png", picture))
