"""The best of the peers, and of our named solvers, on one network: screened on few starts, the leaders on all.

At 5 forwards every configuration runs on few starts; at each further number of forwards those that led at the one
before, fewer and fewer, half of them by RMS and half by median. The best of each number run on all starts.
Everything is kept in a file of JSON lines, one a figure, by the nodes themselves: a run that was stopped goes on, and
a grid that has changed is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import sdediff

from . import azula_peers, diffusers_peers, gits_peers, kdiffusion_peers
from .adapter import Peer, Rule
from .contest import BUDGETS
from .measure import Errors, Problem, of_peer

NAMED = ("ab2", "ab4", "dpm2", "dpm3", "dpm++2m", "dpm++3m", "deis2", "deis3", "unipc2", "unipc3", "heun")
GRIDS = ("time", "quadratic", "reference", "asinh", "karras", "logsnr")
PACKAGES = {
    "diffusers": diffusers_peers,
    "k-diffusion": kdiffusion_peers,
    "gits": gits_peers,
    "azula": azula_peers,
}
METRICS = ("rms", "median")
FAILED = Errors(float("inf"), float("inf"))


@dataclass(frozen=True)
class Rival:
    """One solver with its options, on one grid.

    Args:
        label: solver, options, grid.
        rule: the grid.
        steps: how many a number of forwards pays for.
        errors: ``(problem, times, budget) -> Errors``.
    """

    label: str
    rule: Rule
    steps: Callable[[int], int]
    errors: Callable[[Problem, Tensor, int], Errors]


@dataclass(frozen=True)
class Screening:
    """How much is measured.

    Args:
        few: starts of the screening.
        kept: configurations that go on from each number of forwards to the next.
        final: how many, by either metric, run on all starts.
    """

    few: int
    kept: tuple[int, ...]
    final: int


class Log:
    """Figures by key, in a file of JSON lines that only grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, dict[str, Errors]()
        if path.exists():
            for line in path.read_text().splitlines():
                found = json.loads(line)
                self.known[found["key"]] = Errors(found["rms"], found["median"])

    def get(self, key: str, compute: Callable[[], Errors]) -> Errors:
        """The figure, computed where it is not known."""
        if key not in self.known:
            self.known[key] = errors = compute()
            with self.path.open("a") as file:
                print(json.dumps({"key": key, "rms": errors.rms, "median": errors.median}), file=file)
        return self.known[key]


def shifted(shift: float) -> Rule:
    """diffusers' ``flow_shift``: even times of the flow, ``sigma / alpha`` multiplied and cut to the interval."""

    def rule(_sde: sdediff.SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        even = torch.linspace(t_from, t_to, steps + 1, dtype=torch.float64)
        times = shift * even / (1.0 + (shift - 1.0) * even)
        first, last = (float(t) for t in times[[0, -1]])
        return t_to + (times - last) * ((t_from - t_to) / (first - last))

    return rule


def peers(problem: Problem, packages: Iterable[str]) -> Iterator[Rival]:
    """Every peer on its package's own grids; on those of its other schedules where the network asks for levels."""
    flow = isinstance(problem.model.sde, sdediff.RectifiedFlow)
    for package in packages:
        for peer in PACKAGES[package].peers():
            more = {"flow shift 3": shifted(3.0)} if flow and "time" in peer.grids else {}
            for grid, rule in (peer.grids | peer.swapped | more).items():
                yield Rival(f"{peer.name}, {grid}", rule, partial(_steps, peer), partial(_of_peer, peer))


def _steps(peer: Peer, budget: int) -> int:
    return (budget - peer.extra) // peer.forwards


def _of_peer(peer: Peer, problem: Problem, times: Tensor, budget: int) -> Errors:
    try:
        return of_peer(problem, peer, times, budget)
    except (RuntimeError, ValueError):  # it asks between the instants of a network of integers, or steps outside
        return FAILED


def named() -> Iterator[Rival]:
    """Our named solvers on the usual grids."""
    for name in NAMED:
        steps, errors = partial(_paid, sdediff.SAMPLERS[name]), partial(_of_named, name)
        for grid in GRIDS:
            yield Rival(f"{name}, {grid}", sdediff.GRIDS[grid], steps, errors)


def _paid(sampler: sdediff.samplers.Sampler, budget: int) -> int:
    return max(steps for steps in range(budget + 1) if steps == 0 or (sampler.nfe(steps, clean=False) or 0) <= budget)


def _of_named(name: str, problem: Problem, times: Tensor, budget: int) -> Errors:
    try:
        s = sdediff.solve(problem.model, problem.x, name, grid=times)
    except FloatingPointError:
        return FAILED
    return Errors.of(s.x, problem.reference) if s.nfe <= budget else FAILED


def contest(problem: Problem, listed: list[Rival], plan: Screening, log: Log) -> dict[int, dict[str, Errors]]:
    """The errors of the leaders on all starts, by number of forwards and label."""
    nodes, kept, found = dict[tuple[Rule, int], Tensor | None](), listed, dict[int, dict[str, Errors]]()
    for budget, following in zip(BUDGETS, (*plan.kept, 0), strict=True):
        ranked = _ranked(problem.first(plan.few), kept, budget, log, nodes)
        found[budget] = {r.label: e for r, e in _ranked(problem, _leading(ranked, plan.final), budget, log, nodes)}
        kept = _leading(ranked, following // 2)
    return found


def _leading(ranked: list[tuple[Rival, Errors]], keep: int) -> list[Rival]:
    """The best by either metric."""
    orders = [sorted(ranked, key=lambda pair: getattr(pair[1], metric))[:keep] for metric in METRICS]
    return list({id(rival): rival for rival, _ in chain(*orders)}.values())


def _ranked(
    problem: Problem,
    listed: list[Rival],
    budget: int,
    log: Log,
    nodes: dict[tuple[Rule, int], Tensor | None],
) -> list[tuple[Rival, Errors]]:
    measured = []
    for rival in tqdm(listed, desc=f"{problem.name}, {budget} forwards, {len(problem.x)} starts", disable=None):
        steps = rival.steps(budget)
        if (rival.rule, steps) not in nodes:
            nodes[rival.rule, steps] = _nodes(problem, rival.rule, steps)
        times = nodes[rival.rule, steps]
        if times is not None:
            digest = hashlib.sha256(times.numpy().round(12).tobytes()).hexdigest()[:12]
            key = f"{rival.label}|{budget}|{len(problem.x)}|{digest}"
            measured.append((rival, log.get(key, partial(rival.errors, problem, times, budget))))
    return measured


def _nodes(problem: Problem, rule: Rule, steps: int) -> Tensor | None:
    """The times of a grid for this network, ``None`` where there is no such grid."""
    if steps < 1:
        return None
    sde = problem.model.sde
    try:
        times = problem.model.snap(rule(sde, steps, sde.t_max, problem.t_to))
    except ValueError:
        return None
    return times if bool((times.diff() < 0.0).all()) else None
