"""``sdediff sample``."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from functools import partial
from typing import Any

import click
from torch import Tensor

from sdediff.cli import tables
from sdediff.cli.auto import Task, choose_solvers, load_tuned, note_setting
from sdediff.cli.frame import CommandFrame, frame_options
from sdediff.cli.guidance import Guidance, guidance_options
from sdediff.cli.help import DescribedCommand
from sdediff.cli.items import write_samples
from sdediff.cli.options import COUNT, SolverChoice, batch_size_option, run_option, seed_option, solver_options
from sdediff.cli.runs import Run
from sdediff.denoiser import Denoiser
from sdediff.generation import sample
from sdediff.interop import sample_bounds
from sdediff.likelihood.flow.of_samples import sampling_path
from sdediff.numerics import error_of_mean
from sdediff.samplers import AUTO, SAMPLERS, Sampler
from sdediff.samplers.ancestral import Ancestral
from sdediff.sampling import node_times

EXAMPLES = """\
  sdediff sample                             # 64, from the most recent run
  sdediff sample --solver ode --steps 10 -n 100
  sdediff sample --solver dopri5 --rtol 1e-6 --seed 7 --out seven.png
  sdediff sample --solver sde --steps 200 --json
  sdediff sample --solver auto --steps 10    # chosen for the run, kept in it
  sdediff sample --solver tuned --steps 10   # after sdediff tune
  sdediff sample --log-prob -n 1000          # and the log-density of each
  sdediff sample --label 3 --guidance 2      # of sdediff train --conditional"""

TUNED = "tuned"
LEARNED: dict[str, Sampler] = {"ancestral-learned": Ancestral("learned")}
"""Solvers for models with a learned variance."""
SAMPLE_SOLVERS: Mapping[str, Any] = ChainMap({**LEARNED, TUNED: None, AUTO: None}, SAMPLERS)


@click.command(
    "sample", cls=DescribedCommand, examples=EXAMPLES, notes=(partial(tables.solvers_by_use, SAMPLE_SOLVERS),)
)
@run_option
@solver_options(SAMPLE_SOLVERS)
@click.option("-n", "--number", type=COUNT, default=64, show_default=True, help="Number of samples.")
@seed_option
@click.option("--log-prob", is_flag=True, help="Also the log-density of every sample, from the same solve.")
@click.option(
    "--clip/--no-clip",
    default=True,
    show_default=True,
    help="Clip or threshold where the scheduler of a diffusers folder does; --log-prob never does.",
)
@guidance_options
@batch_size_option(256)
@frame_options("Folder, or name of the two files.  [default: samples/ in the run]")
def command(
    frame: CommandFrame,
    solver: SolverChoice,
    number: int,
    seed: int,
    log_prob: bool,
    clip: bool,
    guidance: Guidance,
    batch_size: int,
) -> None:
    """Draw samples from a trained run: a picture (.png) and the numbers (.npz).

    Sample k is a function of the seed and k alone, whatever the number of samples and the batch size. The .npz holds
    `samples`, continuous ones in the units of the data, and, for integer data, `levels`; with --log-prob, `log_prob` in
    nats, of the data blurred by the noise of t_min: by a deterministic solver with one evaluation a step, 40 steps by
    default.
    """
    name = str(solver.name)
    sampler = solver.resolve("ode" if name == TUNED else LEARNED.get(name, name))
    if name == TUNED and (sampler.adaptive or solver.grid is not None):
        raise ValueError("solver 'tuned' has its own nodes: give it --steps alone, no --grid, --rtol or --atol")
    if name == AUTO and log_prob:
        raise ValueError(
            "--log-prob cannot be had with solver 'auto', which is chosen for solves to the data and not to the noise "
            "of t_min: give it a deterministic solver of one forward a step, as --solver ode"
        )
    run = frame.open()
    if log_prob and run.stage is not None:
        raise ValueError("--log-prob: the density of data of a model in two stages is bounded, by `sdediff likelihood`")
    if name == TUNED:
        sampler = load_tuned(run, solver.steps)
    steps = _count_steps(sampler, run, solver, log_prob)
    files = frame.plan(run.folder / "samples", f"{name}-seed{seed}", ".png", ".npz")
    model, clipping = _clipped_model(run, frame, clip, log_prob)
    model, guiding = guidance.of(run, frame.console, model)
    chosen: list[dict[str, Any]] = []
    if name == TUNED:
        note_setting(frame.console, run, solver.steps, guiding)
    if name == AUTO:
        wrappers = "; ".join(words for words in (clipping, guiding) if words)
        task = Task.of(run, model, wrappers or None)
        sampler, chosen = choose_solvers(frame.console, task, solver.steps, (model.sde.t_max, 0.0))
    with frame.measure(model, "sampling") as measured:
        options: dict[str, Any] = {"steps": solver.steps, "grid": solver.grid, "seed": seed, "batch_size": batch_size}
        x, densities = _draw_samples(
            model, (number, *run.state_shape), sampler, log_prob, progress=measured.report, **options
        )
        x = run.data(x, batch_size)
    nfe = measured.items / number
    others = {} if densities is None else {"log_prob": densities.numpy()}
    arrays = write_samples(x, run, files, seed=seed, solver=name, nfe=nfe, **others)
    kind = "adaptive" if steps is None else f"{steps} steps"
    text = f"{number} samples, solver {name}, {kind}, NFE {nfe:g}, {measured.seconds:.2f} s"
    if densities is not None:
        error = f" +- {float(error_of_mean(densities)):.3f}" if number > 1 else ""
        text += f"\n  log p    {float(densities.mean()):.3f}{error} nats, the mean"
    frame.finish(
        run,
        text,
        files,
        arrays,
        solver=name,
        steps=steps,
        nfe=nfe,
        forwards=measured.calls,
        seconds=measured.seconds,
        seed=seed,
        number=number,
        clipping=clipping,
        guidance=guiding,
        chosen=chosen,
        log_prob=None if densities is None else float(densities.mean()),
    )


def _clipped_model(run: Run, frame: CommandFrame, clip: bool, log_prob: bool) -> tuple[Denoiser, str | None]:
    """Return the model as its scheduler of diffusers samples, and what that does, in a remark too."""
    bounds = sample_bounds(run.model)
    if not (clip and bounds.words):
        return run.model, None
    if log_prob:
        frame.console.note(f"scheduler: {bounds.words}, but not here: densities are those of the network's own flow")
        return run.model, None
    frame.console.note(f"scheduler: {bounds.words} at every step; --no-clip leaves it out")
    return bounds.of(run.model), bounds.words


def _draw_samples(
    model: Denoiser, shape: tuple[int, ...], sampler: Sampler, log_prob: bool, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Return samples and, optionally, their log-densities, on the CPU."""
    if not log_prob:
        return sample(model, shape, sampler, **options).cpu(), None
    x, densities = sample(model, shape, sampler, return_log_prob=True, **options)
    return x.cpu(), densities.cpu()


def _count_steps(sampler: Sampler, run: Run, solver: SolverChoice, log_prob: bool) -> int | None:
    """Return the number of steps of the solve, ``None`` if it is adaptive."""
    if log_prob:
        return len(sampling_path(run.model, sampler, solver.steps, solver.grid).levels) - 1
    if sampler.adaptive:
        return None
    return len(node_times(sampler, run.model, solver.steps, solver.grid, (run.model.sde.t_max, 0.0))) - 1
