"""The exact denoisers against definitions that share no code with them."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor

from catalogue import MIXTURE, MIXTURE_1D, SKEW
from sdediff import SDE, VPSDE
from sdediff.analytic import Gaussian, GaussianMixture

ISOTROPIC = GaussianMixture(((-1.0, 0.0, 0.5), (1.0, 0.3, -0.2)), (0.1, 0.4), (2.0, 1.0))
FULL = GaussianMixture(
    ISOTROPIC.means, torch.stack([v * torch.eye(3, dtype=torch.float64) for v in (0.1, 0.4)]), (2.0, 1.0)
)
SKEW_COVARIANCES = torch.tensor(
    [[[1.0, 0.4, -0.2], [0.4, 0.5, 0.1], [-0.2, 0.1, 0.3]], [[0.3, 0.0, 0.1], [0.0, 0.9, 0.3], [0.1, 0.3, 0.6]]],
    dtype=torch.float64,
)
POINTS = torch.tensor([[0.3, -0.4, 1.0], [2.0, 2.0, -1.0], [-0.9, 0.1, 0.4]], dtype=torch.float64)


def torch_mixture(data: GaussianMixture, covariances: Tensor, sde: SDE, t: float) -> torch.distributions.Distribution:
    """The same law from torch.distributions."""
    alpha, variance = sde.alpha(t), sde.sigma(t) ** 2
    eye = torch.eye(data.dim, dtype=torch.float64)
    parts = torch.distributions.MultivariateNormal(alpha * data.means, alpha**2 * covariances + variance * eye)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(data.weights), parts)


def test_log_prob_is_the_mixture_s(sde: SDE) -> None:
    covariances = torch.tensor([0.1, 0.4], dtype=torch.float64)[:, None, None] * torch.eye(3, dtype=torch.float64)
    for t in (0.001, 0.1, 0.6, sde.t_max):
        truth = torch_mixture(ISOTROPIC, covariances, sde, t).log_prob(POINTS)
        for data in (ISOTROPIC, FULL):
            torch.testing.assert_close(data.log_prob(POINTS, sde, t), truth, rtol=1e-11, atol=1e-11)
        truth = torch_mixture(SKEW, SKEW_COVARIANCES, sde, t).log_prob(POINTS)
        torch.testing.assert_close(SKEW.log_prob(POINTS, sde, t), truth, rtol=1e-11, atol=1e-11)
    assert float((FULL.log_prob(POINTS, sde, 0.1) - FULL.log_prob(POINTS, sde, 0.11)).abs().max()) > 1e-3


def test_both_representations_agree(sde: SDE) -> None:
    for t in (1e-4, 0.1, 0.6, sde.t_max):
        for one, other in zip(ISOTROPIC.split(POINTS, sde.level(t)), FULL.split(POINTS, sde.level(t)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_denoiser_is_the_posterior_mean_by_quadrature(sde: SDE) -> None:
    """``E[x0 | x]`` and ``E[eps | x]`` from their integrals over x0, in mpmath, on a line."""
    weights, means, stds = (0.4, 0.6), (-1.0, 0.8), (0.3, 0.4)
    for t in (0.02, 0.3, 0.8):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        x = 0.3 * alpha + 0.7 * sigma

        def joint(x0: mp.mpf, alpha: float = alpha, sigma: float = sigma, x: float = x) -> mp.mpf:
            prior = sum(w * mp.npdf(x0, m, s) for w, m, s in zip(weights, means, stds, strict=True))
            return prior * mp.npdf(x, alpha * x0, sigma)

        centre, spread = x / alpha, sigma / alpha
        # Bounds beyond which either factor is below 1e-20, cut where the integrand bends
        low, high = max(-5.0, centre - 10.0 * spread), min(5.0, centre + 10.0 * spread)
        nodes = np.linspace(low, high, 12).tolist()
        total = mp.quad(joint, nodes)
        mean = mp.quad(lambda v: v * joint(v), nodes) / total
        ours = MIXTURE_1D.model(sde).split(torch.tensor([[x]], dtype=torch.float64), t)
        assert abs(float(ours.x0) - float(mean)) < 1e-9
        assert abs(float(ours.eps) - float((x - alpha * mean) / sigma)) < 1e-9 * max(1.0, alpha / sigma)


def test_score_is_the_gradient_of_log_prob(sde: SDE) -> None:
    for data in (ISOTROPIC, FULL, SKEW):
        x = POINTS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(data.log_prob(x, sde, 0.3).sum(), x)
        torch.testing.assert_close(data.model(sde).score(POINTS, 0.3), gradient, rtol=1e-10, atol=1e-11)


def test_split_keeps_its_digits_near_the_data() -> None:
    """At t = 1e-5 a state one sigma from a narrow mode: both halves against 50 digits."""
    sde, t = VPSDE(), 1e-5
    data = Gaussian((0.5,), 1e-4)
    with mp.workdps(50):
        log_alpha = -(mp.mpf(0.1) * mp.mpf(t) + (20 - mp.mpf(0.1)) * mp.mpf(t) ** 2 / 2) / 2
        alpha, sigma2 = mp.exp(log_alpha), 1 - mp.exp(2 * log_alpha)
        x = float(alpha / 2 + mp.sqrt(sigma2))
        total = alpha**2 * mp.mpf(1e-4) + sigma2
        eps = mp.sqrt(sigma2) * (mp.mpf(x) - alpha / 2) / total
        x0 = mp.mpf(0.5) + alpha * mp.mpf(1e-4) * (mp.mpf(x) - alpha / 2) / total
        split = data.model(sde).split(torch.tensor([[x]], dtype=torch.float64), t)
        # the state itself is rounded: 1e-16 over a standard deviation of 1e-2
        assert abs((mp.mpf(float(split.eps)) - eps) / eps) < 1e-12
        assert abs((mp.mpf(float(split.x0)) - x0) / x0) < 1e-15 * 10


def test_moments_are_the_mixture_s() -> None:
    """By the law of total covariance; and the model carries them."""
    weights, means = torch.tensor([2.0, 1.0], dtype=torch.float64) / 3.0, SKEW.means
    mean = weights @ means
    spread = sum(w * (c + torch.outer(m, m)) for w, c, m in zip(weights, SKEW_COVARIANCES, means, strict=True))
    covariance = spread - torch.outer(mean, mean)
    torch.testing.assert_close(SKEW.mean, mean)
    torch.testing.assert_close(SKEW.covariance, covariance)
    moments = SKEW.model(VPSDE()).moments
    assert moments is not None
    assert moments.basis is not None
    torch.testing.assert_close(moments.basis * moments.variances @ moments.basis.T, covariance)


def test_samples_have_the_moments() -> None:
    """Whitened by the truth, 40,000 samples: three means and six second moments, each within 5.3 of its own standard
    errors (estimated from the samples): a false alarm in 1e-6. Another Gaussian with the same trace is caught."""
    factor = torch.linalg.cholesky(SKEW.covariance)
    z = torch.linalg.solve_triangular(factor, (SKEW.sample(40_000, seed=3) - SKEW.mean).T, upper=False).T

    def far(z: Tensor) -> bool:
        products = torch.stack([z[:, i] * z[:, j] - float(i == j) for i in range(3) for j in range(i + 1)], dim=1)
        terms = torch.cat([z, products], dim=1)
        return bool((terms.mean(dim=0).abs() > 5.3 * terms.std(dim=0) / math.sqrt(len(z))).any())

    assert not far(z)
    assert far(z[:, [1, 0, 2]] * torch.tensor([1.1, 0.9, 1.0]))


def test_samples_have_the_density() -> None:
    """Kolmogorov-Smirnov on a line: sqrt(n) D > 2.4 has probability 2 exp(-2 2.4^2) = 2e-5."""
    n = 20_000
    x = MIXTURE_1D.sample(n, seed=1)[:, 0].sort().values

    def statistic(weights: tuple[float, float]) -> float:
        cdf = sum(
            w * 0.5 * (1.0 + torch.erf((x - m) / (s * math.sqrt(2.0))))
            for w, m, s in zip(weights, (-1.0, 0.8), (0.3, 0.4), strict=True)
        )
        steps = torch.arange(n + 1, dtype=torch.float64) / n
        return math.sqrt(n) * float(torch.maximum((cdf - steps[:-1]).abs(), (steps[1:] - cdf).abs()).max())

    assert statistic((0.4, 0.6)) < 2.4
    assert statistic((0.45, 0.55)) > 2.4


def test_sampling_is_repeatable_and_local(global_generators_untouched: None) -> None:
    assert torch.equal(MIXTURE.sample(5, seed=2), MIXTURE.sample(5, seed=2))
    assert not torch.equal(MIXTURE.sample(5, seed=2), MIXTURE.sample(5, seed=3))


def test_images_are_points_of_another_shape() -> None:
    image = GaussianMixture(MIXTURE.means, 0.2, MIXTURE.weights, shape=(1, 2, 1))
    flat = GaussianMixture(MIXTURE.means, 0.2, MIXTURE.weights)
    x = MIXTURE.sample(4)
    as_image = image.model(VPSDE()).denoise(x.reshape(4, 1, 2, 1), 0.4)
    assert as_image.shape == (4, 1, 2, 1)
    assert torch.equal(as_image.reshape(4, 2), flat.model(VPSDE()).denoise(x, 0.4))
    assert torch.equal(image.log_prob(x.reshape(4, 1, 2, 1)), flat.log_prob(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1.0, 2.0), 1.0), r"means must have shape \(K, D\)"),
        ((((1.0,), (2.0,)), (1.0, 1.0, 1.0)), "covariances must have shape"),
        ((((1.0,), (2.0,)), 1.0, (1.0, -1.0)), "weights must be 2 non-negative"),
        ((((1.0,), (2.0,)), 1.0, (1.0,)), "weights must be 2 non-negative"),
        ((((1.0,),), -1.0), "negative eigenvalue"),
    ],
)
def test_impossible_mixtures_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)  # type: ignore[arg-type]


def test_the_density_at_a_time_needs_the_process_and_the_time() -> None:
    mixture = GaussianMixture(((1.0,), (2.0,)), 1.0)
    for half in ({"sde": VPSDE()}, {"t": 0.5}):
        with pytest.raises(ValueError, match="both sde and t"):
            mixture.log_prob(torch.zeros(3, 1), **half)  # type: ignore[arg-type]
