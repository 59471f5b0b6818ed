"""The command line. ``COMMANDS`` is the list: a new command is one file and one line here.

Each file holds a click command called ``command`` and is imported only when that command is asked for.
"""

from __future__ import annotations

import click

from sdediff import __version__
from sdediff.cli.group import CommandTable

COMMANDS = {
    "train": "Train a score network on data.",
    "sample": "Draw samples from a trained run.",
    "tune": "Learn a solver for a run: fewer steps for the same accuracy.",
    "likelihood": "Log-likelihood of data: nats, or bits/dim for integer data.",
    "encode": "Data to latents, along the probability-flow ODE.",
    "decode": "Latents to data: the inverse of encode.",
    "interpolate": "Paths between data through the latent space.",
    "compare": "Error against forwards, for several solvers on a run.",
    "export": "A model as another library reads it.",
    "info": "What a run holds; without a run, what there is to choose from.",
}


@click.group(
    cls=CommandTable,
    table=COMMANDS,
    package=__name__,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  sdediff train                     # digits, to runs/digits\n"
    "  sdediff sample --solver ode       # from the most recent run\n  sdediff sample --help",
)
@click.version_option(__version__, prog_name="sdediff", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Score-based diffusion models: train, sample, encode, decode and measure likelihood.

    A run is a folder that `sdediff train` makes. Commands that take one use the most recent under runs/ if none is
    given.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


__all__ = ["COMMANDS", "main"]
