r"""Learning of a solver's parameters from pilot trajectories, by gradients through the model.

The objective mixes the log of the RMS error and the mean of the samples' log errors: the first depends on the few bad
trajectories, the second on the many good ones. Gradients go through the whole solve as in bespoke solvers (Shaul et al.
2024) and S4S (Frankel et al. 2025), to nodes and weights together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y
from sdediff.gaussian import Whitened
from sdediff.numerics import sum_features
from sdediff.samplers.auto import choice_for
from sdediff.samplers.tuned import AdamsMethod, asinh_clock, evaluate_at, tuned_step
from sdediff.tuning.parameters import Initialisation, SolverParameters, SolverTensors
from sdediff.tuning.trajectories import Pilot
from sdediff.types import Level, Split

INITIALISATIONS = tuple(
    Initialisation(power, AdamsMethod(memory, correct))
    for power, memory, correct in product((2.0, 2.5), (2, 3, 4), (False, True))
)
"""Methods tried as the initialisation, on grids and on the nodes that ``"auto"`` chooses."""
RATE = 3e-2
"""Learning rate of Adam, up to 10 steps; more steps have smaller errors and need smaller changes."""
CLIP = 10.0
"""Largest norm of the gradient."""
RMS = 0.75
"""Share of log RMS in the objective."""
_LEAST_ERROR = 1e-14
_INITIAL, _VALIDATION, _CHECKS = 128, 512, 10
"""Trajectories that choose the initialisation, those that choose the best iterate, and the number of iterates."""
_MEMORY = 2 << 30
"""Bytes of activations of one batch's solve above which forwards are recomputed (gradient checkpointing)."""


def objective(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mix log RMS and mean log error of mean squared errors ``(B,)``, with weights of the samples."""
    weights = torch.ones_like(errors) if weights is None else weights
    share = weights / weights.sum()
    rms, typical = (share * errors).sum().log(), (share * (errors + _LEAST_ERROR).log()).sum()
    return 0.5 * (RMS * rms + (1.0 - RMS) * typical)


def squared_errors(
    model: Denoiser, solver: SolverTensors, pilot: Pilot, *, lean: bool = False
) -> tuple[Tensor, Tensor]:
    """Return mean squared errors ``(B,)`` at ``t_to`` and at the data, with gradients."""
    states = rollout(model.rows(pilot.row), solver, pilot.start, lean=lean)
    size = math.prod(pilot.start.shape[1:])
    end, clean = (
        sum_features((x - exact).square()) / size for x, exact in zip(states, (pilot.end, pilot.clean), strict=True)
    )
    return end, clean


def rollout(model: Denoiser, solver: SolverTensors, x: Tensor, *, lean: bool = False) -> tuple[Tensor, Tensor]:
    """Solve to ``t_to`` and to the data, as :class:`~sdediff.samplers.tuned.Tuned` does, with gradients."""
    sde, white = model.sde, Whitened(model.moments)
    frame = Frame(model, sde)
    levels: list[Level] = [sde.level_at(node) for node in solver.half_log_snr]
    clean = sde.level(0.0)
    evaluated = [levels[0], *(sde.level_at(node) for node in solver.evaluated[1:])]
    at = [white.at(level) for level in levels]
    clock = asinh_clock((-solver.half_log_snr).exp())
    y, history = to_y(x, levels[0]), list[Tensor]()

    def halves(state: Tensor, i: int) -> tuple[Tensor, Tensor]:
        x0, eps = evaluate_at(frame, state, levels[i], evaluated[i])
        return x0, eps

    for i, learned in enumerate(solver.rows):
        split = Split(*(checkpoint(halves, y, i, use_reentrant=False) if lean else halves(y, i)))
        around = at[max(0, i - 1)], at[i]
        if i == len(solver.rows) - 1:
            weights = solver.method.weights(i, clock, torch.zeros_like(clock[0]), white.std, solver.clean)
            data, _ = tuned_step(white, y, split, history, (*around, white.at(clean)), weights)
        weights = solver.method.weights(i, clock, clock[i + 1], white.std, learned)
        y, history = tuned_step(white, y, split, history, (*around, at[i + 1]), weights)
    return to_x(y, levels[-1]), to_x(data, clean)


def best_initialisation(model: Denoiser, steps: int, t_to: float, pilot: Pilot) -> SolverParameters:
    """Return the initialisation with the smallest objective on some of the trajectories."""
    some = pilot.select(slice(_INITIAL))
    memory = max(steps, INITIALISATIONS[0].method.memory)
    chosen = choice_for(model.rows(some.row), some.start.shape, steps, (model.sde.t_max, t_to)).sampler
    nodes = model.sde.half_log_snr(torch.tensor(chosen.times, dtype=torch.float64))
    nodes = torch.cat([nodes[:1], nodes[1 + int(chosen.free) :]])
    starts = [s for s in INITIALISATIONS if s.method.memory <= memory]
    starts += [s._replace(nodes=tuple(nodes.tolist())) for s in starts if s.power == INITIALISATIONS[0].power]
    found = [SolverParameters.of(model, steps, t_to, start) for start in starts]
    return min(found, key=lambda start: solver_objective(model, start, some))


def learn(
    model: Denoiser,
    initial: SolverParameters,
    pilot: Pilot,
    *,
    iterations: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> SolverParameters:
    """Minimise the objective by Adam on batches of the trajectories, with a cosine schedule.

    Raises:
        ValueError: if no gradient flows through the model.
    """
    learned = replace(initial, **{name: getattr(initial, name).clone().requires_grad_() for name in _LEARNED})
    optimizer = torch.optim.Adam(
        learned.parameters(), lr=RATE / max(1.0, len(initial.shares) / 10.0), betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    generator = torch.Generator().manual_seed(seed)
    best, chance = (solver_objective(model, initial, pilot), initial), _chances(model, initial, pilot)
    with _frozen(model), torch.enable_grad():
        lean = _activation_bytes(model, initial, pilot.select(slice(batch_size))) > _MEMORY
        for i in range(iterations):
            index = torch.multinomial(chance, batch_size, replacement=True, generator=generator)
            weights = (1.0 / chance[index]).to(pilot.start.device)
            found = squared_errors(model, learned.tensors(), pilot.select(index.to(pilot.start.device)), lean=lean)
            optimizer.zero_grad()
            torch.autograd.backward([objective(each, weights) for each in found])
            size = torch.nn.utils.clip_grad_norm_(learned.parameters(), CLIP)
            if bool(torch.isfinite(size)):  # a batch that left the model's domain is skipped
                optimizer.step()
            schedule.step()
            if (i + 1) % max(1, iterations // _CHECKS) == 0 or i + 1 == iterations:
                now = replace(initial, **{name: getattr(learned, name).detach().clone() for name in _LEARNED})
                best = min(best, (solver_objective(model, now, pilot), now), key=lambda pair: pair[0])
            progress(i + 1, iterations)
    return best[1]


def _chances(model: Denoiser, initial: SolverParameters, pilot: Pilot) -> Tensor:
    """Return the probability of each trajectory to be drawn, ``(n,)``: half even, half by the initial error.

    A few trajectories, between two modes, make most of the RMS. Drawn more often and weighted less, they are in every
    batch, and the gradient has the same mean with less noise (importance sampling).
    """
    solver, batches = initial.tensors(), zip(*(torch.split(t, _INITIAL) for t in pilot), strict=True)
    with torch.no_grad():
        errors = [squared_errors(model, solver, Pilot(*batch))[0] for batch in batches]
    size = torch.cat(errors).cpu().double().sqrt().nan_to_num(posinf=0.0)
    even = torch.full_like(size, 1.0 / len(size))
    return 0.5 * even + 0.5 * (size + _LEAST_ERROR) / (size + _LEAST_ERROR).sum()


def solver_objective(model: Denoiser, parameters: SolverParameters, pilot: Pilot) -> float:
    """Evaluate the objective on the first of the trajectories; infinite where the solver does not stay finite."""
    with torch.no_grad():
        found = squared_errors(model, parameters.tensors(), pilot.select(slice(_VALIDATION)))
        value = float(sum(objective(each) for each in found))
    return value if math.isfinite(value) else math.inf


_LEARNED = ("shares", "step", "back", "offsets")


def _activation_bytes(model: Denoiser, initial: SolverParameters, pilot: Pilot) -> int:
    """Estimate the bytes of activations that the gradient of one solve keeps, from one forward.

    Raises:
        ValueError: if no gradient flows through the model.
    """
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    x = pilot.start.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        x0 = model.rows(pilot.row).split(x, model.sde.t_max).x0
    slope = torch.autograd.grad(x0.sum(), x, allow_unused=True)[0] if x0.requires_grad else None
    if slope is None or not bool(slope.any()):
        raise ValueError(
            "no gradient comes through the model: a solver is tuned by gradients with respect to the state"
        )
    return kept * len(initial.shares)


@contextmanager
def _frozen(model: Denoiser) -> Iterator[None]:
    """Keep gradients from the model's own parameters while entered."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
