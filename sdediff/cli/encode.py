"""``sdediff encode``."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import click

from sdediff.cli import tables
from sdediff.cli.auto import Task, choose_solvers
from sdediff.cli.conditions import CONDITION, labels_option, with_labels
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import CODES, DataItems, in_batches, read_items
from sdediff.cli.options import (
    SolverChoice,
    batch_size_option,
    data_argument,
    given_network,
    number_option,
    run_option,
    solver_options,
)
from sdediff.cli.output import write_npz
from sdediff.cli.runs import Run, open_run
from sdediff.cli.tables import DETERMINISTIC
from sdediff.samplers import AUTO, Sampler
from sdediff.transport import encode

EXAMPLES = """\
  sdediff encode                             # the run's held-out data
  sdediff encode photos.npz --out z.npz
  sdediff encode -n 100 --solver heun --steps 50
  sdediff encode --solver auto --steps 20    # chosen for the run; decode's too
  sdediff encode --solver reversible --steps 10    # decode inverts it exactly"""


@click.command(
    "encode", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, DETERMINISTIC),)
)
@data_argument
@run_option
@number_option
@solver_options(DETERMINISTIC)
@batch_size_option(256)
@labels_option
@guidance_options
@click.option("--codes", is_flag=True, help="The codes of an autoencoder, a VAE or a latent model alone.")
@frame_options("The .npz file.  [default: latents/ in the run]")
def command(
    frame: CommandFrame,
    data: str | None,
    number: int | None,
    solver: SolverChoice,
    batch_size: int,
    labels: str | None,
    guidance: Guidance,
    codes: bool,
) -> None:
    """Encode DATA: solve the probability-flow ODE from data to latents.

    DATA is a data set's name, a file or a folder; by default the run's held-out data. `sdediff decode` is the inverse:
    it reads the solver, the condition and the guidance from the file. By default the solve is adaptive, at a tolerance
    of 1e-6. With --solver reversible the inverse is exact for any number of steps; its latents are the last five states
    of the solve, the first of them the latent itself: (n, 5, *shape).
    """
    name = str(solver.name)
    solver.resolve(name)  # refuses options that do not fit
    run = open_run(frame.run, frame.device, frame.console, frame.execution)
    items, described, *_ = loaded = read_items(data, run, number)
    if codes:
        return _write_codes(frame, run, loaded)
    run = with_labels(run, frame.told(run), labels, loaded)
    model, guiding = guidance.of(run, frame.console)
    files = frame.plan(run.folder / "latents", "latents", ".npz")
    method: str | Sampler = name
    chosen: list[dict[str, Any]] = []
    if name == AUTO:
        interval = (run.model.sde.t_min, run.model.sde.t_max)
        method, chosen = choose_solvers(frame.console, Task.of(run, model, guiding), solver.steps, interval)
    with frame.measure(model, "encoding", "item") as measured:
        z = in_batches(
            model,
            run.states(items),
            batch_size,
            lambda model, x: encode(model, x, method, **solver.options),
            measured.report,
        )
    nfe = measured.items / len(items)
    arrays = {f"{CONDITION}{key}": value.numpy() for key, value in run.condition.items()}
    texts = {"solver": name, "options": json.dumps(solver.options)}
    if guiding:
        texts["guidance"] = guidance.to_json()
    write_npz(files[".npz"], {"latents": z.numpy(), **texts, **loaded.named, **arrays})
    frame.finish(
        run,
        f"{len(z)} latents of {described}, solver {name}, NFE {nfe:g}, {measured.seconds:.2f} s",
        files,
        data=described,
        solver=name,
        items=len(z),
        nfe=nfe,
        seconds=measured.seconds,
        guidance=guiding,
        chosen=chosen,
    )
    own = given_network()
    named = "" if own is None else f" --network {own.__module__}:{own.__qualname__}"
    return frame.console.say(f"  next     sdediff decode {files['.npz']} --run {run.folder}{named}")


def _write_codes(frame: CommandFrame, run: Run, loaded: DataItems) -> None:
    """Write the codes of items, the means of their posteriors, as they are before any solve.

    Raises:
        ValueError: for a run without codes.
    """
    if run.stage is None:
        raise ValueError(f"--codes: the model in {run.folder} has no codes; VAEs, autoencoders and latent models do")
    files = frame.plan(run.folder / "latents", "codes", ".npz")
    z = run.states(loaded.items).cpu()
    write_npz(files[".npz"], {"latents": z.numpy(), "solver": CODES, **loaded.named})
    frame.finish(run, f"{len(z)} codes of {loaded.name}", files, data=loaded.name, items=len(z))
