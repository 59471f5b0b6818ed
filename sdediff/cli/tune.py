"""``sdediff tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sdediff import tuning
from sdediff.cli.conditions import Told, condition_option, tell
from sdediff.cli.console import Console, columns
from sdediff.cli.group import FAILED, INTERRUPTED
from sdediff.cli.options import COUNT, device_option, json_option, run_option, seed_option
from sdediff.cli.runs import open_run

EPILOG = """\b
Examples:
  sdediff tune                                   # the most recent run, 10 steps
  sdediff tune --run runs/digits --steps 8 --steps 10 --steps 20
  sdediff sample --solver tuned --steps 10       # what it is for
"""


@click.command("tune", epilog=EPILOG)
@run_option
@click.option("--steps", "counts", type=COUNT, multiple=True, default=(10,), show_default=True, help="May be repeated.")
@click.option("--trajectories", type=COUNT, default=1024, show_default=True, help="Accurate solves to learn from.")
@click.option("--held-out", type=COUNT, default=256, show_default=True, help="More of them, to judge by.")
@click.option("--iterations", type=COUNT, default=300, show_default=True, help="Of the optimiser.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True, help="Trajectories an iteration.")
@seed_option
@condition_option
@device_option
@json_option
def command(
    run: Path | None,
    counts: tuple[int, ...],
    trajectories: int,
    held_out: int,
    iterations: int,
    batch_size: int,
    seed: int,
    told: Told,
    device: str,
    as_json: bool,
) -> None:
    """Learn a solver for a run and a number of steps: the same cost, a smaller error.

    Nodes and weights of a multistep solver are learned from accurate trajectories of the run's model and judged on
    others. A solver that does better than "ode" there goes to tuned.json in the run, where `sdediff sample --solver
    tuned` finds it; one that does not is not kept.
    """
    console = Console(as_json)
    opened = tell(open_run(run, device, console), told)
    with console.bar("accurate trajectories", "batch") as report:
        paths = tuning.pilot(opened.model, trajectories=trajectories, held_out=held_out, seed=seed, progress=report)
    results: dict[int, tuning.Tuning] = {}
    settings: dict[str, Any] = {"iterations": iterations, "batch_size": batch_size, "seed": seed}
    wanted = tuple(dict.fromkeys(counts))
    try:
        for steps in wanted:
            with console.bar(f"{steps} steps", "iteration") as report:
                found = tuning.tune(opened.model, steps, trajectories=paths, progress=report, **settings)
            if found.gain < 1.0:
                tuning.save(opened.folder, opened.model, [found])
            results[steps] = found
    except KeyboardInterrupt:
        if not results:
            raise
    _report(console, opened.folder, results)
    if len(results) < len(wanted):
        console.note(f"stopped: no solver of {', '.join(map(str, wanted[len(results) :]))} steps was learned")
        raise SystemExit(INTERRUPTED)
    if not any(found.gain < 1.0 for found in results.values()):
        raise SystemExit(FAILED)


def _report(console: Console, folder: Path, results: dict[int, tuning.Tuning]) -> None:
    """Errors on the held-out trajectories before and after, and what was kept."""
    rows = [["steps", 'RMS error, "ode"', "tuned", 'median error, "ode"', "tuned", "seconds", ""]]
    for steps, found in results.items():
        pairs = (found.before.rms, found.after.rms, found.before.median, found.after.median)
        remark = "kept" if found.gain < 1.0 else 'no better than "ode": not kept'
        rows.append([str(steps), *(f"{value:.2e}" for value in pairs), f"{found.seconds:.0f}", remark])
    console.say(columns(rows))
    kept = [steps for steps, found in results.items() if found.gain < 1.0]
    if kept:
        console.say(f"  solvers  {folder / tuning.FILE}")
        console.say(f"  next     sdediff sample --run {folder} --solver tuned --steps {kept[-1]}")
    console.result(
        run=folder,
        file=folder / tuning.FILE,
        solvers={
            str(steps): {
                "before": found.before._asdict(),
                "after": found.after._asdict(),
                "seconds": found.seconds,
                "kept": found.gain < 1.0,
            }
            for steps, found in results.items()
        },
    )
