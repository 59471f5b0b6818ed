"""``sdediff report``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import COUNT, PATH, batch_size_option, reading_option, run_option, seed_option
from sdediff.cli.sections import SECTIONS, Part, Subject, left_out
from sdediff.extras import require
from sdediff.files import write
from sdediff.report import Section, figures, page

EXAMPLES = """\
  sdediff report                             # the most recent run
  sdediff report runs/digits --items 200
  sdediff report runs/digits --out digits.html --force --json
  sdediff report runs/mine --data test.npz   # of other data than its own"""


@click.command("report", cls=DescribedCommand, examples=EXAMPLES)
@click.argument("folder", metavar="[RUN]", required=False, type=PATH)
@run_option
@click.option(
    "--data", metavar="NAME|PATH", help="Items whose likelihood is shown.  [default: the run's held-out data]"
)
@reading_option
@click.option("--items", type=COUNT, default=64, show_default=True, help="Items, drawn from the data by --seed.")
@seed_option
@batch_size_option(256)
@frame_options("File, .html, or folder.  [default: report.html in the run]")
def command(frame: CommandFrame, folder: Path | None, data: str | None, items: int, seed: int, batch_size: int) -> None:
    """Write a report of RUN: one page of HTML with all its pictures, for a browser without network, or for paper.

    It holds configuration, curves of training, samples by several solvers, likelihoods with the most and the least
    likely items and their error budget, error against forwards, and provenance. What cannot be had, such as the
    likelihood of data that are no longer there, is left out with its reason.
    """
    require("plots")
    if folder is not None and frame.run is not None:
        raise ValueError(f"the run is given twice, {folder} and --run {frame.run}")
    frame = frame if folder is None else replace(frame, run=folder)
    run = frame.open()
    files = frame.plan(run.folder, "report", ".html")
    subject = Subject(frame, run, data, items, seed, batch_size)
    parts: dict[str, Part] = {}
    for title, describe in SECTIONS.items():
        parts[title] = left_out(title, describe, subject)
    shown = {name: text for part in parts.values() for name, text in part.shown.items()}
    sections = [Section(title, part.blocks) for title, part in parts.items()]
    words = f"A report of the run {run.folder}, {run.info.name or 'data without a name'}."
    write(files[".html"], page(run.folder.resolve().name, words, figures(shown), sections).encode())
    results: dict[str, Any] = {name: value for part in parts.values() for name, value in part.results.items()}
    without = {title: part.reason for title, part in parts.items() if part.reason}
    lines = [f"{name:24s} {text}" for name, text in shown.items()]
    frame.finish(run, "\n".join(["report", *(f"  {line}" for line in lines)]), files, **results, left_out=without)
