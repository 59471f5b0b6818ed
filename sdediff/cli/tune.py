"""``sdediff tune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sdediff import tuning
from sdediff.cli.auto import told
from sdediff.cli.console import Console, columns
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.group import FAILED, INTERRUPTED
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.options import COUNT, run_option, seed_option

EXAMPLES = """\
  sdediff tune                                   # the most recent run, 10 steps
  sdediff tune --run runs/digits --steps 8 --steps 10 --steps 20
  sdediff sample --solver tuned --steps 10       # use the tuned solver"""


@click.command("tune", cls=DescribedCommand, examples=EXAMPLES)
@run_option
@click.option(
    "--steps",
    "counts",
    type=COUNT,
    multiple=True,
    default=(10,),
    show_default=True,
    help="Steps of the solver; may be repeated.",
)
@click.option("--trajectories", type=COUNT, default=1024, show_default=True, help="Accurate solves to learn from.")
@click.option("--held-out", type=COUNT, default=256, show_default=True, help="Further accurate solves for evaluation.")
@click.option("--iterations", type=COUNT, default=300, show_default=True, help="Iterations of the optimiser.")
@click.option("--batch-size", type=COUNT, default=64, show_default=True, help="Trajectories an iteration.")
@seed_option
@guidance_options
@frame_options()
def command(
    frame: CommandFrame,
    counts: tuple[int, ...],
    trajectories: int,
    held_out: int,
    iterations: int,
    batch_size: int,
    seed: int,
    guidance: Guidance,
) -> None:
    """Learn a solver for a run and a number of steps: the same cost, a smaller error.

    Nodes and weights of a multistep solver are learned from accurate trajectories of the run's model and evaluated on
    held-out ones. A solver with a smaller error than "ode" is saved in the run as tuned.json, for `sdediff sample
    --solver tuned`; any other is discarded.
    """
    console, run = frame.console, frame.open()
    model, guiding = guidance.of(run, console)
    with console.bar("accurate trajectories", "batch") as report:
        paths = tuning.pilot(model, trajectories=trajectories, held_out=held_out, seed=seed, progress=report)
    results: dict[int, tuning.Tuning] = {}
    settings: dict[str, Any] = {"iterations": iterations, "batch_size": batch_size, "seed": seed}
    wanted = tuple(dict.fromkeys(counts))
    try:
        for steps in wanted:
            with console.bar(f"{steps} steps", "iteration") as report:
                result = tuning.tune(model, steps, trajectories=paths, progress=report, **settings)
            if result.gain < 1.0:
                tuning.save(run.folder, run.model, [result], told(run, guiding))
            results[steps] = result
    except KeyboardInterrupt:
        if not results:
            raise
    _print_tunings(console, run.folder, results)
    if len(results) < len(wanted):
        console.note(f"stopped: no solver of {', '.join(map(str, wanted[len(results) :]))} steps was learned")
        raise SystemExit(INTERRUPTED)
    if not any(result.gain < 1.0 for result in results.values()):
        raise SystemExit(FAILED)


def _print_tunings(console: Console, folder: Path, results: Mapping[int, tuning.Tuning]) -> None:
    """Print the errors on the held-out trajectories before and after, and which solvers were saved."""
    rows = [["steps", 'RMS error, "ode"', "tuned", 'median error, "ode"', "tuned", "seconds", ""]]
    for steps, result in results.items():
        errors = (result.before.rms, result.after.rms, result.before.median, result.after.median)
        remark = "kept" if result.gain < 1.0 else 'no better than "ode": not kept'
        rows.append([str(steps), *(f"{value:.2e}" for value in errors), f"{result.seconds:.0f}", remark])
    console.say(columns(rows))
    kept = [steps for steps, result in results.items() if result.gain < 1.0]
    if kept:
        console.say(f"  solvers  {folder / tuning.FILE}")
        console.say(f"  next     sdediff sample --run {folder} --solver tuned --steps {kept[-1]}")
    console.result(
        run=folder,
        file=folder / tuning.FILE,
        solvers={
            str(steps): {
                "before": result.before._asdict(),
                "after": result.after._asdict(),
                "seconds": result.seconds,
                "kept": result.gain < 1.0,
            }
            for steps, result in results.items()
        },
    )
