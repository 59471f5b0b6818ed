"""Our solvers against all peers on networks that are not exact: trained, pretrained, or exact with a smooth error.

    pip install -e ".[peers]" && pip install --no-deps k-diffusion
    python -m experiments.peers.networks runs/nets --shared DATA
    python -m experiments.peers.real --runs runs/nets --shared DATA                       # hours the first time
    python -m experiments.peers.real --runs runs/nets --shared DATA --solver ode --solver ode@karras --half judge
    python -m experiments.peers.real --runs runs/nets --shared DATA --name moons-ve --name digits-mixture

Same starts at ``t_max`` (a chain's last instant), same last level, equal numbers of forwards; the error is the distance
to the end of the network's own flow, by UniPC on a fine grid, checked against another fine solve: figures less than
three times the difference of the two are left out. So are starts that the network itself takes far off the data, to
twenty times the median length: outside what it was trained on its flow may end anywhere (``--every-start`` keeps them).

The best peer is the best of all schedulers of diffusers, samplers of k-diffusion and azula and of GITS's iPNDM
(``--package`` takes some), with all their options, on their packages' own grids, with and without an analytic first
step; the best named solver is one of ours on one of the usual grids. Both are chosen for each network, number of
forwards and metric separately, knowing the answer. ``--solver NAME@GRID`` puts a solver of ours on another grid. A
solve that fails counts as a ratio of 1,000.

Truth and rivals are kept in ``--cache``, so that another solver of ours costs its own forwards alone: a few minutes for
all networks. Networks of the half ``choose`` are for choosing, of ``judge`` for reporting what was chosen.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import sdediff

from . import rivals
from .contest import BUDGETS
from .measure import Errors, Problem, of_ours
from .networks import HALVES, TRAINED
from .rivals import METRICS, PACKAGES, Log, Screening
from .subjects import EXACT, SUBJECTS

WORST = 1e3
ALL = SUBJECTS | EXACT


@dataclass(frozen=True)
class Scale:
    """How much is measured on networks of one size: starts, steps of the truth, and the screening of the rivals."""

    starts: int
    steps: int
    screening: Screening


POINTS = Scale(128, 800, Screening(32, (240, 200, 150, 120, 100, 80), 6))
SMALL = Scale(48, 400, Screening(12, (160, 120, 80, 60, 50, 40), 4))
IMAGES = Scale(12, 300, Screening(3, (160, 100, 70, 50, 40, 30), 4))
FAR = 20.0
"""Length of an end, in units of the median, beyond which the network has lost the data: no figure should hang on it."""


@dataclass(frozen=True)
class Cell:
    """The errors on one network at one number of forwards: ours by solver, the rivals' by kind and label."""

    ours: dict[str, Errors]
    peers: dict[str, Errors]
    named: dict[str, Errors]


def prepare(
    name: str, runs: Path, shared: Path, cache: Path, *, every: bool = False
) -> tuple[Problem, Screening, Errors]:
    """A network as a problem, the screening of its rivals, and by how much its two truths differ.

    Starts that the network takes off the data are left out unless ``every`` start is wanted.
    """
    model = ALL[name].make(runs, shared)
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    scale = POINTS if len(model.data.shape) == 1 else SMALL if model.data.shape[-1] <= 12 else IMAGES
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(scale.starts, *model.data.shape, generator=rng, dtype=torch.float64)
    x = x * float(model.sde.level(model.sde.t_max).scale)
    t_to, label = max(1e-3, model.sde.t_data), f"{name}-{weights.hexdigest()[:8]}"
    path = cache / f"{label}.pt"
    if not path.exists():
        print(f"{name}: the end of its flow ...", flush=True)
        torch.save(list(_ends(model, x, t_to, scale.steps)), path)
    truth, other = torch.load(path)
    sizes = truth.flatten(1).norm(dim=1)
    stays = sizes < FAR * sizes.median()
    if not bool(stays.all()):
        fate = "kept" if every else "left out"
        print(f"{name}: {int((~stays).sum())} of {len(x)} starts are {fate}: the network takes them off the data")
        stays |= every
    starts = hashlib.sha256(x[stays].numpy().tobytes()).hexdigest()[:6]
    problem = Problem(f"{label}-{starts}", model, t_to, x[stays], truth[stays])
    return problem, scale.screening, Errors.of(other[stays], truth[stays])


def _ends(model: sdediff.ScoreModel, x: Tensor, t_to: float, steps: int) -> Iterator[Tensor]:
    """The end of the flow by two solves; through all instants for a network of integers, whose flow bends at each."""
    times = sdediff.GRIDS["logsnr"](model.sde, steps, model.sde.t_max, t_to)
    if torch.equal(model.snap(times), times):
        yield sdediff.solve(model, x, "unipc3", grid=times).x
        yield sdediff.solve(model, x, "rk4", steps=steps // 4, grid="logsnr", t_to=t_to).x
        return
    times = _between(model.sde.instants.flip(0), model.sde, t_to, 10.0 / steps)
    for solver in ("unipc3", "ab4"):
        yield sdediff.solve(model, x, solver, grid=times).x


def _between(instants: Tensor, sde: sdediff.SDE, t_to: float, width: float) -> Tensor:
    """All instants down to ``t_to``, and nodes between them where these are further apart in log-SNR than ``width``."""
    kept = instants[instants >= t_to]
    widths = sde.half_log_snr(kept).diff()
    parts = [
        torch.linspace(float(high), float(low), math.ceil(float(apart) / width) + 1, dtype=torch.float64)[:-1]
        for high, low, apart in zip(kept[:-1], kept[1:], widths, strict=True)
    ]
    return torch.cat([*parts, kept[-1:]])


def measured(
    problem: Problem, plan: Screening, solvers: tuple[str, ...], packages: tuple[str, ...], log: Log
) -> dict[int, Cell]:
    """The errors of our solvers, and of their rivals, by number of forwards."""
    peers = rivals.contest(problem, list(rivals.peers(problem, packages)), plan, log)
    named = rivals.contest(problem, list(rivals.named()), plan, log)
    ours = {solver: {n: _of_solver(problem, solver, n) for n in BUDGETS} for solver in solvers}
    return {n: Cell({solver: ours[solver][n] for solver in solvers}, peers[n], named[n]) for n in BUDGETS}


def _of_solver(problem: Problem, solver: str, budget: int) -> Errors:
    name, _, grid = solver.partition("@")
    return of_ours(problem, name, budget, grid or None) or rivals.FAILED


def best(found: dict[str, Errors], metric: str) -> tuple[float, str]:
    return min((getattr(errors, metric), label) for label, errors in found.items())


def ratio(error: float, reference: float) -> float:
    return min(error / reference, WORST) if math.isfinite(error) else WORST


def rows(name: str, cells: dict[int, Cell], apart: Errors) -> list[dict[str, Any]]:
    """One record a number of forwards and metric that the truth is good enough for."""
    made = []
    for n, cell in cells.items():
        for metric in METRICS:
            (peer, who), (named, which) = best(cell.peers, metric), best(cell.named, metric)
            unsure = getattr(apart, metric)
            ours = {solver: getattr(errors, metric) for solver, errors in cell.ours.items()}
            made.append(
                {"network": name, "half": ALL[name].half, "forwards": n, "metric": metric, "truth": unsure}
                | {"peer": peer, "peer_label": who, "named": named, "named_label": which, "ours": ours}
                | {"counts": 3.0 * unsure < min(peer, named, *ours.values())}
            )
    return made


def show(made: list[dict[str, Any]]) -> None:
    """Print the figures of one network, a line a number of forwards and metric."""
    first = made[0]
    apart = " / ".join(f"{m} {next(r['truth'] for r in made if r['metric'] == m):.1e}" for m in METRICS)
    print(f"\n{first['network']} ({first['half']}; the two truths differ by {apart})")
    solvers = list(first["ours"])
    print(f"{'':12}" + "".join(f"{s:>12}" for s in (*solvers, "named", "peer")) + "   over named; over peer")
    for row in sorted(made, key=lambda r: METRICS.index(r["metric"])):
        figures = "".join(f"{v:12.2e}" for v in (*row["ours"].values(), row["named"], row["peer"]))
        over = "; ".join(
            " ".join(f"{ratio(v, row[kind]):5.2f}" for v in row["ours"].values()) for kind in ("named", "peer")
        )
        note = "" if row["counts"] else "   [left out: the truth is no better]"
        labels = f"{row['named_label']} | {row['peer_label']}"
        print(f"{row['metric']:7}{row['forwards']:4} {figures}   {over}   {labels}{note}")


def summary(made: list[dict[str, Any]]) -> None:
    """Print geometric mean and largest of the ratios, by half, and by number of forwards."""
    counted = [row for row in made if row["counts"]]
    print(f"\nratios, geometric mean (largest), of {len(counted)} of {len(made)} figures")
    for half in dict.fromkeys(row["half"] for row in made):
        for solver in made[0]["ours"]:
            for kind in ("peer", "named"):
                for metric in METRICS:
                    of = [row for row in counted if row["half"] == half and row["metric"] == metric]
                    cells = []
                    for n in (None, *BUDGETS):
                        values = [ratio(r["ours"][solver], r[kind]) for r in of if n in (None, r["forwards"])]
                        mean = statistics.geometric_mean(values) if values else math.nan
                        cells.append(f"{mean:7.2f} ({max(values, default=math.nan):6.1f})")
                    print(f"{half:7}{solver:>12} / {kind:6}{metric:7} all {cells[0]} | " + " ".join(cells[1:]))
    print(f"{'':38}numbers of forwards: all | " + " ".join(map(str, BUDGETS)))


@click.command()
@click.option("--runs", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--shared", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--name", "names", multiple=True, type=click.Choice(list(ALL)), default=list(SUBJECTS))
@click.option("--half", "halves", multiple=True, type=click.Choice(HALVES), default=HALVES)
@click.option("--solver", "solvers", multiple=True, default=["ode"], show_default=True, help="NAME or NAME@GRID.")
@click.option("--package", "packages", multiple=True, type=click.Choice(list(PACKAGES)), default=list(PACKAGES))
@click.option("--every-start", "every", is_flag=True, help="Also those that the network takes off the data.")
@click.option("--cache", type=click.Path(path_type=Path), help="cache/ in the runs' folder by default.")
@click.option("--out", type=click.Path(path_type=Path), help="The figures as JSON lines.")
def main(
    runs: Path,
    shared: Path,
    names: tuple[str, ...],
    halves: tuple[str, ...],
    solvers: tuple[str, ...],
    packages: tuple[str, ...],
    every: bool,
    cache: Path | None,
    out: Path | None,
) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cache, made = cache or runs / "cache", list[dict[str, Any]]()
    cache.mkdir(parents=True, exist_ok=True)
    for name in names:
        if ALL[name].half not in (*halves, "exact"):
            continue
        if name in TRAINED and not (runs / name / "model.json").exists():
            print(f"{name} is left out: {runs} has no such run")
            continue
        problem, plan, apart = prepare(name, runs, shared, cache, every=every)
        cells = measured(problem, plan, solvers, packages, Log(cache / f"{problem.name}.jsonl"))
        own = rows(name, cells, apart)
        show(own)
        made += own
        if out is not None:
            out.write_text("".join(json.dumps(row) + "\n" for row in made))
    if made:
        summary(made)


if __name__ == "__main__":
    main()
