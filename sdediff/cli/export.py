"""``sdediff export``."""

from __future__ import annotations

from pathlib import Path

import click

from sdediff.checkpoint import load
from sdediff.cli.console import Console
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import PATH, TableName, force_option, json_option
from sdediff.interop import export

FORMATS = {"diffusers": export}
"""Formats of export."""

EXAMPLES = """\
  sdediff export ddpm-cat --to diffusers ddpm-cat-again
  sdediff export runs/finetuned --to diffusers out/pipeline --force"""


@click.command("export", cls=DescribedCommand, examples=EXAMPLES)
@click.argument("run", type=PATH)
@click.argument("folder", type=PATH)
@click.option(
    "--to", "form", type=TableName(FORMATS, "format"), default="diffusers", show_default=True, help="The format."
)
@force_option
@json_option
def command(run: Path, folder: Path, form: str, force: bool, as_json: bool) -> None:
    """Write the model of RUN into FOLDER in the format of another library.

    Models whose network is one of diffusers, on a DDPM chain, can be exported to diffusers: those read from its
    folders, or runs saved from them. sdediff's own networks are no classes of diffusers and cannot be exported.
    """
    console = Console(as_json)
    FORMATS[form](load(run), folder, force=force)
    console.say(f"{run} written to {folder} for {form}")
    console.result(run=run, folder=folder, format=form)
