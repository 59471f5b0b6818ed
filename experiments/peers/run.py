"""Deterministic solvers of diffusers, k-diffusion, azula and sdediff at the same number of forwards.

Same starts (N(0, I) at ``t_max``), same exact denoiser in float64, same last level (t = 1e-3), exactly as many forwards
(two-stage methods at an odd budget spend one less); the error is the distance to the exact flow's end, found by dopri5
at 1e-10. A peer "as shipped" may use all its options and all its own grids, and the best is taken for each problem,
budget and metric separately; "any grid" adds uniform t^(1/2), uniform t^(1/3) and our default's nodes. All peers run on
256 starts; those within a factor 2 of the best by either metric run on all.

    pip install -e ".[peers]" && pip install --no-deps k-diffusion
    python -m experiments.peers.run                    # three exact problems, 2,048 starts
    python -m experiments.peers.run --ours             # after a change of ours: peers from the cache
    python -m experiments.peers.run --run runs/digits  # a trained network instead; reference at 1e-6

Prints the table and writes ``peers.json`` and ``peers.png``. Cost: @COST@ on one core, 1 to 2 minutes with ``--ours``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import torch

from experiments.problems import PROBLEMS

from . import contest, measure, report


@click.command()
@click.option("--quick", is_flag=True, help="256 starts instead of 2,048.")
@click.option("--problem", "names", multiple=True, type=click.Choice(list(PROBLEMS)), default=list(PROBLEMS))
@click.option("--run", "trained", type=click.Path(exists=True, file_okay=False), help="A trained run instead.")
@click.option("--ours", is_flag=True, help="Measure only our solvers; peers come from the cache.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/peers"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "sdediff-peers")
@click.option("--threads", default=1, show_default=True)
def main(
    quick: bool, names: tuple[str, ...], trained: str | None, ours: bool, out: Path, cache: Path, threads: int
) -> None:
    torch.set_num_threads(threads)
    outcomes = []
    for name in names if trained is None else (f"trained-{Path(trained).name}",):
        problem = measure.load(name, contest.SCREEN if quick else 2048, cache, trained)
        screened, peers = contest.of_peers(problem, cache, compute=not ours)
        if not peers:
            raise click.ClickException(f"the cache {cache} has no peers for {name}; run once without --ours")
        outcomes.append(report.Outcome(name, screened, peers, contest.of_us(problem)))
    print(report.table(outcomes))
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(report.as_json(outcomes), indent=1))
    report.draw(outcomes, out / "peers.png")
    print(f"wrote {out / 'peers.json'} and {out / 'peers.png'}")


if __name__ == "__main__":
    main()
