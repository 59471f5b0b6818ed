r"""The terms of a discrete chain's bound, summed over all steps or estimated from sampled ones.

With rho the bridge's variance over the reverse step's, entry by entry, and ``h = lambda_s - lambda_t`` the step in half
log-SNR, a step costs

    1/2 sum [rho - 1 - log rho + rho expm1(2 h) (eps - eps_hat)^2]

(Kingma et al. 2021, eq. 13-14, for rho = 1), which holds for any process at any instants. The log-variance of the
reverse step lies at a fraction f between that of the bridge ("posterior", f = 0) and that of the forward step
("marginal", f = 1), ``rho = (sin_s / sin_t)^(2 f)``; a network may have learned f (Nichol & Dhariwal 2021, eq. 15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.gaussian import GaussianErrors, gaussian_kl
from sdediff.likelihood.bound.stratified import (
    LevelDistribution,
    StratifiedVariance,
    stratified_pairs,
    variance_of_draws,
    variance_of_pairs,
)
from sdediff.likelihood.discrete.decoder import Decoder, reconstruction_cost
from sdediff.noise import NoiseSource, Stage
from sdediff.numerics import choose, expand, sum_features, wide, widest
from sdediff.samplers.ancestral import VARIANCES
from sdediff.samplers.bridge import bridge_std
from sdediff.types import Level, Split


class Variance(NamedTuple):
    """A choice of the reverse steps' variance.

    Attributes:
        fixed: fraction of the way from the bridge's log-variance to the forward step's; ``None`` where the network has
            learned one for every entry.
    """

    fixed: float | None

    @property
    def single_fraction(self) -> float:
        """Fraction for formulas of a single number; 0 for a learned one."""
        return 0.0 if self.fixed is None else self.fixed

    def fraction(self, split: Split) -> float | Tensor:
        """Return the fraction, one number or one an entry.

        Raises:
            ValueError: if the model has not learned it.
        """
        if self.fixed is not None:
            return self.fixed
        if split.fraction is None:
            raise ValueError('the model has no learned variance: choose variance="posterior" or "marginal"')
        return wide(split.fraction)


def reverse_variance(name: str) -> Variance:
    """Return a variance of the reverse steps by its name, one of those of ancestral sampling.

    Raises:
        ValueError: for an unknown name.
    """
    return Variance(choose(VARIANCES, name, "variance"))


class BoundBatch(NamedTuple):
    """A batch of data with its noise, decoder and control variate.

    Attributes:
        x0: data in the model's units, ``(B, *shape)``.
        noise: noise source of the items.
        decoder: decoder of these data.
        control: control variate, errors with a given mean.
    """

    x0: Tensor
    noise: NoiseSource
    decoder: Decoder
    control: GaussianErrors


class Terms(NamedTuple):
    """The terms of a batch.

    Attributes:
        diffusion: terms of the steps or strata, ``(rows, B)``.
        reconstruction: reconstruction terms, ``(B,)``.
        variance: variance of their sum, over noise and levels.
        nfe: forwards of the network.
    """

    diffusion: Tensor
    reconstruction: Tensor
    variance: StratifiedVariance
    nfe: int


class ChainSteps:
    """The steps of a chain.

    Args:
        levels: levels of the instants ``t_1 < ... < t_N``.
        variance: variance of the reverse steps.
    """

    def __init__(self, levels: Sequence[Level[float]], variance: Variance) -> None:
        self.levels, self._variance = list(levels), variance
        pairs = list(pairwise(levels))
        self.half_log_snr = torch.tensor([level.half_log_snr for level in levels], dtype=torch.float64)
        self._gain = torch.expm1(-2.0 * self.half_log_snr.diff())
        self._range = torch.tensor([2.0 * math.log(t.sin / s.sin) for s, t in pairs], dtype=torch.float64)
        self._clipped = bridge_std(*pairs[0][::-1]) if pairs else levels[0].sin
        log_rho = -variance.single_fraction * self._range
        self._excess = gaussian_kl(torch.zeros_like(log_rho), log_rho)  # an entry's cost without errors
        self.weight = 0.5 * log_rho.exp() * self._gain
        """Weights ``(N - 1,)`` of the squared errors in the cost, for the single fraction."""

    def cost(self, split: Split, eps: Tensor, step: int | Tensor) -> Tensor:
        """Return the KL of the step from the state of ``split``, one for all or one a sample, float64 ``(B,)``."""
        error = wide(split.eps - eps)
        gain, span = (expand(_pick(values, step, values.device), error) for values in (self._gain, self._range))
        log_rho = torch.as_tensor(-self._variance.fraction(split) * span, dtype=error.dtype, device=error.device)
        return sum_features(gaussian_kl(log_rho.exp() * gain * error.square(), log_rho))

    def distribution(self, mass: Tensor) -> LevelDistribution:
        """Return the distribution of sampled steps, given the mass of a distribution of the half log-SNR on each.

        A long step weighs its errors more than its width in lambda, which matters only where signal is left at its
        noisier end: below, errors fall as fast as the weight grows.
        """
        signal = torch.sigmoid(2.0 * self.half_log_snr[1:])
        return LevelDistribution(
            self.half_log_snr, mass * (signal * self.weight / -self.half_log_snr.diff() + 1.0 - signal)
        )

    def gaussian_cost(self, control: GaussianErrors, dim: int) -> Tensor:
        """Return the mean of the Gaussian denoiser's cost over the noise, ``(N - 1, B)``."""
        dtype = widest(control.device)
        excess, weight = (values[:, None].to(control.device, dtype) for values in (self._excess, self.weight))
        return dim * excess + weight * control.mean(self.half_log_snr[1:])

    def drawn_gaussian_cost(self, control: GaussianErrors, eps: Tensor, step: int | Tensor) -> Tensor:
        """Return the Gaussian denoiser's cost at a draw of the noise, ``(B,)``."""
        values = (self.half_log_snr[1:], self.weight, self._excess)
        lam, weight, excess = (_pick(value, step, control.device) for value in values)
        return eps[0].numel() * excess + weight * control.squared_error(eps, lam)

    def decoder_std(self, split: Split) -> float | Tensor:
        """Return the standard deviation of the first step, in the model's units.

        Its bridge ends on the data and has no variance. The forward step's variance is ``sin^2`` (beta_1); a learned
        one lies between that and the next bridge's, where Nichol & Dhariwal's (2021) code clips its lower bound.
        """
        if self._variance.fixed is not None:
            return self.levels[0].sin
        return self._clipped * (self.levels[0].sin / self._clipped) ** self._variance.fraction(split)


def _pick(values: Tensor, step: int | Tensor, device: torch.device) -> float | Tensor:
    """Return the value of one step, a float, or of one step a sample."""
    return values[step].to(device, widest(device)) if isinstance(step, Tensor) else float(values[step])


def split_at(model: Denoiser, x0: Tensor, eps: Tensor, level: Level) -> Split:
    """Return the model's split of the state ``alpha x0 + sigma eps``; one forward."""
    result: Split = model(level.perturb(x0, eps), level)
    return result


@torch.no_grad()
def chain_terms(model: Denoiser, items: BoundBatch, steps: ChainSteps, draw: int) -> tuple[Tensor, Tensor]:
    """Return L_{t-1} of ``(N - 1, B)`` and L_0 of ``(B,)``, from one draw of the noise at each instant."""
    rows = steps.gaussian_cost(items.control, items.x0[0].numel())
    for step, level in enumerate(steps.levels[1:]):
        eps = items.noise.normal(step + 1, stage=Stage.BOUND + draw)
        split = split_at(model, items.x0, eps, level)
        rows[step] += steps.cost(split, eps, step) - steps.drawn_gaussian_cost(items.control, eps, step)
    return rows, _reconstruction(model, items, steps, draw)


def _reconstruction(model: Denoiser, items: BoundBatch, steps: ChainSteps, draw: int) -> Tensor:
    eps = items.noise.normal(0, stage=Stage.BOUND + draw)
    return reconstruction_cost(model, items.x0, eps, steps.levels[0], items.decoder, steps.decoder_std, items.control)


def every_step(model: Denoiser, items: BoundBatch, steps: ChainSteps, samples: int) -> Terms:
    """Return all terms, as the mean over draws of the noise."""
    draws = [chain_terms(model, items, steps, draw) for draw in range(samples)]
    diffusion, reconstruction = (torch.stack(terms) for terms in zip(*draws, strict=True))
    variance = variance_of_draws(diffusion.sum(dim=1) + reconstruction)
    nfe = samples * (len(steps.levels) - 1 + items.decoder.denoised)
    return Terms(diffusion.mean(dim=0), reconstruction.mean(dim=0), variance, nfe)


@torch.no_grad()
def sampled_steps(
    model: Denoiser, items: BoundBatch, steps: ChainSteps, distribution: LevelDistribution, draws: int, samples: int
) -> Terms:
    """Estimate the terms from sampled steps: each row is unbiased, its randomness that of the draws of its step."""
    rows = steps.gaussian_cost(items.control, items.x0[0].numel())
    sampled = distribution.cell(stratified_pairs(items.noise, draws, Stage.BOUND_LEVELS))
    times = torch.tensor([level.t for level in steps.levels[1:]], dtype=torch.float64)
    values = []
    for i, step in enumerate(sampled):
        eps = items.noise.normal(i, stage=Stage.BOUND_SAMPLED)
        split = split_at(model, items.x0, eps, model.sde.level(times[step]))
        excess = steps.cost(split, eps, step) - steps.drawn_gaussian_cost(items.control, eps, step)
        values.append(excess / distribution.probability[step].to(excess))
        rows.scatter_add_(0, step[None].to(rows.device), values[-1][None] / draws)
    last = torch.stack([_reconstruction(model, items, steps, draw) for draw in range(samples)])
    variance = variance_of_pairs(torch.stack(values)) + variance_of_draws(last)
    return Terms(rows, last.mean(dim=0), variance, draws + samples * items.decoder.denoised)
