"""``sdediff decode``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from sdediff.cli import tables
from sdediff.cli.conditions import CONDITION, Told, condition_option, tell
from sdediff.cli.console import Console
from sdediff.cli.items import in_batches, write_samples
from sdediff.cli.options import (
    PATH,
    batch_size_option,
    device_option,
    force_option,
    json_option,
    number_option,
    run_option,
    solver_options,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import Run, counting, open_run
from sdediff.cli.transport import DETERMINISTIC, transport_options
from sdediff.data.files import load_items
from sdediff.samplers import SAMPLERS
from sdediff.transport import decode, states_of

EXAMPLES = """\
  sdediff decode runs/digits/latents/latents.npz
  sdediff decode z.npz --out back.png --solver heun --steps 50   # by another solver than encoded them"""


@click.command("decode", epilog=tables.as_epilog(EXAMPLES, tables.solvers(DETERMINISTIC)))
@click.argument("latents", type=PATH)
@run_option
@number_option
@solver_options(DETERMINISTIC, None, "  [default: the one that encoded them, as it did]")
@batch_size_option(256)
@condition_option
@device_option
@click.option("--out", type=PATH, help="Folder, or name of the two files.  [default: decoded/ in the run]")
@force_option
@json_option
def command(
    latents: Path,
    run: Path | None,
    number: int | None,
    solver: str | None,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    grid: str | None,
    batch_size: int,
    told: Told,
    device: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Data of LATENTS, a file that `sdediff encode` wrote: a picture (.png) and the numbers (.npz).

    It undoes encode by the solver that the file names. Latents of any other origin are decoded by an adaptive solve,
    at a tolerance of 1e-6.
    """
    console = Console(as_json)
    z, named, own, condition = _read(latents)
    if all(option is None for option in (solver, steps, rtol, atol, grid)):
        solver, options = named, own
    else:
        solver = named if solver is None else solver
        options = transport_options(solver, steps, rtol, atol, grid)
    rows = {name: value if len(value) == 1 else value[:number] for name, value in condition.items()}
    opened = tell(open_run(run, device, console), tuple({**rows, **dict(told)}.items()))
    z = _fitting(z[:number], latents, opened, states_of(SAMPLERS[solver]), (solver, options) == (named, own))
    files = plan(out, opened.folder / "decoded", latents.stem, (".png", ".npz"), force=force)
    start = time.perf_counter()
    with console.bar("decoding", unit="item") as report, counting(opened.model) as count:
        x = in_batches(opened.model, z, batch_size, lambda model, part: decode(model, part, solver, **options), report)
    seconds, nfe = time.perf_counter() - start, count.items / len(z)
    if tuple(x.shape[1:]) != opened.info.shape:  # a reversible solve from plain latents leaves several states
        x = x[:, 0]
    names = write_samples(x, opened, files, solver=solver)
    console.say(
        f"{len(x)} items of {latents}, solver {solver}, NFE {nfe:g}, {seconds:.2f} s\n"
        f"  picture  {files['.png']}\n  numbers  {files['.npz']}  ({names})"
    )
    console.result(
        run=opened.folder,
        latents=latents,
        solver=solver,
        items=len(x),
        nfe=nfe,
        seconds=seconds,
        picture=files[".png"],
        numbers=files[".npz"],
    )


def _read(file: Path) -> tuple[Tensor, str, dict[str, Any], dict[str, Tensor]]:
    """The latents of a file, and the solver, its options and the condition that the file names, if it does."""
    z = load_items(file, ("latents",), layout=None).x
    named: dict[str, str] = {}
    condition: dict[str, Tensor] = {}
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            named = {name: str(arrays[name]) for name in ("solver", "options") if name in arrays}
            told = [name for name in arrays.files if name.startswith(CONDITION)]
            condition = {name.removeprefix(CONDITION): torch.from_numpy(arrays[name]) for name in told}
    solver = named.get("solver", "ode")
    return z, solver if solver in DETERMINISTIC else "ode", json.loads(named.get("options", "{}")), condition


def _fitting(z: Tensor, file: Path, run: Run, states: int, same: bool) -> Tensor:
    """Latents ``(n, *shape)``, or ``(n, states, *shape)`` if they are decoded as they came, on the run's device.

    Raises:
        ValueError: if they are not of the run's shape, or are states that another solve has left.
    """
    shape, came = run.info.shape, tuple(z.shape[1:])
    if came[1:] == shape and not same:
        raise ValueError(
            f"{file}: {came[0]} states of a reversible solve are decoded as they came: give no solver options"
        )
    if not z.is_floating_point() or came not in (shape, (states, *shape)):
        raise ValueError(f"{file}: the run's latents are floats {shape}, these {z.dtype} {came}")
    return z.to(run.device)
