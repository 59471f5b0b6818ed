"""``sdediff sample``."""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from sdediff import tuning
from sdediff.cli import tables
from sdediff.cli.conditions import Told, condition_option, tell
from sdediff.cli.console import Console
from sdediff.cli.items import write_samples
from sdediff.cli.options import (
    COUNT,
    PATH,
    batch_size_option,
    device_option,
    force_option,
    json_option,
    run_option,
    seed_option,
    solver_options,
)
from sdediff.cli.output import plan
from sdediff.cli.runs import Run, counting, open_run
from sdediff.generation import sample
from sdediff.likelihood.flow.of_samples import sampling_path
from sdediff.samplers import SAMPLERS, Sampler
from sdediff.samplers.ancestral import Ancestral
from sdediff.sampling import node_times, resolve

EXAMPLES = """\
  sdediff sample                                 # 64, from the most recent run
  sdediff sample --solver ode --steps 10 -n 100
  sdediff sample --solver dopri5 --rtol 1e-6 --seed 7 --out seven.png
  sdediff sample --solver sde --steps 200 --json
  sdediff sample --solver tuned --steps 10       # after sdediff tune
  sdediff sample --log-prob -n 1000              # and the log-density of each
  sdediff sample --solver ancestral-learned      # a checkpoint with a learned variance"""

TUNED = "tuned"
SPECIAL: dict[str, Sampler] = {"ancestral-learned": Ancestral("learned")}
"""Solvers for some models alone: those that have learned the variance of their steps."""
NAMES: Mapping[str, Any] = ChainMap({**SPECIAL, TUNED: None}, SAMPLERS)


@click.command("sample", epilog=tables.as_epilog(EXAMPLES, tables.solvers()))
@run_option
@solver_options(NAMES)
@click.option("-n", "--number", type=COUNT, default=64, show_default=True, help="How many.")
@seed_option
@click.option("--log-prob", is_flag=True, help="Also the log-density of every sample, found along the way.")
@batch_size_option(256)
@condition_option
@device_option
@click.option("--out", type=PATH, help="Folder, or name of the two files.  [default: samples/ in the run]")
@force_option
@json_option
def command(
    run: Path | None,
    solver: str,
    steps: int | None,
    rtol: float | None,
    atol: float | None,
    grid: str | None,
    number: int,
    seed: int,
    log_prob: bool,
    batch_size: int,
    told: Told,
    device: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Draw samples from a trained run: a picture (.png) and the numbers (.npz).

    Sample k is a function of the seed and k alone, whatever the number of samples and the batch size. The .npz holds
    `samples`, continuous ones in the units of the data, and, for integer data, `levels`; with --log-prob, `log_prob` in
    nats, of the data blurred by the noise of t_min: by a deterministic solver of one forward a step, 40 of them by
    default.
    """
    console = Console(as_json)
    default = "ode" if solver == TUNED else SPECIAL.get(solver, solver)
    sampler = resolve(default, steps=steps, rtol=rtol, atol=atol, grid=grid)
    if solver == TUNED and (sampler.adaptive or grid is not None):
        raise ValueError("solver 'tuned' has its own nodes: give it --steps alone, no --grid, --rtol or --atol")
    opened = tell(open_run(run, device, console), told)
    if solver == TUNED:
        sampler = _tuned(opened, steps)
    intervals = _intervals(sampler, opened, steps, grid, log_prob)
    files = plan(out, opened.folder / "samples", f"{solver}-seed{seed}", (".png", ".npz"), force=force)
    start = time.perf_counter()
    with console.bar("sampling") as report, counting(opened.model) as count:
        options: dict[str, Any] = {"steps": steps, "grid": grid, "seed": seed, "batch_size": batch_size}
        x, densities = _draw(opened, (number, *opened.info.shape), sampler, log_prob, progress=report, **options)
    seconds = time.perf_counter() - start
    nfe = count.items / number
    also = {} if densities is None else {"log_prob": densities.numpy()}
    arrays = write_samples(x, opened, files, seed=seed, solver=solver, nfe=nfe, **also)
    console.say(
        f"{number} samples, solver {solver}, {'adaptive' if intervals is None else f'{intervals} steps'}, "
        f"NFE {nfe:g}, {seconds:.2f} s"
    )
    if densities is not None:
        console.say(f"  log p    {_mean(densities)} nats, the mean")
    console.say(f"  picture  {files['.png']}\n  numbers  {files['.npz']}  ({arrays})")
    console.result(
        run=opened.folder,
        solver=solver,
        steps=intervals,
        nfe=nfe,
        forwards=count.calls,
        seconds=seconds,
        seed=seed,
        number=number,
        log_prob=None if densities is None else float(densities.mean()),
        picture=files[".png"],
        numbers=files[".npz"],
    )


def _tuned(run: Run, steps: int | None) -> Sampler:
    """The run's tuned solver.

    Raises:
        ValueError: if there is none that fits.
    """
    try:
        return tuning.load(run.folder, run.model, steps)
    except (FileNotFoundError, ValueError) as error:
        wanted = "" if steps is None else f" --steps {steps}"
        raise ValueError(f"{error}; `sdediff tune --run {run.folder}{wanted}` makes one") from None


def _draw(
    run: Run, shape: tuple[int, ...], sampler: Sampler, log_prob: bool, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Samples and, if wanted, their log-densities, on the CPU."""
    if not log_prob:
        return sample(run.model, shape, sampler, **options).cpu(), None
    x, densities = sample(run.model, shape, sampler, return_log_prob=True, **options)
    return x.cpu(), densities.cpu()


def _mean(densities: Tensor) -> str:
    """Of the samples' log-densities, with its standard error where there is one."""
    error = f" +- {float(densities.std()) / len(densities) ** 0.5:.3f}" if len(densities) > 1 else ""
    return f"{float(densities.mean()):.3f}{error}"


def _intervals(sampler: Sampler, run: Run, steps: int | None, grid: str | None, log_prob: bool) -> int | None:
    """Steps that the solve will take, ``None`` where it chooses them itself."""
    if log_prob:
        return len(sampling_path(run.model, sampler, steps, grid).levels) - 1
    if sampler.adaptive:
        return None
    return len(node_times(sampler, run.model, steps, grid, (run.model.sde.t_max, 0.0))) - 1
