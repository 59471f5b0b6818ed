"""``sdediff encode``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from sdediff.cli import tables
from sdediff.cli.conditions import CONDITION, Told, condition_option, labels_option, tell_labels
from sdediff.cli.console import Console
from sdediff.cli.items import as_values, in_batches, read_items
from sdediff.cli.options import (
    PATH,
    batch_size_option,
    data_argument,
    device_option,
    force_option,
    json_option,
    number_option,
    run_option,
    solver_options,
)
from sdediff.cli.output import plan, write_npz
from sdediff.cli.runs import counting, open_run
from sdediff.cli.transport import DETERMINISTIC, transport_options
from sdediff.transport import encode

EXAMPLES = """\
  sdediff encode                             # what the run held out
  sdediff encode photos.npz --out z.npz
  sdediff encode -n 100 --solver heun --steps 50
  sdediff encode --solver reversible --steps 10   # decode gives the very items back"""


@click.command("encode", epilog=tables.as_epilog(EXAMPLES, tables.solvers(DETERMINISTIC)))
@data_argument
@run_option
@number_option
@solver_options(DETERMINISTIC)
@batch_size_option(256)
@condition_option
@labels_option
@device_option
@click.option("--out", type=PATH, help="The .npz file.  [default: latents/ in the run]")
@force_option
@json_option
def command(
    data: str | None,
    run: Path | None,
    number: int | None,
    solver: str,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    grid: str | None,
    batch_size: int,
    told: Told,
    labels: str | None,
    device: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Latents of DATA: where the probability-flow ODE takes it.

    DATA is a data set's name, a file or a folder; by default what the run's training left out. `sdediff decode` is the
    inverse: it finds the solver, and what the network was told, in the file. The default is adaptive, at a tolerance of
    1e-6. With --solver reversible the inverse is exact, for any number of steps; its latents are the last few states of
    the way, the first of them the latent itself: (n, 5, *shape).
    """
    console = Console(as_json)
    options = transport_options(solver, steps, rtol, atol, grid)
    opened = open_run(run, device, console)
    items, words, _ = read = read_items(data, opened, number)
    opened, condition = tell_labels(opened, told, labels, read)
    file = plan(out, opened.folder / "latents", "latents", (".npz",), force=force)[".npz"]
    start = time.perf_counter()
    with console.bar("encoding", unit="item") as report, counting(opened.model) as count:
        x = as_values(items, opened)
        z = in_batches(opened.model, x, batch_size, lambda model, part: encode(model, part, solver, **options), report)
    seconds, nfe = time.perf_counter() - start, count.items / len(items)
    also = {f"{CONDITION}{name}": value.numpy() for name, value in condition.items()}
    write_npz(file, {"latents": z.numpy(), "solver": solver, "options": json.dumps(options), **also})
    console.say(f"{len(z)} latents of {words}, solver {solver}, NFE {nfe:g}, {seconds:.2f} s\n  numbers  {file}")
    console.say(f"  next     sdediff decode {file} --run {opened.folder}")
    console.result(run=opened.folder, data=words, solver=solver, items=len(z), nfe=nfe, seconds=seconds, numbers=file)
