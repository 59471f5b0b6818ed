"""Stochastic solvers of diffusers, k-diffusion, azula, torchsde and sdediff: how far is the law of their samples off?

Exact problems, all solvers from the exact law at ``t_max`` to the same last level (t = 1e-3, no denoising after it), at
the same number of forwards; the excess over the Monte-Carlo floor of the covariance's and of the mean log-density's
error, as ``law.py`` defines them. The floor is printed: what as many exact samples give, with its spread.

    pip install -e ".[peers]" && pip install --no-deps k-diffusion
    python -m experiments.peers.stochastic              # hours on one core
    python -m experiments.peers.stochastic --problem ring --draws 32768
    python -m experiments.peers.stochastic --ours-only

All peers run on all grids on ``--screen`` draws (at 100 forwards those that led at 50), the leaders of each figure
again on ``--draws``: the first by the covariance, by the log-density, and by both (the smaller of the larger ratio to
the best). A figure that changes its sign from grid to grid is nought somewhere between: the best by one figure alone
may be that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import sdediff
from experiments.problems import PROBLEMS
from sdediff.samplers import SAMPLERS

from .law import SDE, T_TO, Excess, Noisy, Truth, measure, of_ours
from .stochastic_peers import grids, peers

BUDGETS, KEEP = (20, 50, 100), 3


@dataclass(frozen=True)
class Entry:
    """A solver on a grid."""

    solver: Noisy
    grid: str
    times: Tensor

    @property
    def label(self) -> str:
        return f"{self.solver.name}, {self.grid}"


@cache
def _nodes(grid: str, steps: int) -> Tensor:
    return grids()[grid](SDE, steps, SDE.t_max, T_TO)


def rivals(budget: int) -> list[Entry]:
    """Every peer on every grid."""
    return [Entry(peer, grid, _nodes(grid, budget // peer.forwards)) for peer in peers() for grid in grids()]


def ours(budget: int) -> list[Entry]:
    """Our stochastic solvers on their own grids, and the default as a full reverse SDE."""
    named = {name: s for name, s in SAMPLERS.items() if s.stochastic and not s.adaptive}
    default: Any = SAMPLERS["sde"]
    named["sde, eta = 1"] = replace(default, eta=1.0)
    made = [(of_ours(name, s), s.grid) for name, s in named.items()]
    return [Entry(s, grid, sdediff.GRIDS[grid](SDE, budget // s.forwards, SDE.t_max, T_TO)) for s, grid in made]


FIGURES: dict[str, Callable[[Excess], float]] = {
    "covariance": lambda e: abs(e.covariance),
    "log-density": lambda e: abs(e.log_density),
}


def leaders(measured: dict[Entry, Excess], keep: int) -> list[Entry]:
    """The best by each figure, and by both."""
    best = {name: min(map(figure, measured.values())) for name, figure in FIGURES.items()}
    keys = [*FIGURES.values(), lambda e: max(figure(e) / best[name] for name, figure in FIGURES.items())]
    chosen = {entry: None for key in keys for entry in sorted(measured, key=lambda m: key(measured[m]))[:keep]}
    return list(chosen)


def row(label: str, e: Excess) -> str:
    return (
        f"{label:66} {e.covariance:+8.4f} +- {e.covariance_error:.4f} {e.log_density:+9.4f} +- "
        f"{e.log_density_error:.4f} {e.wander:7.3f}"
    )


@click.command()
@click.option("--problem", "names", multiple=True, type=click.Choice(list(PROBLEMS)), default=list(PROBLEMS)[:3])
@click.option("--forwards", "budgets", multiple=True, type=int, default=BUDGETS)
@click.option("--draws", default=4096, show_default=True)
@click.option("--screen", default=512, show_default=True)
@click.option("--ours-only", is_flag=True, help="Without the peers.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/stochastic.json"), show_default=True)
def main(names: tuple[str, ...], budgets: tuple[int, ...], draws: int, screen: int, ours_only: bool, out: Path) -> None:
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    print(f"{'':66} {'covariance':>19} {'log-density':>19} {'wander':>7}")
    for name in names:
        truth, before = Truth(name, PROBLEMS[name]()), set[str]()
        (floor, spread), (_, height) = truth.floor(draws)
        print(f"{name}: the floor of {draws} exact samples {floor:.4f} +- {spread:.4f}, 0 +- {height:.4f}", flush=True)
        for budget in budgets:
            run = [(entry, "ours") for entry in ours(budget)]
            if not ours_only:
                listed = [e for e in rivals(budget) if not before or budget <= BUDGETS[1] or e.label in before]
                kept = leaders({e: measure(truth, e.solver, e.times, budget, screen) for e in listed}, KEEP)
                before, run = {e.label for e in kept}, run + [(entry, "peer") for entry in kept]
            for entry, whose in run:
                measured = measure(truth, entry.solver, entry.times, budget, draws)
                print(row(f"{name:16} {budget:3} {whose} {entry.label}", measured), flush=True)
                record.setdefault(name, {}).setdefault(budget, {})[f"{whose}: {entry.label}"] = asdict(measured)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
