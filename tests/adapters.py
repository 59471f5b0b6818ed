"""Somebody else's samplers, likelihoods and bounds, as ``sdediff selftest --target`` takes them: right ones, and the
field's faults. Each is written from its own formulas; of the model only the exact score, noise or clean half is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import sdediff
from sdediff import ScoreModel

BETA_MIN, BETA_MAX, T_MIN = 0.1, 20.0, 1e-4
LOG_2PI = math.log(2.0 * math.pi)


def beta(t: float) -> float:
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def normal(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def times(steps: int) -> list[float]:
    """From 1 to ``T_MIN``, finer near the data."""
    return [T_MIN + (1.0 - T_MIN) * (1.0 - i / steps) ** 2 for i in range(steps + 1)]


# ---- samplers --------------------------------------------------------------------------------------------------------


def euler_maruyama(
    model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int, drift: float = 0.5, diffusion: float = 1.0
) -> Tensor:
    """The reverse VP-SDE; its drift is ``-beta x / 2``, its diffusion ``sqrt(beta)``."""
    rng = torch.Generator().manual_seed(seed)
    x, grid = normal(shape, rng), times(steps)
    for t, s in pairwise(grid):
        variance = diffusion**2 * beta(t) * (t - s)
        x = x + drift * beta(t) * (t - s) * x + variance * model.score(x, t) + math.sqrt(variance) * normal(shape, rng)
    return x


def half_drift_twice(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """Fault: the drift without its half."""
    return euler_maruyama(model, shape, steps=steps, seed=seed, drift=1.0)


def double_diffusion(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """Fault: the square of the diffusion twice too large."""
    return euler_maruyama(model, shape, steps=steps, seed=seed, diffusion=math.sqrt(2.0))


def by_sigma(model: ScoreModel) -> Callable[[Tensor, float], Tensor]:
    """A denoiser of ``x0 + sigma eps``, as k-diffusion has it."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        t = float(model.sde.time(-math.log(sigma)))
        return model.denoise(float(model.sde.alpha(t)) * x, t)

    return denoise


def karras(model: ScoreModel, steps: int) -> list[float]:
    high, low = (math.exp(-float(model.sde.half_log_snr(t))) ** (1 / 7) for t in (1.0, T_MIN))
    return [*((high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)), 0.0]


def k_heun(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """Heun on ``dx / d sigma = (x - D) / sigma`` (Karras et al. 2022)."""
    denoise, sigmas = by_sigma(model), karras(model, steps)
    x = sigmas[0] * normal(shape, torch.Generator().manual_seed(seed))
    for here, there in pairwise(sigmas):
        slope = (x - denoise(x, here)) / here
        moved = x + (there - here) * slope
        if there > 0.0:
            moved = x + 0.5 * (there - here) * (slope + (moved - denoise(moved, there)) / there)
        x = moved
    return x


def k_dpmpp_2m(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """DPM-Solver++(2M)."""
    denoise, sigmas = by_sigma(model), karras(model, steps)
    x = sigmas[0] * normal(shape, torch.Generator().manual_seed(seed))
    old, old_width = None, 0.0
    for here, there in pairwise(sigmas):
        now = denoise(x, here)
        if there == 0.0:
            return now
        width = math.log(here / there)
        ratio = old_width / width
        mixed = now if old is None else (1 + 1 / (2 * ratio)) * now - old / (2 * ratio)
        x = there / here * x - math.expm1(-width) * mixed
        old, old_width = now, width
    return x


def ddim(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    x, grid = normal(shape, torch.Generator().manual_seed(seed)), times(steps)
    for t, s in pairwise(grid):
        eps = model.epsilon(x, t)
        x0 = (x - float(model.sde.sigma(t)) * eps) / float(model.sde.alpha(t))
        x = float(model.sde.alpha(s)) * x0 + float(model.sde.sigma(s)) * eps
    return x


def ancestral(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """The DDPM chain, by its own betas."""
    rng = torch.Generator().manual_seed(seed)
    x, bars = normal(shape, rng), [float(model.sde.alpha(i / steps)) ** 2 for i in range(steps + 1)]
    for i in range(steps, 0, -1):
        own = 1.0 - bars[i] / bars[i - 1]
        eps = model.epsilon(x, i / steps)
        x = (x - own / math.sqrt(1.0 - bars[i]) * eps) / math.sqrt(1.0 - own)
        if i > 1:
            x = x + math.sqrt(own) * normal(shape, rng)
    return x


def flow_by_scipy(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    """The probability-flow ODE by RK45, as score_sde solves it."""

    def field(t: float, flat: object) -> object:
        x = torch.as_tensor(flat, dtype=torch.float64).reshape(shape)
        return (-0.5 * beta(t) * (x + model.score(x, t))).numpy().ravel()

    x = normal(shape, torch.Generator().manual_seed(seed)).numpy().ravel()
    end = solve_ivp(field, (1.0, T_MIN), x, rtol=1e-4, atol=1e-4).y[:, -1]
    return torch.from_numpy(end.copy()).reshape(shape)


def the_library(model: ScoreModel, shape: tuple[int, ...], *, steps: int, seed: int) -> Tensor:
    return sdediff.sample(model, shape, "dpm++2m", steps=steps, seed=seed)


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def divergence(field: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The field, and ``probe^T J probe`` of every probe, ``(K, B)``."""
    with torch.enable_grad():
        many = x.detach().repeat(len(probes), 1).requires_grad_()
        value = field(many)
        (moved,) = torch.autograd.grad(value, many, probes.reshape(many.shape))
    return value.detach()[: len(x)], (moved.reshape(probes.shape) * probes).sum(dim=2)


def along_the_flow(model: ScoreModel, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """50 steps of Heun to the prior: ``log p`` of the end, and the integral of each probe's divergence."""
    grid, total = times(50)[::-1], torch.zeros(len(probes), len(x), dtype=torch.float64)

    def at(t: float) -> Callable[[Tensor], Tensor]:
        return lambda y: -0.5 * beta(t) * (y + model.score(y, t))

    for s, t in pairwise(grid):
        first, own = divergence(at(s), x, probes)
        second, other = divergence(at(t), x + (t - s) * first, probes)
        x, total = x + 0.5 * (t - s) * (first + second), total + 0.5 * (t - s) * (own + other)
    return -0.5 * (x.square() + LOG_2PI).sum(dim=1), total


def exact_trace(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    units = torch.eye(x.shape[1], dtype=x.dtype)[:, None, :].expand(-1, len(x), -1)
    prior, traces = along_the_flow(model, x, units)
    return prior + traces.sum(dim=0)


def signs(x: Tensor, count: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, *x.shape), generator=rng).to(x) * 2.0 - 1.0


def hutchinson(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    prior, traces = along_the_flow(model, x, signs(x, 4, seed))
    return prior + traces.mean(dim=0)


def hutchinson_with_errors(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of 32 Gaussian probes, whose mean is nearly normal."""
    probes = normal((32, *x.shape), torch.Generator().manual_seed(seed))
    prior, traces = along_the_flow(model, x, probes)
    return prior + traces.mean(dim=0), traces.std(dim=0) / math.sqrt(32.0)


def hutchinson_undivided(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Fault: the sum over the probes."""
    prior, traces = along_the_flow(model, x, signs(x, 4, seed))
    return prior + traces.sum(dim=0)


def overconfident(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Fault: the probes' spread, divided by their number instead of its root."""
    probes = normal((32, *x.shape), torch.Generator().manual_seed(seed))
    prior, traces = along_the_flow(model, x, probes)
    return prior + traces.mean(dim=0), traces.std(dim=0) / 32.0


def one_euler_step(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Fault: a density that does not integrate to 1, of a flow solved in one Euler step."""
    units = torch.eye(x.shape[1], dtype=x.dtype)[:, None, :].expand(-1, len(x), -1)
    field, traces = divergence(lambda y: -0.5 * beta(0.5) * (y + model.score(y, 0.5)), x, units)
    return -0.5 * ((x + field).square() + LOG_2PI).sum(dim=1) + traces.sum(dim=0)


def unnormalised_prior(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Fault: a density that does not integrate to 1, for the prior's does not."""
    return exact_trace(model, x, steps=steps, seed=seed) + 0.5 * LOG_2PI * x.shape[1]


def library_likelihood(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    result = sdediff.log_likelihood(model, x, seed=seed, trace="hutchinson", probes=4)
    low, high = result.interval()
    return result.log_prob, (high - low) / 3.92


def library_without_probes(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Exact traces: the standard error is that of no probes, 0, beside which the error of the steps is small."""
    result = sdediff.log_likelihood(model, x, seed=seed, trace="exact", steps=steps)
    return result.log_prob, result.standard_error


# ---- bounds ----------------------------------------------------------------------------------------------------------


def log_normal(x: Tensor, mean: Tensor | float, variance: float) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + math.log(variance) + LOG_2PI).sum(dim=-1)


def chain_log_weights(model: ScoreModel, x0: Tensor, steps: int, rng: torch.Generator) -> Tensor:
    """Log of ``p(x_0 .. x_T) / q(x_1 .. x_T | x_0)`` of one path an item, drawn backwards."""
    bars = [float(model.sde.alpha(i / steps)) ** 2 for i in range(steps + 1)]
    x = math.sqrt(bars[-1]) * x0 + math.sqrt(1.0 - bars[-1]) * normal(x0.shape, rng)
    total = log_normal(x, 0.0, 1.0) - log_normal(x, math.sqrt(bars[-1]) * x0, 1.0 - bars[-1])
    for i in range(steps, 0, -1):
        own = 1.0 - bars[i] / bars[i - 1]
        clean = model.denoise(x, i / steps)
        if i == 1:
            return total + log_normal(x0, clean, own)
        variance = own * (1.0 - bars[i - 1]) / (1.0 - bars[i])
        from_x, from_x0 = (
            math.sqrt(1.0 - own) * (1.0 - bars[i - 1]) / (1.0 - bars[i]),
            math.sqrt(bars[i - 1]) * own / (1.0 - bars[i]),
        )
        true = from_x * x + from_x0 * x0
        there = true + math.sqrt(variance) * normal(x0.shape, rng)
        total = total + log_normal(there, from_x * x + from_x0 * clean, variance) - log_normal(there, true, variance)
        x = there
    raise AssertionError


def chain_bound(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    return -chain_log_weights(model, x, steps, torch.Generator().manual_seed(seed))


def importance(model: ScoreModel, x: Tensor, *, steps: int, seed: int, normalise: bool = True) -> Tensor:
    """The importance-weighted bound of 16 paths (Burda et al. 2016)."""
    rng, count = torch.Generator().manual_seed(seed), 16
    weights = chain_log_weights(model, x.repeat(count, 1), 50, rng).reshape(count, len(x))
    return -(weights.logsumexp(dim=0) - (math.log(count) if normalise else 0.0))


def importance_without_log_k(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Fault: the sum of the weights for their mean."""
    return importance(model, x, steps=steps, seed=seed, normalise=False)


def continuous_bound(model: ScoreModel, x: Tensor, *, steps: int, seed: int, least: float = 1e-5) -> Tensor:
    """``int |eps - eps_hat|^2 d lambda`` from levels uniform in lambda, down to ``least`` (Kingma et al. 2021)."""
    rng, dim, draws = torch.Generator().manual_seed(seed), x.shape[1], 64
    sde = model.sde
    alpha, sigma = float(sde.alpha(1.0)), float(sde.sigma(1.0))
    prior = 0.5 * (alpha**2 * x.square() + sigma**2 - 1.0 - 2.0 * math.log(sigma)).sum(dim=1)
    end = float(sde.half_log_snr(1e-5))
    decoder = torch.full((len(x),), 0.5 * dim * (LOG_2PI + 1.0) - dim * end, dtype=torch.float64)
    low, high = float(sde.half_log_snr(1.0)), float(sde.half_log_snr(least))
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(draws):
        share = (i + torch.rand(len(x), generator=rng, dtype=torch.float64)) / draws
        t = sde.time(low + (high - low) * share).clamp(1e-5, 1.0)
        eps = normal(x.shape, rng)
        found = model.epsilon(sde.perturb(x, t, eps), t)
        total = total + (high - low) / draws * (eps - found).square().sum(dim=1)
    return prior + total + decoder


def small_levels_unseen(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Fault: an estimator that never sees the small noise levels."""
    return continuous_bound(model, x, steps=steps, seed=seed, least=0.05)


def library_bound(model: ScoreModel, x: Tensor, *, steps: int, seed: int) -> Tensor:
    return sdediff.elbo(model, x, steps=1000, draws=16, seed=seed).total


RIGHT: dict[str, list[Callable[..., object]]] = {
    "sample": [euler_maruyama, k_heun, k_dpmpp_2m, ddim, ancestral, flow_by_scipy, the_library],
    "likelihood": [exact_trace, hutchinson, hutchinson_with_errors, library_likelihood, library_without_probes],
    "bound": [chain_bound, importance, continuous_bound, library_bound],
}
WRONG: dict[str, list[Callable[..., object]]] = {
    "sample": [half_drift_twice, double_diffusion],
    "likelihood": [hutchinson_undivided, overconfident, one_euler_step, unnormalised_prior],
    "bound": [importance_without_log_k, small_levels_unseen],
}
