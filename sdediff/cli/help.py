"""Help of commands: what it does, examples, then options, in 80 columns and at most two screens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from sdediff.cli.console import paint

WIDTH = 80
"""Columns of a help text."""

_FIRST_COLUMN = 24
_METAVARS = {"INTEGER RANGE": "N", "FLOAT RANGE": "X", "INTEGER": "N", "FLOAT": "X"}
_RANGE = re.compile(r" *\[x[<>]=?[^\]]*\]|; x[<>]=?[^\];]*|(?<=\[)x[<>]=?[^\];]*; ")


class DescribedCommand(click.Command):
    """A command whose examples come before its options.

    Args:
        examples: command lines and comments, a line each.
        notes: functions to blocks of text after the options, each of a title and its lines.
        **settings: settings of the command.
    """

    def __init__(self, *args: Any, examples: str, notes: Sequence[Callable[[], str]] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples, self.notes = examples, tuple(notes)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, text, examples, options and notes."""
        formatter.width = min(formatter.width, WIDTH - 2)
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        formatter.write(f"\n{title('Examples:')}\n{self.examples.rstrip()}\n")
        records = [record for each in self.get_params(ctx) if (record := each.get_help_record(ctx)) and record[1]]
        with formatter.section(title("Options")):
            formatter.write_dl([(_name(name), _RANGE.sub("", text)) for name, text in records], _FIRST_COLUMN)
        for note in self.notes:
            head, _, rest = note().partition("\n")
            formatter.write(f"\n{title(head)}\n{rest.rstrip()}\n")


def title(text: str) -> str:
    """Return the title of a section, bold on a terminal."""
    return paint(text, bold=True)


def _name(record: str) -> str:
    """Return an option's names with a short word for its value."""
    for long, short in _METAVARS.items():
        record = record.replace(f" {long}", f" {short}")
    return record
