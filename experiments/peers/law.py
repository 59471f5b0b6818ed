"""How far is the law of a stochastic solver's samples from the exact one? Two figures, each its excess over the floor.

    covariance    ||C_q - C|| / ||C||, Frobenius norms, C_q the covariance of the solver's samples
    log-density   E_q log p - E log p per dimension, nats, p the exact density at the last level

Both are free of the number of draws. The square of a *sample* covariance's relative error is, in expectation, that of
the excess plus that of the floor; products of different batches' errors alone are unbiased for the first. The excess
is so sqrt(error^2 - floor^2), with a minus sign where noise makes that negative. A difference of errors instead would
depend on the number of draws; where one of two excesses is at most half the other, so is that difference.

To resolve the excess at all, each sample is compared with one from the same start and the same normals whose law is
exact: the family's fourth-order solver at the same eta on every step split in four, the fine normals drawn given the
solver's own, of which they are the parts. (Of an excess of second order a sixteenth is lost so.) What both have in
common, most of the Monte-Carlo noise, cancels; what remains is the standard error, the covariance's by jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdediff
from sdediff.analytic import GaussianMixture
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.samplers import Sampler
from sdediff.samplers.exponential import INTEGRANDS
from sdediff.samplers.multistep import Multistep

from .adapter import Levels

T_TO, CHUNK, BATCHES, SPLIT = 1e-3, 1024, 32, 4
SDE = sdediff.VPSDE()


Draw = Callable[[], Tensor]
"""The next standard normals of a solve, of the state's shape."""


@dataclass(frozen=True)
class Noisy:
    """One stochastic solver with all its options set.

    Args:
        name: package, solver, options.
        solve: ``(frame, y, levels, draw) -> y`` at the last level.
        eta: of the reverse process that it solves, 1 for the reverse SDE.
        forwards: of the network a step.
    """

    name: str
    solve: Callable[[Frame, Tensor, Levels, Draw], Tensor]
    eta: float
    forwards: int = 1


@dataclass(frozen=True)
class Excess:
    """What is measured of one solver on one grid; ``wander`` is the RMS distance to the exact samples, relative."""

    covariance: float
    covariance_error: float
    log_density: float
    log_density_error: float
    wander: float


@dataclass(frozen=True)
class Truth:
    """A problem and its exact law at the last level."""

    name: str
    data: GaussianMixture

    @cached_property
    def covariance(self) -> Tensor:
        alpha, sigma = SDE.alpha(T_TO), SDE.sigma(T_TO)
        return alpha**2 * self.data.covariance + sigma**2 * torch.eye(self.data.dim, dtype=torch.float64)

    def at(self, t: float, n: int, seed: int) -> Tensor:
        """Exact samples ``(n, D)``."""
        noise = torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal((n, self.data.dim)))
        return SDE.alpha(t) * self.data.sample(n, seed=seed) + SDE.sigma(t) * noise

    def floor(self, n: int, sets: int = 8) -> list[tuple[float, float]]:
        """Mean and spread of the two errors of so many exact samples."""
        drawn = [self.at(T_TO, n, 10_000 + k) for k in range(sets)]
        errors = [float((x.T.cov() - self.covariance).norm() / self.covariance.norm()) for x in drawn]
        heights = [float(self.data.log_prob(x, SDE, T_TO).mean()) / self.data.dim for x in drawn]
        return [(float(np.mean(errors)), float(np.std(errors, ddof=1))), (0.0, float(np.std(heights, ddof=1)))]


class Source:
    """The benchmark's normals in the place of a solver's noise source."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def normal(self, _step: int, _stage: int = 0) -> Tensor:
        return self.draw()


def stream(shape: Sequence[int], seed: int) -> Draw:
    """Standard normals of a shape, one tensor a call."""
    rng, size = np.random.default_rng([seed, 2]), tuple(shape)
    return lambda: torch.from_numpy(rng.standard_normal(size))


def of_ours(name: str, sampler: Sampler) -> Noisy:
    """A sampler of ours as an entry."""

    def solve(frame: Frame, y: Tensor, levels: Levels, draw: Draw) -> Tensor:
        times = torch.tensor([level.t for level in levels], dtype=torch.float64)
        source: Any = Source(draw)
        solution = sampler.sample(frame.denoise, frame.sde, to_x(y, levels[0]), times, source)
        frame.nfe += solution.nfe
        return to_y(solution.x, levels[-1])

    forwards = sampler.nfe(1, clean=False) or 1
    return Noisy(name, solve, getattr(sampler, "eta", 1.0), forwards)


def exact_beside(frame: Frame, y: Tensor, levels: Levels, eta: float, normals: list[Tensor], own: Draw) -> Tensor:
    """The end of the process from ``y`` whose noise over each of the steps is what ``normals`` say.

    Args:
        frame: the denoiser.
        y: the start.
        levels: the nodes of a solve.
        eta: of the process.
        normals: what that solve drew; the last of a step's is taken for the step, and none if they cannot be told.
        own: for what the normals leave open.
    """
    steps = len(levels) - 1
    fine = frame.sde.levels(torch.tensor([*_split(frame, levels), levels[-1].t], dtype=torch.float64))
    integrand = INTEGRANDS["velocity"](eta)
    keep = [integrand.keep(a, b) for a, b in pairwise(fine)]
    std = [integrand.std(a, b) for a, b in pairwise(fine)]
    per_step = len(normals) // steps if len(normals) % steps == 0 else 0

    def draw_all() -> Iterator[Tensor]:
        for i in range(steps):
            part = range(i * SPLIT, (i + 1) * SPLIT)
            share = np.array([std[j] * math.prod(keep[j + 1 : part.stop]) for j in part])
            share = share / np.linalg.norm(share)
            z = [own() for _ in part]
            if per_step:
                rest = normals[(i + 1) * per_step - 1] - sum(float(w) * each for w, each in zip(share, z, strict=True))
                z = [each.add(rest, alpha=float(w)) for w, each in zip(share, z, strict=True)]
            yield from z

    stock = iter(draw_all())
    solver = of_ours("", Multistep("velocity", "asinh", 4, eta=eta))
    return solver.solve(frame, y, fine, lambda: next(stock))


def _split(frame: Frame, levels: Levels) -> list[float]:
    """Times of the nodes and of the levels between them, even in ``asinh(tan / 0.3)``; the last left out."""
    clock = np.arcsinh(np.tan([level.angle for level in levels]) / 0.3)
    inner = [np.linspace(a, b, SPLIT + 1)[:-1] for a, b in pairwise(clock)]
    angles = np.arctan(0.3 * np.sinh(np.concatenate(inner)))
    times = [frame.at_angle(float(angle)).t for angle in angles]
    return [levels[i // SPLIT].t if i % SPLIT == 0 else t for i, t in enumerate(times)]


def measure(truth: Truth, solver: Noisy, times: Tensor, budget: int, draws: int) -> Excess:
    """The excesses of one solver on the nodes ``times``, and their standard errors.

    Raises:
        RuntimeError: if it spends more forwards than it may.
    """
    model, levels, ends, exact = truth.data.model(SDE), SDE.levels(times), [], []
    for k in range(0, draws, CHUNK):
        y = to_y(truth.at(SDE.t_max, min(CHUNK, draws - k), k), levels[0])
        draw, normals, frame = stream(y.shape, k), list[Tensor](), Frame(model, SDE)

        def record(draw: Draw = draw, normals: list[Tensor] = normals) -> Tensor:
            normals.append(draw())
            return normals[-1]

        with torch.no_grad():
            ends.append(to_x(solver.solve(frame, y, levels, record), levels[-1]))
            if frame.nfe > budget:
                raise RuntimeError(f"{solver.name} spent {frame.nfe} forwards of {budget}")
            beside = exact_beside(Frame(model, SDE), y, levels, solver.eta, normals, stream(y.shape, 1_000_000 + k))
        exact.append(to_x(beside, levels[-1]))
    return excess(truth, torch.cat(ends), torch.cat(exact))


def excess(truth: Truth, x: Tensor, exact: Tensor) -> Excess:
    """The excesses of samples ``x`` over the exact ones paired with them."""
    if not bool(torch.isfinite(x).all()):
        return Excess(math.inf, math.inf, -math.inf, math.inf, math.inf)
    scale = float(truth.covariance.norm())
    pairs = zip(x.chunk(BATCHES), exact.chunk(BATCHES), strict=True)
    errors = torch.stack([((a.T.cov() - b.T.cov()) / scale).flatten() for a, b in pairs])
    total, squares = errors.sum(dim=0), errors.square().sum(dim=1)

    def crossed(total: Tensor, squares: Tensor, count: int) -> Tensor:
        return (total.square().sum(dim=-1) - squares) / (count * (count - 1))

    square = float(crossed(total, squares.sum(), BATCHES))
    without = crossed(total - errors, squares.sum() - squares, BATCHES - 1)
    spread = float(((BATCHES - 1) / BATCHES * (without - without.mean()).square().sum()).sqrt())
    root = math.sqrt(abs(square))
    higher = (truth.data.log_prob(x, SDE, T_TO) - truth.data.log_prob(exact, SDE, T_TO)) / truth.data.dim
    return Excess(
        math.copysign(root, square),
        spread / (2.0 * max(root, math.sqrt(spread / 2.0))),
        float(higher.mean()),
        float(higher.std()) / math.sqrt(len(x)),
        float(((x - exact).square().sum(dim=1).mean() / truth.covariance.trace()).sqrt()),
    )
