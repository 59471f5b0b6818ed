"""All peers on all grids at all budgets: screened on few starts, the candidates for best measured on all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sdediff

from . import azula_peers, diffusers_peers, kdiffusion_peers
from .adapter import Peer, Rule
from .measure import Cache, Errors, Problem, of_ours, of_peer

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
STAGES = ((32, 100), (256, 12))
"""Starts, and how many entries go on to the next stage: the best of a budget and field by RMS, and as many by median.
By rank, not by distance from the best: on few starts the best RMS may be the luck of missing a rare trajectory."""
HANDED: dict[str, Rule] = {"t^(1/2)": sdediff.grids.Power(2.0), "t^(1/3)": sdediff.grids.Power(3.0)}


FIELDS = ("own", "swapped", "any")
"""Whom we are compared with, each including the one before: peers on their own grids for this process; on their other
schedules, for models that do not depend on the schedule; on handed grids."""


@dataclass(frozen=True)
class Entry:
    """One peer on one grid at one budget; ``field`` indexes ``FIELDS``."""

    peer: Peer
    grid: str
    field: int
    budget: int
    times: Tensor

    @property
    def label(self) -> str:
        return f"{self.peer.name}, {self.grid}"

    @cached_property
    def key(self) -> str:
        digest = hashlib.sha256(self.times.numpy().round(12).tobytes()).hexdigest()[:16]
        return f"{self.peer.name}|{digest}|{self.budget}"


@dataclass(frozen=True)
class Score:
    """The errors of an entry."""

    label: str
    field: int
    budget: int
    errors: Errors


def entries(problem: Problem) -> Iterator[Entry]:
    """Every peer on its own grids, on the handed ones, and on the nodes of our default solver."""
    sde, known = problem.model.sde, {}

    def nodes(package: str, name: str, rule: Rule, steps: int) -> Tensor:
        key = (package, name, steps)
        if key not in known:
            known[key] = rule(sde, steps, sde.t_max, problem.t_to)
        return known[key]

    def default(_sde: sdediff.SDE, steps: int, _from: float, t_to: float) -> Tensor:
        return sdediff.solve(problem.model, problem.x[:1], "ode", steps=steps, t_to=t_to).times

    for package in (diffusers_peers, kdiffusion_peers, azula_peers):
        for peer in package.peers():
            handed = {**HANDED, "our default's": default} if peer.handed else {}
            for field, table in enumerate((peer.grids, peer.swapped, handed)):
                for grid, rule in table.items():
                    for budget in BUDGETS:
                        if (steps := peer.steps(budget)) > 1:
                            times = nodes(package.__name__ if field < 2 else "", grid, rule, steps)
                            yield Entry(peer, grid, field, budget, times)


def of_peers(problem: Problem, folder: Path, *, compute: bool) -> tuple[list[Score], list[Score]]:
    """Every entry's errors on the fewest starts, and the last ones' on all.

    Args:
        problem: with all its starts.
        folder: of the cache.
        compute: whether to run what the cache lacks.
    """
    stages = [(starts, keep) for starts, keep in STAGES if starts < len(problem.x)]
    listed, first = list(entries(problem)), None
    for starts, keep in stages:
        measured = _measured(problem.first(starts), listed, folder, compute)
        first, listed = first or measured, _leading(measured, keep)
    finals = _measured(problem, listed, folder, compute)
    return [score for _, score in first or finals], [score for _, score in finals]


def _measured(problem: Problem, listed: list[Entry], folder: Path, compute: bool) -> list[tuple[Entry, Score]]:
    cache, scores = Cache(folder, problem.name, len(problem.x)), []
    for i, entry in enumerate(tqdm(listed, desc=f"{problem.name}, {len(problem.x)} starts", mininterval=10.0)):
        run: Callable[[], Errors] = partial(of_peer, problem, entry.peer, entry.times, entry.budget)
        errors = cache.get(entry.key, run if compute else None)
        if errors is not None:
            scores.append((entry, Score(entry.label, entry.field, entry.budget, errors)))
        if compute and i % 100 == 99:
            cache.save()
    if compute:
        cache.save()
    elif len(scores) < len(listed):
        print(f"{problem.name}: {len(listed) - len(scores)} of {len(listed)} entries are not in the cache")
    return scores


def _leading(screened: list[tuple[Entry, Score]], keep: int) -> list[Entry]:
    """The ``keep`` best entries of each budget and field by either metric."""
    kept: set[str] = set()
    for budget, field, metric in product(BUDGETS, range(len(FIELDS)), ("rms", "median")):
        rivals = [(entry, score) for entry, score in screened if score.budget == budget and score.field <= field]
        ranked = sorted(rivals, key=lambda pair: getattr(pair[1].errors, metric))
        kept |= {entry.key for entry, _ in ranked[:keep]}
    return [entry for entry, _ in screened if entry.key in kept]


def solvers() -> list[str]:
    """Every deterministic solver of ours that takes a number of steps."""
    return [name for name, sampler in sdediff.SAMPLERS.items() if not (sampler.stochastic or sampler.adaptive)]


def of_us(problem: Problem, names: Iterable[str]) -> dict[str, dict[int, Errors]]:
    """The errors of our solvers, by name and budget."""
    with torch.no_grad():
        measured = {name: {n: of_ours(problem, name, n) for n in BUDGETS} for name in names}
    return {name: {n: e for n, e in row.items() if e is not None} for name, row in measured.items()}
