"""Problems with their starts and references, the error of one solve, and the cache of the peers' errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import sdediff
from experiments.problems import PROBLEMS
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y

from .adapter import Peer

CHUNK = 256
"""Samples solved at a time: what fits a core's cache."""


@dataclass(frozen=True)
class Problem:
    """A model, start states at ``t_max`` and where the exact flow takes them.

    Args:
        name: of the model.
        model: a denoiser, exact or trained.
        t_to: the last time; no solver goes closer to the data.
        x: ``(B, *shape)``, float64, the first ``B`` of one endless list of starts.
        reference: the same at ``t_to``.
    """

    name: str
    model: Denoiser
    t_to: float
    x: Tensor
    reference: Tensor

    def first(self, count: int) -> Problem:
        return Problem(self.name, self.model, self.t_to, self.x[:count], self.reference[:count])


@dataclass(frozen=True)
class Errors:
    """RMS over samples and dimensions, and the median over samples of each one's RMS."""

    rms: float
    median: float

    @staticmethod
    def of(x: Tensor, reference: Tensor) -> Errors:
        squared = (x - reference).square().flatten(1).mean(dim=1).nan_to_num(nan=torch.inf)
        return Errors(float(squared.mean().sqrt()), float(squared.sqrt().median()))


def _chunked(solve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([solve(part) for part in x.split(CHUNK)])


def load(name: str, samples: int, cache: Path, seed: int = 1) -> Problem:
    """An exact problem by its name in ``problems.PROBLEMS``; the reference is kept in ``cache``."""
    return problem(name, PROBLEMS[name]().model(sdediff.VPSDE()), samples, cache, 1e-10, seed)


def trained(run: Path, samples: int, cache: Path) -> Problem:
    """A trained run as a problem, named after its weights so that the cache holds no other's errors.

    Raises:
        ValueError: if the run does not say the shape of its data.
    """
    model = sdediff.load(run).eval()
    if model.data is None:
        raise ValueError(f"{run} does not say the shape of its data")
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    return problem(f"{run.resolve().name}-{weights.hexdigest()[:8]}", model, samples, cache, 1e-6)


def problem(name: str, model: Denoiser, samples: int, cache: Path, tolerance: float, seed: int = 1) -> Problem:
    name = name if seed == 1 else f"{name}-seed{seed}"
    sde, path = model.sde, cache / f"reference-{name}-{samples}.npy"
    t_to = max(1e-3, sde.t_min)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, *model.data.shape)))
    x = x * float(sde.level(sde.t_max).scale)
    if path.exists():
        return Problem(name, model, t_to, x, torch.from_numpy(np.load(path)))
    print(f"{name}: reference by dopri5 at {tolerance:g} for {samples} starts ...", end="", flush=True)
    precise = partial(sdediff.solve, model, solver="dopri5", rtol=tolerance, atol=tolerance, t_to=t_to)
    with torch.no_grad():
        reference = _chunked(lambda part: precise(part).x, x)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(path, reference.numpy())
    print(" done", flush=True)
    return Problem(name, model, t_to, x, reference)


def of_peer(problem: Problem, peer: Peer, times: Tensor, budget: int) -> Errors:
    """A peer's errors on the levels at ``times``.

    Raises:
        RuntimeError: if it spends more forwards than it may.
    """
    levels = problem.model.sde.levels(times)

    def solve(x: Tensor) -> Tensor:
        frame = Frame(problem.model, problem.model.sde)
        with torch.no_grad():
            y = peer.solve(frame, to_y(x, levels[0]), levels)
        if frame.nfe > budget:
            raise RuntimeError(f"{peer.name} spent {frame.nfe} forwards of {budget}")
        return to_x(y, levels[-1])

    return Errors.of(_chunked(solve, problem.x), problem.reference)


def of_ours(problem: Problem, solver: str, budget: int, grid: str | None = None) -> Errors | None:
    """The errors of an entry of ``sdediff.SAMPLERS``; ``None`` where the budget is too small for one step.

    A solve that fails or is refused has infinite errors.
    """
    solve = partial(sdediff.solve, problem.model, solver=solver, t_to=problem.t_to, grid=grid)
    steps = budget
    try:
        while steps > 0 and solve(problem.x[:1], steps=steps).nfe > budget:
            steps -= 1
        if steps == 0:
            return None
        return Errors.of(_chunked(lambda part: solve(part, steps=steps).x, problem.x), problem.reference)
    except (FloatingPointError, ValueError) as error:
        print(f"{problem.name}: {solver} at {budget} forwards: {error}", flush=True)
        return Errors(float("inf"), float("inf"))


class Cache:
    """Peers' errors on disk, by problem, peer, nodes and budget; one JSON file a problem and sample count."""

    def __init__(self, folder: Path, problem: str, samples: int) -> None:
        self.path = folder / f"peers-{problem}-{samples}.json"
        self.known: dict[str, list[float]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, key: str, compute: Callable[[], Errors] | None) -> Errors | None:
        """The cached errors, or, if there is a way, the computed ones, which are kept."""
        if key not in self.known:
            if compute is None:
                return None
            errors = compute()
            self.known[key] = [errors.rms, errors.median]
        return Errors(*self.known[key])

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.known))
