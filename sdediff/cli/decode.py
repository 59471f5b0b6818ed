"""``sdediff decode``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from sdediff.cli import tables
from sdediff.cli.auto import Task, choose_solvers
from sdediff.cli.conditions import CONDITION, with_condition
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import CODES, in_batches, write_samples
from sdediff.cli.options import PATH, SolverChoice, batch_size_option, number_option, run_option, solver_options
from sdediff.cli.runs import Run, open_run
from sdediff.cli.tables import DETERMINISTIC
from sdediff.data.files import load_items
from sdediff.samplers import AUTO, SOLVERS, Sampler
from sdediff.transport import decode, states_of

EXAMPLES = """\
  sdediff decode runs/digits/latents/latents.npz
  sdediff decode z.npz --out back.png --solver heun --steps 50"""


class Latents(NamedTuple):
    """Latents of a file, with solver, options, condition and guidance that encoded them, as far as it names them."""

    z: Tensor
    solver: str
    options: dict[str, Any]
    condition: dict[str, Tensor]
    guidance: Guidance


@click.command(
    "decode", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, DETERMINISTIC),)
)
@click.argument("latents", type=PATH)
@run_option
@number_option
@solver_options(DETERMINISTIC, None, "  [default: the solver and options of the file]")
@batch_size_option(256)
@guidance_options
@frame_options("Folder, or name of the two files.  [default: decoded/ in the run]")
def command(
    frame: CommandFrame,
    latents: Path,
    number: int | None,
    solver: SolverChoice,
    batch_size: int,
    guidance: Guidance,
) -> None:
    """Decode LATENTS, a file that `sdediff encode` wrote: a picture (.png) and the numbers (.npz).

    It inverts encode with the solver, condition and guidance that the file names. Latents of any other
    origin are decoded by an adaptive solve, at a tolerance of 1e-6.
    """
    file = _read_latents(latents)
    name, options = file.solver if solver.name is None else solver.name, solver.options
    if file.solver == CODES and any(value is not None for value in solver):
        raise ValueError(f"{latents} holds codes, which are decoded without a solve: give no solver options")
    if any(value is not None for value in solver):
        solver.resolve(name)  # refuses options that do not fit
    else:
        options = file.options
    rows = {key: value if len(value) == 1 else value[:number] for key, value in file.condition.items()}
    run = open_run(frame.run, frame.device, frame.console, frame.execution)
    if file.solver == CODES:
        return _decode_codes(frame, run, file.z[:number], latents, batch_size)
    run = with_condition(run, tuple({**rows, **dict(frame.told(run))}.items()))
    model, guiding = (file.guidance if guidance == Guidance() else guidance).of(run, frame.console)
    same = (name, options) == (file.solver, file.options)
    z = _check_latents(file.z[:number], latents, run, states_of(SOLVERS[name]), same)
    files = frame.plan(run.folder / "decoded", latents.stem, ".png", ".npz")
    method: str | Sampler = name
    chosen: list[dict[str, Any]] = []
    if name == AUTO:
        interval = (run.model.sde.t_max, run.model.sde.t_min)
        task = Task.of(run, model, guiding)
        method, chosen = choose_solvers(frame.console, task, options.get("steps"), interval)
    with frame.measure(model, "decoding", "item") as measured:
        x = in_batches(
            model, z, batch_size, lambda model, part: decode(model, part, method, **options), measured.report
        )
    nfe = measured.items / len(z)
    if tuple(x.shape[1:]) != run.state_shape:  # a reversible solve from plain latents leaves several states
        x = x[:, 0]
    x = run.data(x, batch_size)
    arrays = write_samples(x, run, files, solver=name)
    text = f"{len(x)} items of {latents}, solver {name}, NFE {nfe:g}, {measured.seconds:.2f} s"
    figures = {"latents": latents, "solver": name, "items": len(x), "nfe": nfe, "seconds": measured.seconds}
    return frame.finish(run, text, files, arrays, **figures, chosen=chosen)


def _decode_codes(frame: CommandFrame, run: Run, z: Tensor, path: Path, batch_size: int) -> None:
    """Write the data of codes.

    Raises:
        ValueError: for a run without codes, or codes of another shape.
    """
    if run.stage is None or tuple(z.shape[1:]) != run.state_shape or not z.is_floating_point():
        wanted = "none" if run.stage is None else f"floats {run.state_shape}"
        raise ValueError(f"{path}: the run's codes are {wanted}, these {z.dtype} {tuple(z.shape[1:])}")
    files = frame.plan(run.folder / "decoded", path.stem, ".png", ".npz")
    arrays = write_samples(run.data(z.to(run.device), batch_size), run, files, solver=CODES)
    frame.finish(run, f"{len(z)} items of {path}, from codes", files, arrays, latents=path, items=len(z))


def _read_latents(path: Path) -> Latents:
    """Read a file of latents."""
    z = load_items(path, ("latents",), ordered=True).x
    texts: dict[str, str] = {}
    condition: dict[str, Tensor] = {}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            texts = {key: str(arrays[key]) for key in ("solver", "options", "guidance") if key in arrays}
            names = [key for key in arrays.files if key.startswith(CONDITION)]
            condition = {key.removeprefix(CONDITION): torch.from_numpy(arrays[key]) for key in names}
    solver = texts.get("solver", "ode")
    options = json.loads(texts.get("options", "{}"))
    guidance = Guidance.from_json(texts["guidance"]) if "guidance" in texts else Guidance()
    known = solver in DETERMINISTIC or solver == CODES
    return Latents(z, solver if known else "ode", options, condition, guidance)


def _check_latents(z: Tensor, file: Path, run: Run, states: int, same: bool) -> Tensor:
    """Return latents on the run's device, ``(n, *shape)``, or ``(n, states, *shape)`` if decoded as they were encoded.

    Raises:
        ValueError: if they are not of the run's shape, or are states that another solve has left.
    """
    shape, came = run.state_shape, tuple(z.shape[1:])
    if came[1:] == shape and not same:
        raise ValueError(
            f"{file}: {came[0]} states of a reversible solve are decoded as they came: give no solver options"
        )
    if not z.is_floating_point() or came not in (shape, (states, *shape)):
        raise ValueError(f"{file}: the run's latents are floats {shape}, these {z.dtype} {came}")
    return z.to(run.device)
