"""``sdediff moments``."""

from __future__ import annotations

from pathlib import Path

import click

from sdediff.checkpoint import save
from sdediff.cli.conditions import Assignments, condition_option, with_condition
from sdediff.cli.console import Console
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import read_items
from sdediff.cli.options import (
    COUNT,
    PATH,
    batch_size_option,
    device_option,
    force_option,
    json_option,
    network_option,
    reading_option,
    seed_option,
)
from sdediff.cli.runs import open_run
from sdediff.estimation import SAMPLES, STEPS, moments

EXAMPLES = """\
  sdediff moments ddpm-cat runs/cat                    # from its samples
  sdediff moments ddpm-cat runs/cat --data cats.npz    # from data: better
  sdediff moments runs/digits runs/digits --data mnist.npz --force"""


@click.command("moments", cls=DescribedCommand, examples=EXAMPLES)
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option("--data", help="A file or folder of the data, or a data set's name for its held-out part.")
@reading_option
@click.option("-n", "--number", type=COUNT, help=f"Samples, or items of the data.  [default: {SAMPLES}; all of them]")
@click.option("--steps", type=COUNT, default=STEPS, show_default=True, help="Steps of a sample.")
@seed_option
@batch_size_option(64)
@network_option
@condition_option
@device_option
@force_option
@json_option
def command(
    run: Path,
    folder: Path,
    data: str | None,
    number: int | None,
    steps: int,
    seed: int,
    batch_size: int,
    condition: Assignments,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write the model of RUN into FOLDER with mean and covariance of its data.

    For models that come without, as those of diffusers do: solvers and likelihoods are more accurate with them. They
    are those of DATA, or of samples of the model.
    """
    console = Console(as_json)
    opened = open_run(run, device, console)
    if data is not None:
        items, source, *_ = read_items(data, opened, number)
        found = moments(opened.model, items)
        source = f"{len(items)} items of {source}"
    else:
        model = with_condition(opened, condition).model
        count = SAMPLES if number is None else number
        with console.bar("sampling") as report:
            found = moments(model, n=count, steps=steps, seed=seed, batch_size=batch_size, progress=report)
        source = f"{count} samples"
    save(opened.model.with_moments(found), folder, force=force)
    deviation = float(found.variances.mean().sqrt())
    console.say(
        f"moments of {source}, mean {float(found.mean.mean()):.3f}, deviation {deviation:.3f}\n  model    {folder}"
    )
    console.result(run=run, folder=folder, source=source, mean=float(found.mean.mean()), deviation=deviation)
