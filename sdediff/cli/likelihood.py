"""``sdediff likelihood``."""

from __future__ import annotations

import math
import os
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
from sdediff.cli.conditions import Told, condition_option, labels_option, tell_labels
from sdediff.cli.console import Console
from sdediff.cli.evaluation import WRITERS, Files, Task, bar, finish
from sdediff.cli.group import INTERRUPTED
from sdediff.cli.items import read_items
from sdediff.cli.options import (
    COUNT,
    PATH,
    POSITIVE,
    TableName,
    data_argument,
    device_option,
    force_option,
    json_option,
    number_option,
    run_option,
    seed_option,
    together,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import counting, find_run, open_run, pick_device
from sdediff.data import describe
from sdediff.denoiser import Denoiser
from sdediff.evaluation import LIKELIHOOD_METHODS, LikelihoodMethod
from sdediff.evaluation.methods import BatchLikelihood, TensorColumns
from sdediff.grids import GRIDS
from sdediff.likelihood.bits_per_dim import BOUNDS
from sdediff.likelihood.discrete.dequantization import DEQUANTISATIONS
from sdediff.likelihood.flow.hutchinson import EXACT_UP_TO, PROBES
from sdediff.samplers.ancestral import VARIANCES

MAIN = os.environ.get("RANK", "0") == "0"  # of several processes one speaks

TRACES = {"auto": f"exact up to {EXACT_UP_TO} dimensions", "exact": "D products", "hutchinson": "random probes"}
PRIORS = {"moments": "the data's mean and covariance", "standard": "N(0, sigma^2)"}

EPILOG = """\b
Examples:
  sdediff likelihood                              # what the run held out
  sdediff likelihood --out bits.csv               # a row for each item, and a picture; again: goes on
  sdediff likelihood --target-error 0.01          # as many items as that takes
  sdediff likelihood test.npz --trace hutchinson --probes 8 --json
  sdediff likelihood --elbo --samples 4           # the variational bound
  torchrun --nproc_per_node 2 -m -- sdediff likelihood    # several processes
"""


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(table)


class Steps(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A number of steps, or ``inf``."""

    name = "integer|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        if value == "inf":
            return math.inf
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"must be a whole number of at least 1, or inf, not {value!r}", param, ctx)
        return int(value)


method_options = together(
    click.option("--elbo", is_flag=True, help="The variational bound instead of the flow's likelihood."),
    click.option("--solver", metavar="NAME", help="Of the flow's path.  [default: the library's choice]"),
    click.option(
        "--steps", type=Steps(), help="Steps of a fixed grid; of --elbo, of the chain, or inf: continuous time."
    ),
    click.option("--grid", type=TableName(GRIDS, "grid"), help=f"Where the steps go: {_names(GRIDS)}."),
    click.option("--rtol", type=POSITIVE, help="Relative tolerance: an adaptive solve instead of steps."),
    click.option("--atol", type=POSITIVE, help="Absolute tolerance."),
    click.option(
        "--trace",
        type=TableName(TRACES, "trace"),
        help=f"The divergence: {'; '.join(f'{name}, {what}' for name, what in TRACES.items())}.  [default: auto]",
    ),
    click.option("--probes", type=COUNT, help="Probes of the hutchinson trace, per item."),
    click.option("--noise", type=TableName(PROBES, "law of the probes"), help=f"Law of the probes: {_names(PROBES)}."),
    click.option("--item-error", "target_error", type=POSITIVE, help="Probe for each item until its error is this."),
    click.option(
        "--dequantisation",
        type=TableName(DEQUANTISATIONS, "dequantisation"),
        help=f"Of integer data: {_names(DEQUANTISATIONS)}.  [default: uniform]",
    ),
    click.option("--samples", type=COUNT, help="Draws per item: of the dequantisation or, with --elbo, the noise."),
    click.option(
        "--draws", type=COUNT, help="Noise levels per item that --elbo samples.  [default: all steps of a chain]"
    ),
    click.option("--bound", type=TableName(BOUNDS, "bound"), help=f"From several draws: {_names(BOUNDS)}."),
    click.option(
        "--variance", type=TableName(VARIANCES, "variance"), help=f"Of the steps of --elbo: {_names(VARIANCES)}."
    ),
    click.option("--prior", type=TableName(PRIORS, "prior"), help=f"At the noise's end: {_names(PRIORS)}."),
    click.option("--t-from", type=POSITIVE, help="Time of the data's end.  [default: t_min]"),
)


@click.command("likelihood", epilog=EPILOG)
@data_argument
@run_option
@number_option
@click.option("--target-error", "target", type=POSITIVE, help="Stop when the standard error of the mean is this.")
@method_options
@seed_option
@click.option("--batch-size", type=COUNT, help="Items at a time, in each process.  [default: what memory holds]")
@condition_option
@labels_option
@device_option
@click.option("--out", type=PATH, help=f"A row for each item: {', '.join(WRITERS)}; an unfinished one is gone on with.")
@click.option("--picture", type=PATH, help="Histogram and extreme items, .png.  [default: beside --out]")
@force_option
@json_option
def command(
    data: str | None,
    run: Path | None,
    number: int | None,
    target: float | None,
    elbo: bool,
    seed: int,
    batch_size: int | None,
    told: Told,
    labels: str | None,
    device: str,
    out: Path | None,
    picture: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Log-likelihood of DATA, with its errors.

    DATA is a data set's name, a file or a folder; by default what the run's training left out. Integer data are
    dequantised and answered in bits/dim (smaller is better), continuous data in nats (larger is better), by the density
    in the units of DATA.

    Items are taken in a random order, which --seed fixes, so that the mean over some of them is a fair estimate of the
    mean over all. With --out what is done is kept: after Ctrl-C, or any other end, the same command goes on.
    """
    console = Console(as_json)
    name = "elbo" if elbo else "flow"
    given = {option: value for option, value in options.items() if value is not None}
    _check_method(name, given)
    files = _place(out, picture, force)
    processes = evaluation.Processes(pick_device(device))
    folder = (find_run(console) if MAIN else latest_run()) if run is None else run
    opened = open_run(folder, str(processes.device), console)
    items, words, _ = read = read_items(data, opened, number)
    condition = tell_labels(opened, told, labels, read)[1] or None
    if MAIN:
        console.note(f"data: {words}, {describe(items, opened.info)}")
    _check_data(LIKELIHOOD_METHODS[name], given, items)
    task = Task(console, opened, items, words, name, files)
    settings = {**evaluation.identity(opened.model, items, condition), "method": name, "seed": seed, **given}
    with bar(task, MAIN) as report, _hint():
        scores = evaluation.evaluate(
            partial(_counted, LIKELIHOOD_METHODS[name].evaluate, opened.model, seed=seed, **given),
            items,
            seed=seed,
            batch_size=batch_size,
            target=target,
            partial=None if files.part is None else evaluation.PartialResults(files.part, settings),
            fresh=force,
            processes=processes,
            model=opened.model,
            condition=condition,
            report=report,
        )
    if MAIN:
        finish(task, scores, target)
    processes.close()
    if scores.interrupted:
        sys.exit(INTERRUPTED)


def _counted(function: BatchLikelihood, model: Denoiser, x: Tensor, first: int, **options: Any) -> TensorColumns:
    """Score a batch, and say how often the network saw each of its items, in the mean."""
    with counting(model) as count:
        columns = function(model, x, first, **options)
    return {**columns, "nfe": torch.full((len(x),), count.items / len(x), dtype=torch.float64)}


@contextmanager
def _hint() -> Iterator[None]:
    """Say what helps against an unfinished file that cannot be gone on with."""
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


def _place(out: Path | None, picture: Path | None, force: bool) -> Files:
    """The files to write, known to be of kinds that can be, and free or unfinished."""
    if out is not None and out.suffix not in WRITERS:
        hint = "; the picture's name is --picture" if out.suffix == ".png" else ""
        raise ValueError(f"--out must end in one of: {', '.join(WRITERS)}; not {str(out)!r}{hint}")
    part = None if out is None else out.with_name(f"{out.name}.part")
    ours = force or (part is not None and part.exists())  # what an earlier run, stopped at a target, wrote
    if picture is not None:
        picture = plan(picture, picture.parent, "likelihood", (".png",), force=ours)[".png"]
    if out is None:
        return Files(None, None, picture)
    suffixes = (out.suffix,) if picture is not None else (out.suffix, ".png")
    paths = plan(out, out.parent, out.stem, suffixes, force=ours)
    return Files(paths[out.suffix], part, paths.get(".png", picture))
