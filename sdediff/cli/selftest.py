"""``sdediff selftest``."""

from __future__ import annotations

from pathlib import Path

import click

from sdediff.cli.console import Console
from sdediff.cli.group import FAILED
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import PATH, TableName, force_option, import_typed, json_option, seed_option
from sdediff.cli.output import plan
from sdediff.config import PROCESSES
from sdediff.selftest import CHECKS, ROLES, SelfTest, run

EXAMPLES = """\
  sdediff selftest                    # this machine: two minutes
  sdediff selftest --check orders --plot selftest.png
  sdediff selftest --target mine:heun --role sample
  sdediff selftest --target mine:log_prob --role likelihood --process ve"""


@click.command("selftest", cls=DescribedCommand, examples=EXAMPLES)
@click.option("--target", metavar="MODULE:FUNCTION", help="Somebody else's function, which is imported and called.")
@click.option("--role", type=TableName(ROLES, "role"), help=f"What the target is: {', '.join(ROLES)}.")
@click.option(
    "--check",
    "checks",
    multiple=True,
    type=TableName(CHECKS, "check"),
    help=f"Only this one, and may be repeated: {', '.join(CHECKS)}.",
)
@click.option(
    "--process", type=TableName(PROCESSES, "process"), default="vp", show_default=True, help="The forward process."
)
@seed_option
@click.option("--plot", type=PATH, help="Write a picture of every figure between its limits, a PNG.")
@force_option
@json_option
def command(
    target: str | None,
    role: str | None,
    checks: tuple[str, ...],
    process: str,
    seed: int,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> int:
    """Measure this installation on problems with exact answers.

    Orders, laws of samples, likelihoods, bounds, round trips, batches and devices, each figure beside what it may be.
    With --target the same problems are put to a sampler, likelihood or bound that is not ours. Exit status 1 if a
    figure is not allowed.
    """
    console = Console(as_json)
    function = None if target is None else import_typed(target, "target", "function")
    picture = None if plot is None else plan(plot, Path(), "selftest", (".png",), force=force)[".png"]
    with console.bar("selftest", "case") as report:
        result = run(function, role, checks=checks or None, sde=PROCESSES[process](), seed=seed, progress=report)
    if picture is not None:
        _draw_verdicts(result, picture)
    console.say(f"{result}" + (f"\n  picture  {picture}" if picture is not None else ""))
    console.result(picture=picture, **result.to_dict())
    return 0 if result.passed else FAILED


def _draw_verdicts(result: SelfTest, path: Path) -> None:
    from sdediff.plots.verdicts import Verdict, verdicts

    groups: dict[str, list[Verdict]] = {}
    for row in result.rows:
        groups.setdefault(row.check, []).append(Verdict(row.place, row.passed, f"{row.subject}: {row.figure}"))
    verdicts(groups, path)
