"""Errors and costs of likelihoods against an exact density, and the curve that the best of them make."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import sdediff
from experiments.problems import PROBLEMS

from .likelihood_methods import Counter, Method


class Case:
    """A problem: held-out draws, their exact log-density, and a model that counts what it is asked.

    Args:
        name: of ``problems.PROBLEMS``.
        items: how many draws.
        dtype: of the draws, and so of the states (the exact denoiser works in float64 within).
        law: instead of the named problem's.
    """

    def __init__(
        self,
        name: str,
        items: int,
        dtype: torch.dtype = torch.float64,
        law: sdediff.analytic.GaussianMixture | None = None,
        seed: int = 1,
    ) -> None:
        self.name, self.law = name, PROBLEMS[name]() if law is None else law
        self.model, self.counter = self.law.model(sdediff.VPSDE()), Counter()
        self.model.network = self.counter.watch(self.model.network)
        self.x = self.law.sample(items, seed=seed, dtype=dtype)
        self.truth = self.law.log_prob(self.x)
        self.bits = self.law.dim * math.log(2.0)

    def probe(self, run: int) -> Tensor:
        """Signs, shape of ``x``; their own for each run."""
        signs = np.random.default_rng([7, run]).choice([-1.0, 1.0], size=tuple(self.x.shape))
        return torch.from_numpy(signs).to(self.x)


class Run(NamedTuple):
    """One scoring of a batch: nats ``(B,)``; forwards and products with the transposed Jacobian, of an item."""

    log_prob: Tensor
    forwards: float
    products: float


class Error(NamedTuple):
    """Bits a dimension: RMS of an item, the mean over items (bias) and its standard error."""

    rms: float
    bias: float
    bias_error: float

    @classmethod
    def of(cls, runs: Sequence[Tensor], case: Case) -> Error:
        """The RMS over all runs; the bias of their mean."""
        errors = (torch.stack(list(runs)) - case.truth) / case.bits
        mean = errors.mean(dim=0)
        spread = float(mean.std()) / math.sqrt(len(mean))
        return cls(float(errors.square().mean().sqrt()), float(mean.mean()), spread)

    def __str__(self) -> str:
        return f"{self.rms:8.1e}  {self.bias:+8.1e} +- {self.bias_error:.0e}"


@dataclass(frozen=True)
class Point:
    """A configuration with its error and cost.

    Args:
        line: which curve it belongs to.
        label: what it is on that curve.
        error: in bits a dimension.
        seconds: of a batch.
        forwards: of an item, the mean.
        products: with the transposed Jacobian, likewise.
    """

    line: str
    label: str
    error: Error
    seconds: float
    forwards: float
    products: float

    @property
    def passes(self) -> float:
        """Forwards and backwards through the network: the cost that knows no machine."""
        return self.forwards + self.products

    def __str__(self) -> str:
        counts = f"{self.forwards:6.0f} {self.products:7.0f} {self.seconds:8.3f}"
        return f"{self.line:28} {self.label:14} {counts}  {self.error}"


Cost = Callable[[Point], float]


def counted(case: Case, score: Callable[[], Tensor]) -> Run:
    case.counter.forwards = case.counter.products = 0
    log_prob, asked = score(), case.counter
    return Run(log_prob, asked.forwards / len(log_prob), asked.products / len(log_prob))


def timed(scores: Mapping[str, Callable[[int], Run]], repetitions: int) -> dict[str, tuple[list[Run], float]]:
    """Runs ``0 .. repetitions - 1`` of each and their median seconds.

    All are taken in turn, so that a slow spell of the machine meets all of them. Seconds are the processor's, which on
    one thread are those of the wall of a machine that does nothing else.
    """
    runs: dict[str, list[Run]] = {key: [] for key in scores}
    seconds: dict[str, list[float]] = {key: [] for key in scores}
    for number in range(repetitions):
        for key, score in scores.items():
            begin = time.process_time()
            runs[key].append(score(number))
            seconds[key].append(time.process_time() - begin)
    return {key: (runs[key], float(np.median(seconds[key]))) for key in scores}


def peer_run(case: Case, method: Method, run: int, folder: Path) -> tuple[Run, float]:
    """A peer with probe number ``run`` and its seconds, kept on disk under a name that knows the data."""
    data = hashlib.sha256(case.x.numpy().tobytes() + method.name.encode() + bytes([run])).hexdigest()[:16]
    path = folder / f"likelihood-{case.name}-{data}.npz"
    if not path.exists():
        begin = time.process_time()
        found = counted(case, lambda: method.score(case.model, case.x, case.probe(run)))
        costs = np.array([*found[1:], time.process_time() - begin])
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, log_prob=found.log_prob.numpy(), costs=costs)
    with np.load(path) as kept:
        forwards, products, seconds = kept["costs"]
        return Run(torch.from_numpy(kept["log_prob"]), float(forwards), float(products)), float(seconds)


def averaged(runs: Sequence[Run], repeats: int) -> list[Tensor]:
    """Means over ``repeats`` runs at a time."""
    stacked = torch.stack([run.log_prob for run in runs])
    return list(stacked.unflatten(0, (-1, repeats)).mean(dim=1))


# ---- the curve -----------------------------------------------------------------------------------------------


def front(points: Iterable[Point], cost: Cost) -> list[Point]:
    """Those that no cheaper one beats, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=cost):
        if not best or point.error.rms < best[-1].error.rms:
            best.append(point)
    return best


def rms_at(points: Iterable[Point], cost: Cost, budget: float) -> float:
    """RMS on the front at a cost, log-log between its points; infinite below the cheapest, the last one's beyond."""
    line = front(points, cost)
    costs, errors = ([math.log(value) for value in values] for values in _columns(line, cost))
    return math.exp(float(np.interp(math.log(budget), costs, errors, left=math.inf)))


def cost_at(points: Iterable[Point], cost: Cost, rms: float) -> float:
    """Cost on the front for an RMS; infinite beyond its reach, the cheapest one's cost above."""
    line = front(points, cost)
    costs, errors = ([math.log(value) for value in reversed(values)] for values in _columns(line, cost))
    return math.exp(float(np.interp(math.log(rms), errors, costs, left=math.inf)))


def _columns(line: Sequence[Point], cost: Cost) -> tuple[list[float], list[float]]:
    return [cost(point) for point in line], [point.error.rms for point in line]
