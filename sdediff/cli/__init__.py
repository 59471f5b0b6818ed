"""The command line. ``COMMANDS`` is the table of commands: a new one is one file and one line here.

Each file holds a click command named ``command`` and is imported only when that command runs.
"""

from __future__ import annotations

import click

from sdediff import __version__
from sdediff.cli.group import CommandTable

COMMANDS = {
    "train": "Train a score network on data.",
    "sample": "Draw samples from a trained run.",
    "tune": "Learn a solver for a run: fewer steps for the same accuracy.",
    "likelihood": "Evaluate the log-likelihood of data, in nats or, for integer data, bits/dim.",
    "evaluate": "Measure how like the data samples are: Fréchet distance, precision and recall, and more.",
    "encode": "Encode data into latents by the probability-flow ODE.",
    "decode": "Decode latents into data: the inverse of encode.",
    "interpolate": "Interpolate between data through the latent space.",
    "compare": "Compare error and cost of several solvers on a run.",
    "report": "Write a report of a run: one HTML page with samples, likelihoods, errors.",
    "selftest": "Measure this installation, or somebody else's sampler or likelihood, on exact problems.",
    "average": "Average the weights of a run over another width, after the fact.",
    "moments": "Give a model mean and covariance of its data.",
    "export": "Write a model in the format of another library.",
    "info": "Describe a run, or list solvers, grids, processes and data.",
}

EPILOG = """\b
Examples:
  sdediff train                     # digits, to runs/digits
  sdediff sample --solver ode       # from the most recent run
  sdediff sample --help

\b
Completion of commands, options and names (zsh and fish likewise):
  eval "$(_SDEDIFF_COMPLETE=bash_source sdediff)"
"""


@click.group(
    cls=CommandTable,
    table=COMMANDS,
    package=__name__,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="sdediff", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Score-based diffusion models: train, sample, encode, decode and measure likelihood.

    A run is a folder that `sdediff train` writes. The other commands use the most recent one under runs/ by default.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


__all__ = ["COMMANDS", "main"]
