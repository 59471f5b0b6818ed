r"""The variational bound of a discrete chain, all terms (Ho et al. 2020, eq. 5).

    -log p(x0)  <=  KL(q(x_T | x0) || prior)  +  sum_i E KL(q(x_s | x_t, x0) || p(x_s | x_t))  -  E log p(x0 | x_1)

over the instants ``t_1 < ... < t_N`` with ``s = t_{i-1}``, ``t = t_i``, ``i = 2 .. N``. The reverse step p is the
bridge with the denoiser's x0 in place of the real one and a variance of choice. With rho the bridge's variance over the
step's and ``lambda`` the half log-SNR, a step costs

    D/2 (rho - 1 - log rho) + rho/2 expm1(2 (lambda_s - lambda_t)) |eps - eps_hat|^2

(Kingma et al. 2021, eq. 13-14, for rho = 1), which holds for any process at any instants: a chain at its own, others
at those of their discretisation.

How far the bound stays from the likelihood as N grows hangs on the first instants, whose log-SNR never comes close.
On continuous data with ``beta(0) > 0`` the "marginal" variance reaches the likelihood at order 1 in ``1/N``; the
"posterior" one stays ``gamma / 2 = 0.289`` nats a dimension above it (gamma is Euler's constant).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sdediff.data.levels import to_values
from sdediff.denoiser import Denoiser
from sdediff.grids import GRIDS
from sdediff.likelihood.decoder import log_discretised_gaussian, log_gaussian
from sdediff.likelihood.dequantize import check_items, integer_data, network_dtype
from sdediff.moments import Moments
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, flatten, sum_features
from sdediff.samplers.ancestral import VARIANCES
from sdediff.samplers.base import bridge_std
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level

STAGE = 4
"""Stage of the noise source under which the first draw's noise comes; the next draws use the next stages."""


@dataclass(frozen=True)
class Elbo:
    """The terms of the bound for each item, nats; smaller is better.

    Attributes:
        prior: L_T, ``(B,)``, exact.
        diffusion: L_{t-1}, ``(N - 1, B)``; row ``i`` is the step from instant ``i + 2`` to ``i + 1``.
        reconstruction: L_0, ``(B,)``.
        standard_error: of the sum, from the spread of the noise draws, ``(B,)``; NaN for a single draw.
        nfe: forwards of the network.
        dim: entries of an item.
        discrete: whether the data were integers.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    standard_error: Tensor
    nfe: int
    dim: int
    discrete: bool

    @property
    def total(self) -> Tensor:
        """The bound on ``-log p``, nats ``(B,)``."""
        return self.prior + self.diffusion.sum(dim=0) + self.reconstruction

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits a dimension, of integer data, ``(B,)``.

        Raises:
            ValueError: for continuous data, whose density has units.
        """
        if not self.discrete:
            raise ValueError("bits/dim exist for integer data only; continuous data have total, in nats")
        return self.total / (math.log(2.0) * self.dim)


def elbo(
    model: Denoiser,
    x: Tensor,
    *,
    steps: int | None = None,
    times: Sequence[float] | Tensor | None = None,
    variance: str = "posterior",
    prior: str = "moments",
    samples: int = 1,
    data: DataInfo | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Elbo:
    """The variational bound of the chain, term by term.

    Args:
        model: a denoiser with its process.
        x: ``(B, *shape)``; integers are levels and have the discretised decoder, floats are continuous data and have
            the Gaussian density. The decoder's standard deviation is that of the first step, ``sqrt(beta_1)``.
        steps: length of the chain; by default a chain's own. Fewer stride it; processes that are no chain need it.
        times: the instants ``t_1 < ... < t_N`` themselves, instead.
        variance: of the reverse steps, ``"posterior"`` or ``"marginal"``.
        prior: ``"moments"`` for the Gaussian with the data's mean and covariance where the model knows them (else the
            standard one), ``"standard"`` for ``N(0, sigma^2)``.
        samples: draws of the noise at every instant.
        data: levels and range of integer data; the model's own by default.
        seed: the noise of item k at instant i is a function of ``(seed, first + k, i, draw)`` alone.
        first: index of the first item.
        batch_size: items taken at a time; all by default.
        progress: called as ``progress(done, total)`` after every batch, in items.

    Raises:
        ValueError: for options that are unknown or do not go together; for data that are not finite or not of the
            model's shape; for integers outside the levels, or whose levels are unknown.
        FloatingPointError: if a term is not finite.
    """
    check_items(x, model.data)
    info = None if x.is_floating_point() else integer_data(x, model.data if data is None else data)
    levels = model.sde.levels(_instants(model.sde, steps, times))
    choose(VARIANCES, variance, "variance")
    moments = choose({"moments": model.moments, "standard": None}, prior, "prior")
    size = len(x) if batch_size is None else batch_size
    if size < 1 or samples < 1:
        raise ValueError(f"samples and the batch size must be at least 1, not {samples} and {size}")
    parts = []
    for begin in range(0, len(x), size):
        batch = x[begin : begin + size]
        x0 = batch if info is None else to_values(batch, info, dtype=network_dtype(model))
        noise = NoiseSource(seed, x0.shape, first=first + begin, dtype=x0.dtype, device=x0.device)
        decoder = _decoder(batch, info)
        draws = [chain_terms(model, x0, levels, noise, draw, variance, decoder) for draw in range(samples)]
        parts.append(_average(prior_cost(x0, levels[-1], moments), draws))
        if progress is not None:
            progress(begin + len(batch), len(x))
    return _join(parts, len(levels) * samples * len(parts), x[0].numel(), info is not None)


Decoder = Callable[[Tensor, float], Tensor]
"""From the denoiser's x0 ``(B, *shape)`` and a standard deviation to the data's log-probability, nats ``(B,)``."""


def _decoder(x: Tensor, info: DataInfo | None) -> Decoder:
    if info is None:
        return lambda mean, std: log_gaussian(x, mean, std)
    return lambda mean, std: log_discretised_gaussian(x, mean, std, info)


def _instants(sde: SDE, steps: int | None, times: Sequence[float] | Tensor | None) -> Tensor:
    """``t_1 < ... < t_N``."""
    if times is not None:
        if steps is not None:
            raise ValueError("give either steps or times, not both")
        given = torch.as_tensor(times, dtype=torch.float64)
        if given.ndim != 1 or given.numel() == 0 or not bool((given > 0.0).all() and (given.diff() > 0.0).all()):
            raise ValueError("times must be instants t_1 < ... < t_N above 0, in a row")
        return given
    if steps is None:
        if sde.instants is None:
            raise ValueError(f"{type(sde).__name__} is not a chain: give the number of steps, or model a DDPM")
        return sde.instants[1:]
    return GRIDS["chain"](sde, steps, sde.t_max, 0.0).flip(0)[1:]


@torch.no_grad()
def chain_terms(
    model: Denoiser,
    x0: Tensor,
    levels: Sequence[Level[float]],
    noise: NoiseSource,
    draw: int,
    variance: str,
    decoder: Decoder,
) -> tuple[Tensor, Tensor]:
    """L_{t-1} of ``(N - 1, B)`` and L_0 of ``(B,)``, from one draw of the noise at each instant."""

    def denoise(step: int) -> tuple[Tensor, Tensor]:
        eps = noise.normal(step, stage=STAGE + draw)
        split = model(levels[step].alpha * x0 + levels[step].sigma * eps, levels[step])
        return split.x0, sum_features((split.eps - eps).double().square())

    dim = x0[0].numel()
    costs = []
    for step, (there, here) in enumerate(pairwise(levels), start=1):
        ratio = (bridge_std(here, there) / VARIANCES[variance](here, there)) ** 2
        weight = 0.5 * ratio * math.expm1(2.0 * (there.half_log_snr - here.half_log_snr))
        costs.append(0.5 * dim * (ratio - 1.0 - math.log(ratio)) + weight * denoise(step)[1])
    reconstruction = -decoder(denoise(0)[0], levels[0].sin)
    diffusion = torch.stack(costs) if costs else reconstruction.new_zeros(0, len(x0))
    if not bool(torch.isfinite(diffusion).all() and torch.isfinite(reconstruction).all()):
        raise FloatingPointError("a term of the bound is not finite; check the data and the model's output")
    return diffusion, reconstruction


def prior_cost(x0: Tensor, level: Level[float], moments: Moments | None) -> Tensor:
    """L_T: ``KL(N(alpha x0, sigma^2) || N(alpha m, alpha^2 C + sigma^2))`` in nats, float64 ``(B,)``."""
    x0 = x0.double()
    own = (Moments.zero(x0.shape[1:]) if moments is None else moments).to(x0)
    shift = flatten(level.alpha * (x0 - own.mean))
    shift = shift if own.basis is None else shift @ own.basis
    excess = level.alpha**2 * own.variances / level.sigma**2  # the prior's variance over sigma^2, less 1
    scaled = (shift / level.sigma).square()
    return 0.5 * ((scaled - excess) / (1.0 + excess) + torch.log1p(excess)).sum(dim=1)


def _average(prior: Tensor, draws: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Prior, diffusion and reconstruction terms in the mean over draws, and the standard error of their sum."""
    diffusion = torch.stack([terms[0] for terms in draws])
    reconstruction = torch.stack([terms[1] for terms in draws])
    totals = diffusion.sum(dim=1) + reconstruction
    error = totals.std(dim=0) / math.sqrt(len(draws)) if len(draws) > 1 else torch.full_like(prior, math.nan)
    return prior, diffusion.mean(dim=0), reconstruction.mean(dim=0), error


def _join(parts: Sequence[tuple[Tensor, ...]], nfe: int, dim: int, discrete: bool) -> Elbo:
    prior, diffusion, reconstruction, error = (torch.cat(terms, dim=-1) for terms in zip(*parts, strict=True))
    return Elbo(prior, diffusion, reconstruction, error, nfe, dim, discrete)
