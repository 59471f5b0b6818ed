"""The frame of a command on a run: common options, the opened run, output files, measurement and report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from sdediff.cli.conditions import Assignments, condition_option, label_option, of_label, with_condition
from sdediff.cli.console import Console
from sdediff.cli.options import (
    PATH,
    Decorator,
    device_option,
    execution_options,
    force_option,
    json_option,
    together,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import Measurement, Run, counting, open_run
from sdediff.denoiser import Denoiser
from sdediff.execution import Execution

_FILE_KINDS = {".png": "picture", ".npz": "numbers", ".csv": "numbers", ".html": "report"}


@dataclass(frozen=True)
class CommandFrame:
    """Options of all commands on a run, and the work that follows from them.

    Attributes:
        console: the console.
        run: folder of the run; ``None`` for the most recent.
        device: name of the device.
        condition: values of ``--condition``.
        label: value of ``--label``.
        out: value of ``--out``.
        force: whether files may be replaced.
        execution: how the network is run.
    """

    console: Console
    run: Path | None
    device: str
    condition: Assignments
    label: str | None
    out: Path | None
    force: bool
    execution: Execution

    def open(self) -> Run:
        """Open the run, its model under the condition for all items."""
        run = open_run(self.run, self.device, self.console, self.execution)
        return with_condition(run, self.told(run))

    def told(self, run: Run) -> Assignments:
        """Return what the network of a run is told of all items."""
        return (*self.condition, *of_label(run, self.label))

    def plan(self, folder: Path, name: str, *suffixes: str) -> dict[str, Path]:
        """Choose the output files, see :func:`~sdediff.cli.output.plan`."""
        return plan(self.out, folder, name, suffixes, force=self.force)

    @contextmanager
    def measure(self, model: Denoiser, title: str, unit: str = "step") -> Iterator[Measurement]:
        """Show a progress bar, count the evaluations of a model and measure the time while entered."""
        with self.console.bar(title, unit) as report, counting(model) as measured:
            measured.report = report
            yield measured

    def finish(self, run: Run, text: str, files: Mapping[str, Path], arrays: str = "", **figures: Any) -> None:
        """Print the result and the paths of its files.

        Args:
            run: the run.
            text: the result in words.
            files: the files by suffix.
            arrays: names of the arrays in the last file.
            **figures: values for ``--json``.
        """
        named = {_FILE_KINDS[suffix]: path for suffix, path in files.items()}
        lines = "".join(f"\n  {label:8s} {path}" for label, path in named.items())
        self.console.say(f"{text}{lines}{f'  ({arrays})' if arrays else ''}")
        self.console.result(run=run.folder, **figures, **named)


def frame_options(out: str | None = None) -> Decorator[Any]:
    """Add ``--condition --label --device --out --force --json`` and the execution; the command gets a ``frame``.

    ``--run`` goes into it, too.

    Args:
        out: help text of ``--out``; ``None`` for a command without output files.
    """
    files = () if out is None else (click.option("--out", type=PATH, help=out), force_option)
    options = together(condition_option, label_option, device_option, execution_options, *files, json_option)

    def apply(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def framed(*, as_json: bool, out: Path | None = None, force: bool = False, **values: Any) -> Any:
            run, device, condition, label = (values.pop(name) for name in ("run", "device", "condition", "label"))
            execution = Execution(**{field.name: values.pop(field.name) for field in fields(Execution)})
            frame = CommandFrame(Console(as_json), run, device, condition, label, out, force, execution)
            return command(frame=frame, **values)

        return options(framed)

    return apply
