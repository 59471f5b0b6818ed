"""All peers on all grids at all budgets: screened on few starts, the candidates for best measured on all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sdediff

from . import azula_peers, diffusers_peers, kdiffusion_peers
from .adapter import Peer, Rule
from .measure import Cache, Errors, Problem, of_ours, of_peer

BUDGETS = (5, 8, 10, 15, 20, 30, 50)
SCREEN = 256
"""Starts on which every entry runs."""
MARGIN = 2.0
"""An entry within this factor of the best screened one, by RMS or median, runs on all starts."""
HANDED: dict[str, Rule] = {"t^(1/2)": sdediff.grids.Power(2.0), "t^(1/3)": sdediff.grids.Power(3.0)}


@dataclass(frozen=True)
class Entry:
    """One peer on one grid at one budget."""

    peer: Peer
    grid: str
    native: bool
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
    native: bool
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
            tables = [(True, peer.grids), (False, {**HANDED, "our default's": default} if peer.handed else {})]
            for native, table in tables:
                for grid, rule in table.items():
                    for budget in BUDGETS:
                        if (steps := peer.steps(budget)) > 1:
                            times = nodes("" if not native else package.__name__, grid, rule, steps)
                            yield Entry(peer, grid, native, budget, times)


def of_peers(problem: Problem, folder: Path, *, compute: bool) -> tuple[list[Score], list[Score]]:
    """Every entry's errors on the first ``SCREEN`` starts, and the leading entries' on all.

    Args:
        problem: with all its starts.
        folder: of the cache.
        compute: whether to run what the cache lacks.
    """
    listed = list(entries(problem))
    few = problem.first(SCREEN)
    screened = _measured(few, listed, folder, compute)
    if len(problem.x) <= SCREEN:
        scores = [score for _, score in screened]
        return scores, scores
    leading = [entry for entry, score in screened if _leads(score, [other for _, other in screened])]
    return [score for _, score in screened], [score for _, score in _measured(problem, leading, folder, compute)]


def _measured(problem: Problem, listed: list[Entry], folder: Path, compute: bool) -> list[tuple[Entry, Score]]:
    cache, scores = Cache(folder, problem.name, len(problem.x)), []
    for i, entry in enumerate(tqdm(listed, desc=f"{problem.name}, {len(problem.x)} starts", mininterval=10.0)):
        run: Callable[[], Errors] = partial(of_peer, problem, entry.peer, entry.times, entry.budget)
        errors = cache.get(entry.key, run if compute else None)
        if errors is not None:
            scores.append((entry, Score(entry.label, entry.native, entry.budget, errors)))
        if compute and i % 100 == 99:
            cache.save()
    if compute:
        cache.save()
    return scores


def _leads(score: Score, screened: list[Score]) -> bool:
    rivals = [other.errors for other in screened if other.budget == score.budget and other.native >= score.native]
    by_rms = score.errors.rms <= MARGIN * min(errors.rms for errors in rivals)
    return by_rms or score.errors.median <= MARGIN * min(errors.median for errors in rivals)


def of_us(problem: Problem) -> dict[str, dict[int, Errors]]:
    """The errors of every deterministic solver of ours that takes a number of steps, by name and budget."""
    with torch.no_grad():
        names = [name for name, sampler in sdediff.SAMPLERS.items() if not (sampler.stochastic or sampler.adaptive)]
        measured = {name: {n: of_ours(problem, name, n) for n in BUDGETS} for name in names}
    return {name: {n: e for n, e in row.items() if e is not None} for name, row in measured.items()}
