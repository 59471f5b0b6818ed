"""Deterministic solvers of diffusers, k-diffusion, azula and sdediff at the same number of forwards.

Same starts (N(0, I) at ``t_max``), same exact denoiser in float64, same last level (t = 1e-3), exactly as many forwards
(two-stage methods at an odd budget spend one less); the error is the distance to the exact flow's end, found by dopri5
at 1e-10. The best of all peers with all their options is taken for each problem, budget and metric separately: on
their own grids for this process ("own"), on any schedule of the package where the model allows it ("swapped"), and on
any grid at all ("any": also uniform t^(1/2), uniform t^(1/3) and our default's nodes). All peers run on 32 starts,
the 100 best of a field by either metric on 256, the 12 best then on all.

    pip install -e ".[peers]" && pip install --no-deps k-diffusion
    python -m experiments.peers.run                    # three exact problems, 2,048 starts
    python -m experiments.peers.run --ours             # after a change of ours: peers from the cache
    python -m experiments.peers.run --ours --quick --solver ode   # the same in seconds: 256 starts, the default alone
    python -m experiments.peers.run --run runs/digits --quick   # a trained network; reference at 1e-6

Prints the table and writes ``peers.json`` and ``peers.png``. Expected, our error over the best peer's, geometric means
(largest): own grids 0.60 (1.18) by RMS, 0.39 (1.17) by median; with ``--seed 2 --starts 512`` 0.51 (1.09) and 0.39
(1.19); any grid 1.6 and 1.1. Cost: about 15 minutes on one core; with ``--ours`` half a minute.
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
@click.option("--quick", is_flag=True, help="256 starts.")
@click.option("--starts", default=2048, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the starts; the default solver was chosen on 1.")
@click.option("--problem", "names", multiple=True, type=click.Choice(list(PROBLEMS)), default=list(PROBLEMS)[:3])
@click.option(
    "--run", "trained", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A trained run instead."
)
@click.option("--ours", is_flag=True, help="Measure only our solvers; peers come from the cache.")
@click.option("--solver", "solvers", multiple=True, help='Of ours, beside "ode"; all by default.')
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/peers"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()) / "sdediff-peers")
@click.option("--threads", default=1, show_default=True)
def main(
    quick: bool,
    starts: int,
    seed: int,
    names: tuple[str, ...],
    trained: Path | None,
    ours: bool,
    solvers: tuple[str, ...],
    out: Path,
    cache: Path,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    outcomes, chosen = [], dict.fromkeys(("ode", *(solvers or contest.solvers())))
    starts = 256 if quick else starts
    for name in names if trained is None else [None]:
        problem = measure.trained(trained, starts, cache) if name is None else measure.load(name, starts, cache, seed)
        screened, peers = contest.of_peers(problem, cache, compute=not ours)
        if not peers:
            raise click.ClickException(f"the cache {cache} has no peers for {problem.name}; run once without --ours")
        outcomes.append(report.Outcome(name, screened, peers, contest.of_us(problem, chosen)))
    print(report.table(outcomes))
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(report.as_json(outcomes), indent=1))
    report.draw(outcomes, out / "peers.png")
    print(f"wrote {out / 'peers.json'} and {out / 'peers.png'}")


if __name__ == "__main__":
    main()
