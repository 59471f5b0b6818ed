"""``sdediff interpolate``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

from sdediff import plots
from sdediff.cli import tables
from sdediff.cli.auto import Task, choose_solvers
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import arrays_of, backdrop, read_items
from sdediff.cli.options import SolverChoice, batch_size_option, data_argument, run_option, solver_options
from sdediff.cli.output import write_npz
from sdediff.cli.tables import DETERMINISTIC
from sdediff.samplers import AUTO, Sampler
from sdediff.transport import interpolate

ROWS = 8
"""Number of paths by default."""

EXAMPLES = """\
  sdediff interpolate                    # neighbours among held-out items
  sdediff interpolate --pair 0 7 --pair 3 5 --points 12
  sdediff interpolate photos/ --pair 0 1 --out film.png"""


@click.command(
    "interpolate", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, DETERMINISTIC),)
)
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
@guidance_options
@frame_options("Folder, or name of the two files.  [default: interpolations/ in the run]")
def command(
    frame: CommandFrame,
    data: str | None,
    pairs: tuple[tuple[int, int], ...],
    points: int,
    solver: SolverChoice,
    batch_size: int,
    guidance: Guidance,
) -> None:
    """Interpolate between items of DATA through the latent space: a filmstrip (.png) and the numbers (.npz).

    Both ends are encoded, joined on the sphere and decoded. DATA is a data set's name, a file or a folder; by default
    the run's held-out data.
    """
    name = str(solver.name)
    solver.resolve(name)  # refuses options that do not fit
    run = frame.open()
    model, guiding = guidance.of(run, frame.console)
    items, described, *_ = read_items(data, run)
    pairs = _choose_pairs(pairs, len(items), described)
    files = frame.plan(run.folder / "interpolations", "paths", ".png", ".npz")
    method: str | Sampler = name
    chosen: list[dict[str, Any]] = []
    if name == AUTO:
        there = run.model.sde.t_min, run.model.sde.t_max
        task = Task.of(run, model, guiding)
        method, chosen = choose_solvers(frame.console, task, solver.steps, there, there[::-1])
    both = run.states(items[torch.tensor(pairs)].flatten(0, 1))
    ends = both.reshape(len(pairs), 2, *run.state_shape)
    size, batches = max(1, batch_size // points), list[Tensor]()
    with frame.measure(model, "interpolating", "path") as measured:
        for first in range(0, len(ends), size):
            start, end = ends[first : first + size].unbind(1)
            batches.append(interpolate(model, start, end, points, method, **solver.options).cpu())
            measured.report(min(first + size, len(ends)), len(ends))
    frames = torch.cat(batches, dim=1)
    frames = run.data(frames.flatten(0, 1), batch_size).reshape(*frames.shape[:2], *run.info.shape)
    write_npz(files[".npz"], {**arrays_of(frames, run), "pairs": pairs, "solver": name})
    reference = None if plots.is_image(run.info.shape) else backdrop(run)
    plots.sequences(frames, run.info, files[".png"], reference=reference)
    frame.finish(
        run,
        f"{len(pairs)} paths of {points} points between items of {described}, solver {name}, {measured.seconds:.2f} s",
        files,
        data=described,
        pairs=pairs,
        points=points,
        solver=name,
        forwards=measured.calls,
        seconds=measured.seconds,
        guidance=guiding,
        chosen=chosen,
    )


def _choose_pairs(pairs: tuple[tuple[int, int], ...], count: int, described: str) -> tuple[tuple[int, int], ...]:
    """Return the given pairs, or by default neighbours.

    Raises:
        ValueError: if there are no such items.
    """
    if count < 2:
        raise ValueError(f"{described}: a path needs at least 2 items, there is {count}")
    largest = max((max(pair) for pair in pairs), default=0)
    if largest >= count:
        raise ValueError(f"{described} has items 0 to {count - 1}; there is no item {largest}")
    return pairs or tuple((i, i + 1) for i in range(0, count - 1, 2))[:ROWS]
