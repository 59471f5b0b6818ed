"""The densities obey their Fokker-Planck equations, forwards in t and backwards in lambda for every eta.

Residuals are taken pointwise in the logarithm, by automatic differentiation in float64, relative to their largest term:

    d/dt log p = -div(f x) - (f x) . s + g^2 / 2 (div s + |s|^2),        s = grad log p
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quadrature import carry_density, exact_density
from scipy.special import ndtr
from torch import Tensor

from catalogue import MIXTURE, MIXTURE_1D, PROCESSES
from sdediff import SDE, VPSDE, Denoiser
from sdediff.analytic import GaussianMixture
from sdediff.dynamics import diffusion, drift, to_x
from sdediff.numerics import expand, sum_features
from sdediff.samplers.ddim import DDIM
from sdediff.samplers.euler_maruyama import EulerMaruyama
from sdediff.selftest.convergence import probability_flow, slope, uniform_logsnr

ROUNDING = 1e-9  # 1e-16 through divisions by sigma^2 >= 1e-4 and log-densities of order 1e3
ETAS = (0.0, 0.3, 0.7, 1.0)


def divergence(field: Tensor, x: Tensor) -> Tensor:
    """Exact, ``(B,)``."""
    rows = [torch.autograd.grad(field[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(x.shape[1])]
    return torch.stack(rows).sum(dim=0)


def relative(terms: list[Tensor]) -> float:
    """The largest residual over the batch, in units of the largest term."""
    stacked = torch.stack(terms).detach()
    return float((stacked.sum(dim=0).abs() / stacked.abs().max(dim=0).values).max())


def points(sde: SDE, data: GaussianMixture = MIXTURE) -> tuple[Tensor, Tensor]:
    """States and times, typical ones and some way off, from near the data to the noise."""
    t = torch.tensor([0.0103, 0.0517, 0.1313, 0.2519, 0.4021, 0.5531, 0.7079, 0.8513, 0.9533], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    x0 = data.sample(len(t), seed=1)
    eps = torch.randn(x0.shape, generator=rng, dtype=torch.float64)
    return sde.perturb(x0, t, 1.5 * eps), t


def forward_residual(sde: SDE, model: Denoiser) -> float:
    """Of the mixture's density, with the model's score."""
    x, t = points(sde)
    x.requires_grad_()
    t.requires_grad_()
    (in_time,) = torch.autograd.grad(MIXTURE.log_prob(x, sde, t).sum(), t)
    score, field = model.score(x, t), sde.drift(x, t)
    half_g2 = 0.5 * sde.diffusion(t).square()
    return relative(
        [
            in_time,
            divergence(field, x),
            sum_features(field * score),
            -half_g2 * divergence(score, x),
            -half_g2 * sum_features(score.square()),
        ]
    )


def reverse_residual(sde: SDE, model: Denoiser, eta: float) -> float:
    """Of the same density in the frame, under the reverse process with ``eta`` and the model's split."""
    x, t = points(sde)
    clock = sde.half_log_snr(t).requires_grad_()
    level = sde.level_at(clock)
    y = (x / expand(level.scale, x)).detach().requires_grad_()
    log_density = MIXTURE.log_prob(to_x(y, level), sde, sde.time(clock)) + 2.0 * torch.as_tensor(level.scale).log()
    (in_clock,) = torch.autograd.grad(log_density.sum(), clock, retain_graph=True)
    (score,) = torch.autograd.grad(log_density.sum(), y, create_graph=True)
    field = drift(y, model(to_x(y, level), level), level, eta)
    half_g2 = 0.5 * torch.as_tensor(diffusion(level, eta)).square()
    return relative(
        [
            in_clock,
            divergence(field, y),
            sum_features(field * score),
            -half_g2 * divergence(score, y),
            -half_g2 * sum_features(score.square()),
        ]
    )


OTHER = GaussianMixture(MIXTURE.means, 0.2, MIXTURE.weights)
"""A plausible mixture that is not the data: the control's score."""


def test_forward_equation(sde: SDE) -> None:
    assert forward_residual(sde, MIXTURE.model(sde)) < ROUNDING
    assert forward_residual(sde, OTHER.model(sde)) > 1e-3


@pytest.mark.parametrize("eta", ETAS)
def test_reverse_equation(sde: SDE, eta: float) -> None:
    assert reverse_residual(sde, MIXTURE.model(sde), eta) < ROUNDING
    assert reverse_residual(sde, OTHER.model(sde), eta) > 1e-3


def test_score_is_the_gradient_of_the_log_density(sde: SDE) -> None:
    x, t = points(sde)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_prob(x, sde, t).sum(), x)
    torch.testing.assert_close(MIXTURE.model(sde).score(x, t).detach(), gradient, rtol=1e-9, atol=1e-10)


# ---- the same marginals through the solvers ------------------------------------------------------------------


def density_errors(sampler: EulerMaruyama | DDIM, steps: int) -> list[float]:
    """Total variation from the truth at three nodes on the way, which are the same at every number of steps."""
    sde = VPSDE()
    times = uniform_logsnr(sde, steps, sde.t_max, 0.04)
    x, densities = carry_density(sampler, MIXTURE_1D, sde, times, reach=5.0, points=501)
    nodes = [steps // 2, 3 * steps // 4, steps]
    column = torch.from_numpy(x)[:, None]
    truths = [exact_density(MIXTURE_1D, sde, column, float(times[i])) for i in nodes]
    return [0.5 * float(np.trapezoid(np.abs(densities[i] - p), x)) for i, p in zip(nodes, truths, strict=True)]


@pytest.mark.parametrize("sampler", [EulerMaruyama(0.5), EulerMaruyama(1.0), DDIM(0.5), DDIM(1.0)], ids=str)
def test_solvers_tend_to_the_same_densities(sampler: EulerMaruyama | DDIM) -> None:
    """For eta = 1/2 and 1 alike, by two methods, the error at every node vanishes, at order 1."""
    sizes = (32, 64)
    errors = [density_errors(sampler, n) for n in sizes]
    for at_node in zip(*errors, strict=True):
        assert abs(slope(sizes, at_node) - 1.0) < 0.2


def distribution(x: Tensor, sde: SDE, t: float) -> Tensor:
    """P(x_t <= x) for the mixture on a line, in closed form."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    means, variances = MIXTURE_1D.means[:, 0], torch.tensor([0.09, 0.16], dtype=torch.float64)
    z = (x - alpha * means) / (alpha**2 * variances + sigma**2).sqrt()
    return torch.from_numpy(ndtr(z.numpy())) @ MIXTURE_1D.weights


@pytest.mark.parametrize("process", ["vp", "cosine", "subvp", "ve", "ve-exponential", "flow", "ddpm-random"])
def test_probability_flow_keeps_the_distribution_function(process: str) -> None:
    """On a line the flow keeps every quantile: P(x_t <= x) is constant along its paths; eta = 0 has the marginals."""
    sde = PROCESSES[process]
    scale = float(sde.level(sde.t_max).scale)
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None] * scale
    model = MIXTURE_1D.model(sde)
    for t_to in (0.5, 0.1, 1e-3):
        end = probability_flow(model, x, sde.t_max, t_to)
        start_p, end_p = distribution(x, sde, sde.t_max), distribution(end, sde, t_to)
        torch.testing.assert_close(end_p, start_p, rtol=0.0, atol=1e-9)
