"""``sdediff interpolate``."""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from torch import Tensor

from sdediff import plots
from sdediff.cli import tables
from sdediff.cli.conditions import Told, condition_option, tell
from sdediff.cli.console import Console
from sdediff.cli.items import arrays_of, as_values, backdrop, read_items
from sdediff.cli.options import (
    PATH,
    batch_size_option,
    data_argument,
    device_option,
    force_option,
    json_option,
    run_option,
    solver_options,
)
from sdediff.cli.output import plan, write_npz
from sdediff.cli.runs import counting, open_run
from sdediff.cli.transport import DETERMINISTIC, transport_options
from sdediff.transport import interpolate

ROWS = 8
"""Paths drawn where no pair is named."""

EXAMPLES = """\
  sdediff interpolate                            # neighbours among the held-out items
  sdediff interpolate --pair 0 7 --pair 3 5 --points 12
  sdediff interpolate photos/ --pair 0 1 --out film.png"""


@click.command("interpolate", epilog=tables.as_epilog(EXAMPLES, tables.solvers(DETERMINISTIC)))
@data_argument
@run_option
@click.option(
    "--pair",
    "pairs",
    type=click.IntRange(min=0),
    nargs=2,
    multiple=True,
    metavar="A B",
    help=f"Items to join, counted from 0; may be repeated.  [default: 0 1, 2 3, ..., {ROWS} paths]",
)
@click.option(
    "--points", type=click.IntRange(min=2), default=8, show_default=True, help="Points of a path, ends included."
)
@solver_options(DETERMINISTIC)
@batch_size_option(256)
@condition_option
@device_option
@click.option("--out", type=PATH, help="Folder, or name of the two files.  [default: interpolations/ in the run]")
@force_option
@json_option
def command(
    data: str | None,
    run: Path | None,
    pairs: tuple[tuple[int, int], ...],
    points: int,
    solver: str,
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
    """Paths between items of DATA through the latent space: a filmstrip (.png) and the numbers (.npz).

    Both ends are encoded, joined on the sphere and decoded. DATA is a data set's name, a file or a folder; by default
    what the run's training left out.
    """
    console = Console(as_json)
    options = transport_options(solver, steps, rtol, atol, grid)
    opened = tell(open_run(run, device, console), told)
    items, words, _ = read_items(data, opened)
    pairs = _pairs(pairs, len(items), words)
    files = plan(out, opened.folder / "interpolations", "paths", (".png", ".npz"), force=force)
    ends = as_values(items[torch.tensor(pairs)], opened)
    size, parts = max(1, batch_size // points), list[Tensor]()
    start = time.perf_counter()
    with console.bar("interpolating", unit="path") as report, counting(opened.model) as count:
        for first in range(0, len(ends), size):
            part = ends[first : first + size]
            parts.append(interpolate(opened.model, part[:, 0], part[:, 1], points, solver, **options).cpu())
            report(sum(len(done[0]) for done in parts), len(ends))
    seconds, frames = time.perf_counter() - start, torch.cat(parts, dim=1)
    write_npz(files[".npz"], {**arrays_of(frames, opened), "pairs": pairs, "solver": solver})
    plots.sequences(
        frames, opened.info, files[".png"], reference=None if plots.is_image(opened.info.shape) else backdrop(opened)
    )
    console.say(
        f"{len(pairs)} paths of {points} points between items of {words}, solver {solver}, {seconds:.2f} s\n"
        f"  picture  {files['.png']}\n  numbers  {files['.npz']}"
    )
    console.result(
        run=opened.folder,
        data=words,
        pairs=pairs,
        points=points,
        solver=solver,
        forwards=count.calls,
        seconds=seconds,
        picture=files[".png"],
        numbers=files[".npz"],
    )


def _pairs(pairs: tuple[tuple[int, int], ...], count: int, words: str) -> tuple[tuple[int, int], ...]:
    """The pairs that were named, or neighbours.

    Raises:
        ValueError: if there are no such items.
    """
    if count < 2:
        raise ValueError(f"{words}: a path needs at least 2 items, there is {count}")
    wanted = max((max(pair) for pair in pairs), default=0)
    if wanted >= count:
        raise ValueError(f"{words} has items 0 to {count - 1}; there is no item {wanted}")
    return pairs or tuple((i, i + 1) for i in range(0, count - 1, 2))[:ROWS]
