"""``sdediff likelihood``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from sdediff import plots
from sdediff.cli.console import Console
from sdediff.cli.items import read_items
from sdediff.cli.options import (
    COUNT,
    PATH,
    POSITIVE,
    TableName,
    batch_size_option,
    data_argument,
    device_option,
    force_option,
    json_option,
    number_option,
    run_option,
    seed_option,
)
from sdediff.cli.output import plan, write_csv, write_npz
from sdediff.cli.runs import counting, open_run
from sdediff.likelihood import LogLikelihood, log_likelihood
from sdediff.likelihood.ode import EXACT_UP_TO

TRACES = {"auto": f"exact up to {EXACT_UP_TO} dimensions", "exact": "D products", "hutchinson": "random probes"}

Columns = Mapping[str, Any]


def _histogram(path: Path, columns: Columns) -> None:
    unit = next(iter(columns))
    plots.histogram(torch.from_numpy(columns[unit]), path, label=unit.replace("_per_", "/"))


WRITERS: dict[str, Callable[[Path, Columns], None]] = {".npz": write_npz, ".csv": write_csv, ".png": _histogram}
"""What ``--out`` may be, by suffix; the first column is the likelihood, named by its unit."""

EPILOG = """\b
Examples:
  sdediff likelihood                          # what the run held out
  sdediff likelihood -n 100 --out bits.csv    # a figure for each item
  sdediff likelihood test.npz --trace hutchinson --probes 8 --json
"""


@click.command("likelihood", epilog=EPILOG)
@data_argument
@run_option
@number_option
@click.option(
    "--trace",
    type=TableName(TRACES, "trace"),
    default="auto",
    show_default=True,
    help=f"How the divergence is taken: {'; '.join(f'{name}, {what}' for name, what in TRACES.items())}.",
)
@click.option("--probes", type=COUNT, default=2, show_default=True, help="Probes of the hutchinson trace, per item.")
@click.option("--rtol", type=POSITIVE, help="Relative tolerance.  [default: 1e-5; 1e-4 with random probes]")
@click.option("--atol", type=POSITIVE, help="Absolute tolerance.  [default: 1e-5; 1e-4 with random probes]")
@click.option("--steps", type=COUNT, help="Steps of a fixed grid (rk4) instead of tolerances.")
@seed_option
@batch_size_option(32)
@device_option
@click.option("--out", type=PATH, help=f"A file with every item: {', '.join(WRITERS)} (a histogram).")
@force_option
@json_option
def command(
    data: str | None,
    run: Path | None,
    number: int | None,
    trace: str,
    probes: int,
    rtol: float | None,
    atol: float | None,
    steps: int | None,
    seed: int,
    batch_size: int,
    device: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Log-likelihood of DATA through the probability-flow ODE.

    DATA is a data set's name, a file or a folder; by default what the run's training left out. Integer data are
    dequantised and answered in bits/dim (smaller is better), continuous data in nats (larger is better).
    """
    console = Console(as_json)
    file = None if out is None else _place(out, force)
    opened = open_run(run, device, console)
    items, words = read_items(data, opened, number)
    start = time.perf_counter()
    with console.bar("likelihood", unit="item") as report, counting(opened.model) as count:
        result = log_likelihood(
            opened.model,
            items.to(opened.device),
            trace=trace,
            probes=probes,
            rtol=rtol,
            atol=atol,
            steps=steps,
            seed=seed,
            batch_size=batch_size,
            progress=report,
        )
    seconds, nfe = time.perf_counter() - start, count.items / len(items)
    unit, values, errors = in_units(result)
    mean, standard_error = mean_and_error(values)
    if file is not None:
        WRITERS[file.suffix](file, {unit.replace("/", "_per_"): values.numpy(), "standard_error": errors.numpy()})
    console.say(
        f"{mean:.5g} +- {standard_error:.2g} {unit} ({words}, {len(items)} items; mean and standard error)\n"
        f"  NFE {nfe:g}, {seconds:.1f} s" + ("" if file is None else f"\n  items  {file}")
    )
    console.result(
        run=opened.folder,
        data=words,
        unit=unit,
        mean=mean,
        standard_error=standard_error,
        items=len(items),
        nfe=nfe,
        seconds=seconds,
        out=file,
    )


def _place(out: Path, force: bool) -> Path:
    """The file to write, known to be of a kind that can be, and free."""
    if out.suffix not in WRITERS:
        raise ValueError(f"--out must end in one of: {', '.join(WRITERS)}; not {str(out)!r}")
    return plan(out, out.parent, out.stem, (out.suffix,), force=force)[out.suffix]


def in_units(result: LogLikelihood) -> tuple[str, Tensor, Tensor]:
    """The unit that suits the data, and in it every item's likelihood and standard error, on the CPU."""
    error = result.standard_error.cpu()
    if not result.discrete:
        return "nats", result.log_prob.cpu(), error
    return "bits/dim", result.bits_per_dim.cpu(), error / (math.log(2.0) * result.latent[0].numel())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over the items and its standard error; of a single item the latter is unknown (NaN)."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
