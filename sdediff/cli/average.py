"""``sdediff average``."""

from __future__ import annotations

from pathlib import Path

import click

from sdediff.checkpoint import save
from sdediff.cli.console import Console
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import PATH, POSITIVE, force_option, given_network, json_option, network_option
from sdediff.training.averages import averaged

EXAMPLES = """\
  sdediff train --run runs/digits --set training.averages=[0.05,0.1]
  sdediff average runs/digits runs/digits-0.08 --width 0.08
  sdediff average runs/digits runs/digits-0.12 --width 0.12"""


@click.command("average", cls=DescribedCommand, examples=EXAMPLES)
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option(
    "--width", type=POSITIVE, required=True, help="Width of the average, relative to the length of the training."
)
@network_option
@force_option
@json_option
def command(run: Path, folder: Path, width: float, force: bool, as_json: bool) -> None:
    """Write the model of RUN into FOLDER with its weights averaged over another width.

    The run has to be trained with training.averages. A short average (0.05) follows the last weights closely, a long
    one (0.2) smooths more; which is best can be measured afterwards, for example by `sdediff likelihood`.
    """
    console = Console(as_json)
    save(averaged(run, width, network=given_network()), folder, force=force)
    console.say(f"weights averaged over a width of {width:g}\n  model    {folder}")
    console.result(run=run, folder=folder, width=width)
