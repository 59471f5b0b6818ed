"""The discrete bound converges in N: to the continuous-time bound, and on Gaussian data to the entropy.

No Monte Carlo: on Gaussian data every term is quadratic in the data and the noise, so that all sign patterns of unit
normals average to the exact expectation. With gamma the SNR and c the data's variances, the continuous-time bound
between two levels is ``1/2 sum log((1 + c gamma_1) / (1 + c gamma_T))`` (Kingma et al. 2021, eq. 15). Both choices of
variance sum it by a one-sided rule, hence order 1.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN
from sdediff import DDPM, GRIDS, SDE, VPSDE, CosineVPSDE, elbo
from sdediff.gaussian import GaussianErrors
from sdediff.likelihood.bound.chain import BoundBatch, ChainSteps, chain_terms, reverse_variance
from sdediff.likelihood.discrete.decoder import density_decoder

SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
X0 = GAUSSIAN.mean + SIGNS[:, :2] @ torch.linalg.cholesky(GAUSSIAN.covariance).T
C = torch.linalg.eigvalsh(GAUSSIAN.covariance)
ENTROPY = 0.5 * float((torch.log(2.0 * math.pi * C) + 1.0).sum())


class SignPatterns:
    """Stands in for the noise: with the data above, every second moment is that of independent normals."""

    def normal(self, step: int, stage: int = 0) -> Tensor:
        return SIGNS[:, 2:]


def expected_terms(sde: SDE, times: Tensor, variance: str) -> tuple[Tensor, Tensor, Tensor]:
    """Exact expectations of L_T (against the data's own Gaussian), each L_{t-1}, and L_0."""
    levels = sde.levels(times)
    items = BoundBatch(X0, SignPatterns(), density_decoder(X0), GaussianErrors.none(X0))
    diffusion, reconstruction = chain_terms(
        GAUSSIAN.model(sde), items, ChainSteps(levels, reverse_variance(variance)), 0
    )
    prior = GAUSSIAN.moments.kl(X0, levels[-1])
    return prior.mean(), diffusion.mean(dim=1), reconstruction.mean()


def gap_to_entropy(chain: DDPM, variance: str) -> float:
    prior, diffusion, reconstruction = expected_terms(chain, chain.instants[1:], variance)
    return float(prior + diffusion.sum() + reconstruction) - ENTROPY


def slope(steps: list[int], errors: list[float]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


STEPS = [100, 200, 400, 800]


@pytest.mark.parametrize("make", [DDPM.linear, VPSDE().discretize], ids=["linear", "discretised"])
def test_marginal_chain_reaches_the_entropy_at_order_one(make):
    gaps = [gap_to_entropy(make(n), "marginal") for n in STEPS]
    assert min(gaps) > 0.0  # a bound
    assert slope(STEPS, gaps) == pytest.approx(1.0, abs=0.05)


def closed_gap(chain: DDPM, variance: str) -> float:
    """The same gap in closed form, for chains of any length.

    Per direction the noise's squared error is ``c gamma / (1 + c gamma)`` and x0's is ``c / (1 + c gamma)``.
    """
    alpha_bar = torch.cumprod(1.0 - torch.tensor(chain.betas, dtype=torch.float64), 0)
    snr = (alpha_bar / (1.0 - alpha_bar))[:, None]
    rho = {
        "posterior": torch.ones_like(snr[1:]),
        "marginal": (1.0 - alpha_bar[:-1, None]) / (1.0 - alpha_bar[1:, None]),
    }
    error = C * snr / (1.0 + C * snr)
    ratio = rho[variance]
    diffusion = 0.5 * (ratio - 1.0 - ratio.log() + ratio * (snr[:-1] / snr[1:] - 1.0) * error[1:])
    beta = chain.betas[0]
    reconstruction = 0.5 * (math.log(2.0 * math.pi * beta) + C / (1.0 + C * snr[0]) / beta)
    end = 0.5 * torch.log1p(C * snr[-1])  # E KL(q(x_T | x0) || p_T) is the information left in x_T
    return float(diffusion.sum() + reconstruction.sum() + end.sum()) - ENTROPY


@pytest.mark.parametrize("variance", ["posterior", "marginal"])
@pytest.mark.parametrize("chain", [DDPM.linear(1), DDPM.linear(2), DDPM.linear(100), DDPM.cosine(50)])
def test_gap_has_its_closed_form(chain, variance):
    # rounding of 1 - alpha-bar in the closed form: 1e-16 / beta_1, of which log and ratio are taken
    assert gap_to_entropy(chain, variance) == pytest.approx(closed_gap(chain, variance), rel=1e-10, abs=1e-10)


def test_posterior_chain_stays_half_of_euler_gamma_above():
    """Where ``c gamma >> 1``, ``gamma ~ 1 / i`` and instant i costs ``1/2 (1 / (i - 1) - log(i / (i - 1)))`` too much.

    The rest falls like ``beta(1) / beta(0) log N / N``, 200 log N / N here: at N = 1e6 below 3e-3 nats.
    """
    limit = 0.5 * np.euler_gamma * GAUSSIAN.dim
    steps = 1_000_000
    assert closed_gap(DDPM.linear(steps), "posterior") == pytest.approx(limit, abs=200.0 * math.log(steps) / steps)
    # Negative control: the marginal variance has no such floor.
    assert closed_gap(DDPM.linear(steps), "marginal") < 1e-4


@pytest.mark.parametrize("variance", ["posterior", "marginal"])
@pytest.mark.parametrize("sde", [VPSDE(), CosineVPSDE()], ids=["vp", "cosine"])
def test_bound_converges_to_continuous_time(sde, variance):
    steps, errors, central = [200, 400, 800], [], []
    for n in steps:
        times = GRIDS["logsnr"](sde, n, sde.t_max, 1e-3).flip(0)
        _, diffusion, _ = expected_terms(sde, times, variance)
        snr = torch.exp(2.0 * sde.half_log_snr(times))[:, None]
        limit = 0.5 * float((torch.log1p(C * snr[0]) - torch.log1p(C * snr[-1])).sum())
        errors.append(float(diffusion.sum()) - limit)
        error = C / (1.0 + C * snr)
        trapezoid = 0.25 * ((snr[:-1] - snr[1:]) * (error[1:] + error[:-1])).sum()
        central.append(abs(float(trapezoid) - limit))
    assert slope(steps, errors) == pytest.approx(1.0, abs=0.1)
    # Negative control: a central rule for the same integral is of order 2 and would be told apart.
    assert slope(steps, central) > 1.8


@pytest.mark.parametrize("variance", ["posterior", "marginal"])
def test_chain_tends_to_the_continuous_bound_item_by_item(variance):
    """Of Gaussian data neither has noise, for the control variate is their denoiser."""
    sde, x0, steps = VPSDE(), GAUSSIAN.sample(8, seed=1), [200, 400, 800]
    model = GAUSSIAN.model(sde)
    limit = elbo(model, x0, steps=math.inf, times=[1e-3, sde.t_max], draws=2)
    errors = []
    for n in steps:
        chain = elbo(model, x0, times=GRIDS["logsnr"](sde, n, sde.t_max, 1e-3).flip(0), variance=variance)
        errors.append((chain.diffusion.sum(dim=0) - limit.diffusion.sum(dim=0)).tolist())
    for own in zip(*errors, strict=True):
        assert slope(steps, np.abs(own).tolist()) == pytest.approx(1.0, abs=0.1)
    # Negative control: against the bound between other ends the error stays.
    other = elbo(model, x0, steps=math.inf, times=[1.1e-3, sde.t_max], draws=2).diffusion.sum(dim=0)
    assert slope(steps, (torch.tensor(errors) + limit.diffusion.sum(dim=0) - other).abs().mean(dim=1).tolist()) < 0.9
