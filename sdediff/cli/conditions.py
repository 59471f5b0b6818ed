"""What the network of a run is told about its items besides the state and the time: by name, for all or from labels."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import click
import torch
from torch import Tensor, nn

from sdediff.cli.items import Read
from sdediff.cli.runs import Run

Told = tuple[tuple[str, Tensor], ...]
"""Names of the network's arguments and their values, one row for all items each."""

CONDITION = "condition_"
"""How the arrays of a file begin that were told to the network; the rest is the name of the argument."""

_TRUTHS = {"true": True, "false": False}


class Assignment(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """``NAME=VALUE``: an argument of the network and a number, a truth, or several numbers with commas between."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Tensor]:
        """The name, and the value as a row ``(1,)`` or ``(1, k)``; whole numbers stay whole."""
        if isinstance(value, tuple):
            return value
        name, sign, text = (part.strip() for part in str(value).partition("="))
        parts = [part.strip() for part in text.split(",")]
        if not sign or not name.isidentifier():
            self.fail(f"wants NAME=VALUE, NAME an argument of the network, not {value!r}", param, ctx)
        try:
            row = torch.tensor([_TRUTHS[text]] if text in _TRUTHS else _numbers(parts))
        except (ValueError, RuntimeError):  # no numbers, or whole ones of more than 64 bits
            self.fail(f"{name}: give a number, or several with commas between, not {text!r}", param, ctx)
        return name, row if len(parts) == 1 else row[None]


def _numbers(parts: Sequence[str]) -> list[int] | list[float]:
    try:
        return [int(part) for part in parts]
    except ValueError:
        return [float(part) for part in parts]


condition_option = click.option(
    "--condition",
    "told",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What the network is told besides: an argument of its and a number, or several with commas. May be repeated.",
)
labels_option = click.option("--labels", metavar="NAME", help="Tell the network the labels of DATA, as this argument.")


def tell(run: Run, told: Told) -> Run:
    """Put the run's model under a condition for all items.

    Raises:
        ValueError: if the network takes no such arguments, or needs others.
    """
    named = dict(told)
    check_names(run, named)
    return run._replace(model=run.model.given(named)) if named else run


def tell_labels(run: Run, told: Told, labels: str | None, read: Read) -> tuple[Run, dict[str, Tensor]]:
    """Put the run's model under a condition for all items or, with labels, one row an item; the condition as well.

    Raises:
        ValueError: if the data have no labels, or as :func:`tell`.
    """
    named = dict(told)
    if labels is not None:
        if read.labels is None:
            raise ValueError(f"{read.words}: the data have no labels for --labels {labels}")
        named[labels] = read.labels
    return tell(run, tuple(named.items())), named


def check_names(run: Run, names: Collection[str]) -> None:
    """Refuse arguments that the network does not take, and the lack of those that it needs.

    Raises:
        ValueError: naming them.
    """
    network = run.model.network
    try:
        signature = inspect.signature(network.forward if isinstance(network, nn.Module) else network)
    except (TypeError, ValueError):  # a callable that does not say
        return
    kinds = inspect.Parameter
    parameters = list(signature.parameters.values())
    free = {p.name: p for p in parameters[2:] if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    takes = f"besides the state and the time it takes {', '.join(free) or 'nothing'}"
    unknown = [name for name in names if name not in free]
    if unknown and not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        raise ValueError(f"the run's network takes no {', '.join(unknown)}: {takes}")
    missing = [name for name, p in free.items() if p.default is kinds.empty and name not in names]
    if missing:
        raise ValueError(f"the run's network has to be told {', '.join(missing)}: --condition {missing[0]}=VALUE")
