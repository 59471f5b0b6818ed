"""Tuned solvers against every peer on any grid, on the exact problems.

Tunes at 5, 8, 10 and 20 steps, from pilot trajectories of its own, and measures on the 2,048 starts of
``experiments/peers`` at t = 1e-3. A ratio is our error over the best peer's, the best by that metric of all peers with
all their options on all grids, from the cache that ``python -m experiments.peers.run`` leaves.

    python -m experiments.peers.run
    python -m experiments.tuning
    python -m experiments.tuning --problem ring --steps 10 --starts 256     # under a minute

Expected ratios, RMS / median, at 5, 8, 10, 20 steps: digits-mixture 0.42 / 0.20, 0.75 / 0.32, 0.90 / 0.37, 0.24 / 0.85;
smoothed-digits 0.62 / 0.09, 0.72 / 0.39, 0.76 / 0.29, 1.06 / 0.78; ring 0.27 / 0.10, 0.22 / 0.17, 0.22 / 0.14,
0.27 / 0.28. Geometric means 0.46 and 0.26, of both 0.35. One seed.
The RMS at 10 steps on digits-mixture hangs on a handful of the 2,048 starts that lie between two modes.
Cost: about half an hour on one busy core.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import click
import torch
from tqdm import tqdm

import sdediff
from experiments.peers import measure
from experiments.peers.report import geometric_mean
from experiments.problems import PROBLEMS
from sdediff import tuning

CHOSEN = ("digits-mixture", "smoothed-digits", "ring")


def best_peer(cache: Path, name: str, starts: int, budget: int) -> tuple[float, float]:
    """The peers' lowest RMS and lowest median at a budget, from the cache."""
    known = json.loads((cache / f"peers-{name}-{starts}.json").read_text())
    found = [errors for key, errors in known.items() if key.rpartition("|")[2] == str(budget)]
    return min(errors[0] for errors in found), min(errors[1] for errors in found)


@click.command()
@click.option("--problem", "names", multiple=True, type=click.Choice(list(PROBLEMS)), default=CHOSEN)
@click.option("--run", "trained", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A trained run.")
@click.option("--steps", "counts", multiple=True, type=int, default=(5, 8, 10, 20))
@click.option("--trajectories", default=4096, show_default=True)
@click.option("--iterations", default=400, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--starts", default=2048, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "sdediff-peers")
@click.option("--threads", default=1, show_default=True)
def main(
    names: tuple[str, ...],
    trained: Path | None,
    counts: tuple[int, ...],
    trajectories: int,
    iterations: int,
    batch_size: int,
    starts: int,
    cache: Path,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    ratios: list[tuple[float, float]] = []
    print(
        f"{'RMS / median of':16} {'N':>3}  {'peers, any grid':>19}  {'tuned':>19}  {'ratio':>14}  seconds", flush=True
    )
    for name in names if trained is None else (None,):
        problem = measure.trained(trained, starts, cache) if name is None else measure.load(name, starts, cache)
        paths = tuning.pilot(problem.model, trajectories=trajectories, t_to=problem.t_to, seed=1)
        for steps in counts:
            with tqdm(total=iterations, leave=False, disable=None) as bar:
                found = tuning.tune(
                    problem.model,
                    steps,
                    trajectories=paths,
                    iterations=iterations,
                    batch_size=batch_size,
                    progress=lambda done, _, bar=bar: bar.update(done - bar.n),
                )
            solve = partial(sdediff.solve, problem.model, solver=found.solver, t_to=problem.t_to)
            x = torch.cat([solve(part).x for part in problem.x.split(measure.CHUNK)])
            ours = measure.Errors.of(x, problem.reference)
            peers = best_peer(cache, problem.name, starts, steps)
            ratios.append((ours.rms / peers[0], ours.median / peers[1]))
            print(
                f"{problem.name:16} {steps:3}  {peers[0]:9.2e} {peers[1]:9.2e}  {ours.rms:9.2e} {ours.median:9.2e}  "
                f"{ratios[-1][0]:7.2f} {ratios[-1][1]:6.2f}  {found.seconds:7.0f}",
                flush=True,
            )
    print(f"geometric mean of the ratios: RMS {geometric_mean(r for r, _ in ratios):.3f}, ", end="")
    print(f"median {geometric_mean(r for _, r in ratios):.3f}")


if __name__ == "__main__":
    main()
