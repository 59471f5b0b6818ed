"""Conditions of the network beside state and time: arguments by name, for all items or from labels of the data."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from sdediff.cli.items import DataItems
from sdediff.cli.runs import Run
from sdediff.data.held_out import class_names
from sdediff.interop import DiffusersNetwork
from sdediff.networks import Levelled

Assignments = tuple[tuple[str, Tensor], ...]
"""Names of the network's arguments and their values, each one row for all items."""

CONDITION = "condition_"
"""Prefix of the arrays of a file that are arguments of the network; the rest is the name of the argument."""

LABEL = "label"
"""The argument of the library's networks that is a class; others may call their only argument otherwise."""

_BOOLEANS = {"true": True, "false": False}


class Assignment(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """``NAME=VALUE``: an argument of the network and a number, a boolean, or several numbers separated by commas."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Tensor]:
        """Return the name, and the value as a row ``(1,)`` or ``(1, k)``; integers stay integers."""
        if isinstance(value, tuple):
            return value
        name, sign, text = (word.strip() for word in str(value).partition("="))
        numbers = [word.strip() for word in text.split(",")]
        if not sign or not name.isidentifier():
            self.fail(f"wants NAME=VALUE, NAME an argument of the network, not {value!r}", param, ctx)
        try:
            row = torch.tensor([_BOOLEANS[text]] if text in _BOOLEANS else _parse_numbers(numbers))
        except (ValueError, RuntimeError):  # no numbers, or integers of more than 64 bits
            self.fail(f"{name}: give a number, or several with commas between, not {text!r}", param, ctx)
        return name, row if len(numbers) == 1 else row[None]


def _parse_numbers(texts: Sequence[str]) -> list[int] | list[float]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        return [float(text) for text in texts]


condition_option = click.option(
    "--condition",
    "condition",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Tell the network this: numbers, by commas; repeatable.",
)
label_option = click.option("--label", metavar="CLASS", help="Tell it a class of the data, by number or name.")
labels_option = click.option(
    "--labels",
    metavar="[NAME]",
    is_flag=False,
    flag_value=LABEL,
    help="Tell it the labels of DATA.  [default: as label]",
)


def of_label(run: Run, label: str | None) -> Assignments:
    """Return the condition on a class, as the first argument of the network beside state and time.

    Raises:
        ValueError: for what is no class of the run's data.
    """
    if label is None:
        return ()
    network = run.model.network
    classes = network.classes if isinstance(network, DiffusersNetwork) else run.model.told.classes
    if classes is None:
        raise ValueError(
            "the run's network knows no classes: sdediff train --conditional makes one that does; arguments of a "
            "network of your own are told by --condition NAME=VALUE"
        )
    names, arguments = class_names(run.folder), _arguments(run)
    first = arguments.named[0] if arguments is not None and arguments.named else LABEL
    number = names.index(label) if label in names else int(label) if label.isdecimal() else classes
    if number >= classes:
        named = f", or {', '.join(names)}" if names else ""
        raise ValueError(f"the run's classes are 0 to {classes - 1}{named}; there is no class {label!r}")
    return ((first, torch.tensor([number])),)


def with_condition(run: Run, condition: Assignments) -> Run:
    """Condition the run's model on the same values for all items.

    Raises:
        ValueError: if the network takes no such arguments, or needs others.
    """
    named = dict(condition)
    check_names(run, named)
    return run.with_model(run.model.given(named))._replace(condition=named) if named else run


def with_labels(run: Run, condition: Assignments, labels: str | None, data: DataItems) -> Run:
    """Condition the run's model on values for all items and, optionally, on labels.

    Raises:
        ValueError: if the data have no labels, or as :func:`with_condition`.
    """
    named = dict(condition)
    if labels is not None:
        if data.labels is None:
            raise ValueError(f"{data.name}: the data have no labels for --labels {labels}")
        arguments = _arguments(run)
        only = arguments is not None and len(arguments.named) == 1 and not arguments.others
        named[arguments.named[0] if arguments is not None and only and labels == LABEL else labels] = data.labels
    return with_condition(run, tuple(named.items()))


def check_names(run: Run, names: Collection[str]) -> None:
    """Refuse arguments that the network does not take, and missing ones that it needs.

    Raises:
        ValueError: naming them.
    """
    arguments = _arguments(run)
    if arguments is None:
        return
    takes = f"besides the state and the time it takes {', '.join(arguments.named) or 'nothing'}"
    unknown = [name for name in names if name not in arguments.named]
    if unknown and not arguments.others:
        raise ValueError(f"the run's network takes no {', '.join(unknown)}: {takes}")
    network = run.model.network
    if isinstance(network, DiffusersNetwork) and network.classes is not None and "class_labels" not in names:
        raise ValueError(
            f"the run's network has to be told a class, 0 to {network.classes - 1}: --label CLASS, or --labels where "
            "the data have them"
        )
    missing = [name for name in arguments.needed if name not in names]
    if missing:
        raise ValueError(f"the run's network has to be told {', '.join(missing)}: --condition {missing[0]}=VALUE")


class _Arguments(NamedTuple):
    """The arguments of a network besides state and time: their names, those without a default, whether any other."""

    named: list[str]
    needed: list[str]
    others: bool


def _arguments(run: Run) -> _Arguments | None:
    """Return the arguments of the run's network; ``None`` for a callable that does not say."""
    network = run.model.network
    while isinstance(network, Levelled):  # which passes everything on
        network = network.network
    try:
        signature = inspect.signature(network.forward if isinstance(network, nn.Module) else network)
    except (TypeError, ValueError):  # a callable without a signature
        return None
    kinds, parameters = inspect.Parameter, list(signature.parameters.values())
    named = [p for p in parameters[2:] if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is kinds.empty]
    return _Arguments([p.name for p in named], needed, any(p.kind is kinds.VAR_KEYWORD for p in parameters))
