"""Classifier-free guidance on the command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import torch

from sdediff.cli.conditions import Assignment, Assignments, check_names
from sdediff.cli.console import Console
from sdediff.cli.options import Decorator, together
from sdediff.cli.runs import Run, run_config
from sdediff.conditions import Condition
from sdediff.denoiser import Denoiser
from sdediff.guidance import guided
from sdediff.networks.told import Told


class Guidance(NamedTuple):
    """Values of ``--guidance``, ``--null`` and ``--guidance-interval``."""

    weight: float | None = None
    null: Assignments = ()
    interval: tuple[float, float] | None = None

    def of(self, run: Run, console: Console, model: Denoiser | None = None) -> tuple[Denoiser, str | None]:
        """Return a model of the run under guidance, by default its own, and that in words.

        Raises:
            ValueError: without a condition, or a null one where the network does not know its own.
        """
        model, null = run.model if model is None else model, dict(self.null)
        if self.weight is None:
            return guided(model, None, null or None, self.interval), None
        if not run.condition:
            raise ValueError("--guidance needs a condition: --label CLASS, or --condition NAME=VALUE")
        if not null and run.model.told == Told():
            raise ValueError("--guidance needs --null NAME=VALUE: the run's network does not say what stands for none")
        check_names(run, null)
        config = run_config(run.folder)
        if config is not None and config.training.label_dropout == 0.0:
            console.note("no condition was withheld in training (label_dropout = 0): guidance is away from a guess")
        against = Condition.of(null) if null else run.model.told.null(Condition.of(run.condition))
        rows = ", ".join(f"{name}={row.tolist()}" for name, row in against.named.items() if row is not None)
        where = "" if self.interval is None else f" from t = {self.interval[0]:g} to {self.interval[1]:g}"
        return guided(
            model, self.weight, null or None, self.interval
        ), f"guidance {self.weight:g} against {rows}{where}"

    def to_json(self) -> str:
        """Return the values as text, for a file."""
        null = {name: row.tolist() for name, row in self.null}
        return json.dumps({"weight": self.weight, "null": null, "interval": self.interval})

    @classmethod
    def from_json(cls, text: str) -> Guidance:
        """Return the values in a text."""
        found = json.loads(text)
        null = tuple((name, torch.tensor(row)) for name, row in found["null"].items())
        return cls(found["weight"], null, None if found["interval"] is None else tuple(found["interval"]))


def guidance_options(command: Callable[..., Any]) -> Any:
    """Add ``--guidance --null --guidance-interval``; the command gets them as ``guidance``, a :class:`Guidance`."""
    options: Decorator[Any] = together(
        click.option("--guidance", type=float, metavar="WEIGHT", help="Weight of classifier-free guidance."),
        click.option(
            "--null",
            type=Assignment(),
            multiple=True,
            metavar="NAME=VALUE",
            help="No condition, in guidance.  [default: as trained]",
        ),
        click.option(
            "--guidance-interval",
            type=float,
            nargs=2,
            metavar="LOW HIGH",
            help="Times between which it guides.  [default: all]",
        ),
    )

    @functools.wraps(command)
    def with_guidance(
        *, guidance: float | None, null: Assignments, guidance_interval: tuple[float, float] | None, **values: Any
    ) -> Any:
        return command(guidance=Guidance(guidance, null, guidance_interval), **values)

    return options(with_guidance)
