"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from sdediff.cli.group import choices
from sdediff.execution import AUTOCASTS
from sdediff.tables import FilteredTable, nearest

if TYPE_CHECKING:
    from torch import nn

    from sdediff.samplers import Sampler

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])
Decorator = Callable[[AnyCommand], AnyCommand]

POSITIVE = click.FloatRange(min=0.0, min_open=True)
COUNT = click.IntRange(min=1)
PATH = click.Path(path_type=Path)


class TableName(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """A name of one of the library's tables.

    Args:
        table: the table.
        what: word for an entry of the table.
    """

    name = "name"

    def __init__(self, table: Mapping[str, Any], what: str) -> None:
        self.table, self.what = table, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name if it is in the table."""
        if value not in self.table:
            if isinstance(self.table, FilteredTable) and value in self.table.whole:
                self.fail(f"the {self.what} {value!r} is not for this command; {choices(self.table)}", param, ctx)
            self.fail(
                f"unknown {self.what} {value!r}{nearest(str(value), self.table)}; {choices(self.table)}", param, ctx
            )
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Return the names with a prefix."""
        return [click.shell_completion.CompletionItem(name) for name in self.table if name.startswith(incomplete)]


def together(*options: Decorator[Any]) -> Decorator[Any]:
    """Combine several options into one decorator, in the order of the help."""

    def apply(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


class SolverChoice(NamedTuple):
    """A solver and its options, as given on the command line."""

    name: str | None
    steps: int | None
    rtol: float | None
    atol: float | None
    grid: str | None

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return {key: value for key, value in self._asdict().items() if key != "name" and value is not None}

    def resolve(self, solver: str | Sampler) -> Sampler:
        """Return the sampler of a solver with these options.

        Raises:
            ValueError: if the options do not fit together, or not to the solver.
        """
        from sdediff.sampling import resolve

        return resolve(solver, **self.options)


def solver_options(table: Mapping[str, Any], default: str | None = "ode", otherwise: str = "") -> Decorator[Any]:
    """Add ``--solver --steps --rtol --atol --grid``; the command gets them as ``solver``, a :class:`SolverChoice`.

    Args:
        table: the solvers that may be chosen.
        default: name of the default solver.
        otherwise: help text of ``--solver`` about a default of ``None``.
    """
    from sdediff.grids import GRIDS

    options = together(
        click.option(
            "--solver",
            type=TableName(table, "solver"),
            default=default,
            show_default=default is not None,
            help="One of the solvers below." + otherwise,
        ),
        click.option("--steps", type=COUNT, help="Steps of a fixed grid.  [default: the solver's own]"),
        click.option("--rtol", type=POSITIVE, help="Relative tolerance: adaptive, instead of steps."),
        click.option("--atol", type=POSITIVE, help="Absolute tolerance; one alone stands for both."),
        click.option(
            "--grid",
            type=TableName(GRIDS, "grid"),
            help="Spacing of the steps, of `sdediff info --list`.",
        ),
    )

    def apply(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def with_choice(*, solver: str | None, steps: Any, rtol: Any, atol: Any, grid: Any, **values: Any) -> Any:
            return command(solver=SolverChoice(solver, steps, rtol, atol, grid), **values)

        return options(with_choice)

    return apply


def batch_size_option(default: int) -> Decorator[Any]:
    """Add ``--batch-size``."""
    return click.option(
        "--batch-size", type=COUNT, default=default, show_default=True, help="Items the network sees at a time."
    )


_NETWORK, _DOWNLOAD, _READING = "sdediff.network", "sdediff.download", "sdediff.reading"
"""Places in a command's context, where what opens runs and reads data finds them."""


def _import_network(context: click.Context, _: click.Parameter, path: str | None) -> None:
    """Keep the class that is named in the command's context."""
    if path is not None:
        context.meta[_NETWORK] = import_typed(path)


def import_typed(path: str, what: str = "network", kind: str = "Class") -> Callable[..., Any]:
    """Import a callable whose place was typed on the command line, from the working directory too.

    Raises:
        ValueError: if there is no such thing; see :func:`~sdediff.foreign.imported`.
    """
    from sdediff.foreign import imported

    if "" not in sys.path:
        sys.path.insert(0, "")
    return imported(path, what, kind)


def given_network() -> Callable[..., nn.Module] | None:
    """Return the class that ``--network`` names in the present command, if it does."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_NETWORK)


network_option = click.option(
    "--network",
    metavar="MODULE:CLASS",
    expose_value=False,
    callback=_import_network,
    help="Import a network of your own, a class.",
)


def _download(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    context.meta[_DOWNLOAD] = wanted


def may_download() -> bool:
    """Return whether the present command was told ``--download``."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_DOWNLOAD))


def assignments(settings: Sequence[str]) -> dict[str, str]:
    """Parse ``section.key=value`` of each ``--set``."""
    for setting in settings:
        if "=" not in setting:
            raise ValueError(f"--set wants SECTION.KEY=VALUE, not {setting!r}")
    return {key.strip(): value.strip() for key, _, value in (setting.partition("=") for setting in settings)}


def _keep_reading(context: click.Context, _: click.Parameter, settings: Sequence[str]) -> None:
    context.meta[_READING] = assignments(settings)


def given_reading() -> dict[str, str]:
    """Return how the present command was told to read DATA, ``data.key`` to values."""
    context = click.get_current_context(silent=True)
    return {} if context is None else context.meta.get(_READING, {})


run_option = together(
    click.option("--run", type=PATH, help="Folder of the run.  [default: latest in runs/]"),
    click.option(
        "--download",
        is_flag=True,
        expose_value=False,
        callback=_download,
        help="Fetch --run owner/name from the Hugging Face hub.",
    ),
    network_option,
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all randomness.")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps or auto.")
execution_options = together(
    click.option("--autocast", type=TableName(AUTOCASTS, "precision"), help="Precision of the network: bf16 or fp16."),
    click.option("--compile", is_flag=True, help="Compile the network: minutes, at first."),
    click.option("--channels-last", is_flag=True, help="Lay images out with their channels last."),
    click.option("--tf32/--no-tf32", default=None, help="TF32 on CUDA, which likelihoods leave off."),
)
force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, text on stderr.")
reading_option = click.option(
    "--set",
    multiple=True,
    metavar="data.KEY=VALUE",
    expose_value=False,
    callback=_keep_reading,
    help="How DATA are read, as by train, where not as the run's.",
)
data_argument = together(click.argument("data", required=False), reading_option)
number_option = click.option("-n", "--number", type=COUNT, help="Only the first N items.")
