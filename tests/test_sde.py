"""Forward processes against their definitions, written anew in mpmath at 50 digits, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch

from catalogue import PROCESSES, SKEW
from sdediff import (
    DDPM,
    SDE,
    SDES,
    VESDE,
    VPSDE,
    CosineVPSDE,
    ExponentialVESDE,
    Moments,
    NoiseSource,
    RectifiedFlow,
    SubVPSDE,
)

DIGITS = 50
BOUND = 1e-10


def _linear(t: Any) -> Any:
    return -(mp.mpf(0.1) * t + (20 - mp.mpf(0.1)) * t**2 / 2) / 2


def _cosine(t: Any) -> Any:
    s = mp.mpf(0.008)
    return mp.log(mp.cos((t + s) / (1 + s) * mp.pi / 2) / mp.cos(s / (1 + s) * mp.pi / 2))


def _chain(chain: DDPM) -> Callable[[Any], Any]:
    with mp.workdps(DIGITS):
        steps = [mp.log(1 - mp.mpf(beta)) / 2 for beta in chain.betas]
        table = [mp.mpf(0)]
        for step in steps:
            table.append(table[-1] + step)

    def log_alpha(t: Any) -> Any:
        index = min(int(mp.floor(t * chain.steps + mp.mpf(10) ** -13)), chain.steps - 1)
        return table[index] + (t * chain.steps - index) * steps[index]

    return log_alpha


def _preserving(log_alpha: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    return log_alpha, lambda t: mp.log(1 - mp.exp(2 * log_alpha(t))) / 2


TRUTH: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "vp": _preserving(_linear),
    "cosine": _preserving(_cosine),
    "subvp": (_linear, lambda t: mp.log(1 - mp.exp(2 * _linear(t)))),
    "ve": (lambda t: mp.mpf(0), lambda t: mp.log(mp.mpf(0.01) * (mp.mpf(50.0) / mp.mpf(0.01)) ** t)),
    "ve-exponential": (lambda t: mp.mpf(0), lambda t: mp.log((mp.mpf(25) ** (2 * t) - 1) / (2 * mp.log(25))) / 2),
    "flow": (lambda t: mp.log(1 - t), mp.log),
    **{name: _preserving(_chain(chain)) for name, chain in PROCESSES.items() if isinstance(chain, DDPM)},
}
"""log alpha and log sigma of every process, as their papers define them."""


@pytest.fixture(params=TRUTH, ids=TRUTH)
def pair(request: pytest.FixtureRequest) -> Any:
    return PROCESSES[request.param], *TRUTH[request.param]


def instants(sde: SDE) -> list[float]:
    """Times from t_min to t_max, dense at both ends, none on a kink of a chain."""
    low = np.geomspace(sde.t_min, 0.3, 25)
    high = 1.0 - np.geomspace(1.0 - sde.t_max, 0.7, 25) if sde.t_max < 1.0 else np.linspace(0.31, 1.0, 25)
    return [sde.t_min, 1e-5, *low.tolist(), *np.clip(high, sde.t_min, sde.t_max).tolist(), sde.t_max]


def relative(value: float, truth: Any) -> float:
    return float(abs((mp.mpf(value) - truth) / truth))


def test_truth_covers_the_catalogue() -> None:
    assert set(TRUTH) == set(PROCESSES)
    assert {type(process) for process in PROCESSES.values()} == set(SDES.values())


def test_alpha_sigma_and_log_snr(pair: Any) -> None:
    sde, log_alpha, log_sigma = pair
    with mp.workdps(DIGITS):
        for t in instants(sde):
            a, s = log_alpha(mp.mpf(t)), log_sigma(mp.mpf(t))
            assert relative(float(sde.alpha(t)), mp.exp(a)) < BOUND
            assert relative(float(sde.sigma(t)), mp.exp(s)) < BOUND
            assert relative(float(sde.half_log_snr(t)), a - s) < BOUND
            level = sde.levels([t])[0]
            assert relative(level.scale, mp.sqrt(mp.exp(2 * a) + mp.exp(2 * s))) < BOUND
            assert relative(level.angle, mp.atan(mp.exp(s - a))) < BOUND


def test_time_inverts_the_log_snr(pair: Any) -> None:
    sde, log_alpha, log_sigma = pair
    with mp.workdps(DIGITS):
        for t in instants(sde):
            half_log_snr = float(log_alpha(mp.mpf(t)) - log_sigma(mp.mpf(t)))
            assert relative(float(sde.time(half_log_snr)), mp.mpf(t)) < BOUND


def test_single_precision_fails_the_bound_that_double_meets() -> None:
    """The control: 1 - exp(x) in float32 is off by far more than the bound near the data."""
    t = 1e-5
    naive = torch.sqrt(1.0 - torch.exp(2.0 * torch.tensor(float(_linear(mp.mpf(t))), dtype=torch.float32)))
    with mp.workdps(DIGITS):
        assert relative(float(naive), mp.exp(TRUTH["vp"][1](mp.mpf(t)))) > 1e-3


def test_drift_and_diffusion_are_derivatives(pair: Any) -> None:
    """``f = d log alpha / dt`` and ``g^2 = -2 sigma^2 d lambda / dt``."""
    sde, log_alpha, log_sigma = pair
    one = torch.ones(1, 1, dtype=torch.float64)
    with mp.workdps(DIGITS):
        for t in (2e-5, 0.00137, 0.0513, 0.2571, 0.5033, 0.8087, 0.9787):
            at = mp.mpf(t)
            f = mp.diff(log_alpha, at, h=mp.mpf(10) ** -16)
            g2 = -2 * mp.exp(2 * log_sigma(at)) * (f - mp.diff(log_sigma, at, h=mp.mpf(10) ** -16))
            assert abs(float(sde.drift(one, t)) - float(f)) <= BOUND * abs(float(f))
            assert relative(float(sde.diffusion(t)) ** 2, g2) < BOUND


def test_transitions_compose(sde: SDE) -> None:
    """Chapman-Kolmogorov: s -> u -> t is s -> t, down to small steps near the data."""
    x = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    for s, u, t in ((0.0, 1e-5, 2e-5), (1e-5, 1.3e-5, 2e-4), (1e-4, 0.1, 0.101), (0.2, 0.5, 0.9), (0.3, 0.3, 0.99)):
        mean_u, std_u = sde.transition(x, s, u)
        mean_t, std_ut = sde.transition(mean_u, u, t)
        _, std_t = sde.transition(x, s, t)
        ratio = sde.transition(torch.ones_like(x), u, t)[0][0, 0]
        torch.testing.assert_close(mean_t, sde.transition(x, s, t)[0], rtol=1e-12, atol=0.0)
        torch.testing.assert_close(torch.hypot(ratio * std_u, std_ut), std_t, rtol=1e-10, atol=0.0)


def test_transition_from_the_data_is_the_marginal(sde: SDE) -> None:
    x = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    for t in (1e-5, 0.3, sde.t_max):
        for ours, truth in zip(sde.transition(x, 0.0, t), sde.marginal(x, t), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-12, atol=0.0)


def test_bridge_is_bayes(pair: Any) -> None:
    """x_s | x_t, x0 by conditioning the joint Gaussian of (x_s, x_t) given x0, at 50 digits."""
    sde, log_alpha, log_sigma = pair
    x_t, x_0 = torch.tensor([[0.9]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    with mp.workdps(DIGITS):
        for s, t in ((1e-5, 1.1e-5), (1e-5, 0.5), (0.1, 0.1003), (0.3, 0.9), (0.97, 0.99)):
            a_s, a_t = mp.exp(log_alpha(mp.mpf(s))), mp.exp(log_alpha(mp.mpf(t)))
            v_s, v_t = mp.exp(2 * log_sigma(mp.mpf(s))), mp.exp(2 * log_sigma(mp.mpf(t)))
            covariance = a_t / a_s * v_s
            mean = a_s * mp.mpf(-0.4) + covariance / v_t * (mp.mpf(0.9) - a_t * mp.mpf(-0.4))
            variance = v_s - covariance**2 / v_t
            ours, std = sde.bridge(x_t, x_0, t, s)
            assert abs(float(ours) - float(mean)) < BOUND
            assert relative(float(std) ** 2, variance) < 1e-9  # twice the relative error of lambda's difference


def test_bridge_at_its_ends(sde: SDE) -> None:
    x_t, x_0 = torch.tensor([[0.9]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    mean, std = sde.bridge(x_t, x_0, 0.5, 0.0)
    torch.testing.assert_close(mean, x_0, rtol=1e-12, atol=0.0)
    assert float(std) == 0.0
    mean, std = sde.bridge(x_t, x_0, 0.5, 0.5)
    torch.testing.assert_close(mean, x_t, rtol=1e-12, atol=1e-12)
    assert float(std) == 0.0


def test_one_time_per_sample_is_one_time_each(sde: SDE) -> None:
    t = torch.tensor([1e-5, 0.01, 0.4, 0.99], dtype=torch.float64)
    s = 0.5 * t + 5e-6
    x = torch.arange(12, dtype=torch.float64).reshape(4, 3, 1) - 5.0
    eps = x.flip(0) + 0.25
    batched = [
        sde.perturb(x, t, eps), sde.drift(x, t), *sde.marginal(x, t), *sde.transition(x, s, t),
        *sde.bridge(x, eps, t, s), sde.diffusion(t), *sde.level(t),
    ]  # fmt: skip
    for k in range(4):
        t_k, s_k, x_k, e_k = float(t[k]), float(s[k]), x[k : k + 1], eps[k : k + 1]
        alone = [
            sde.perturb(x_k, t_k, e_k), sde.drift(x_k, t_k), *sde.marginal(x_k, t_k), *sde.transition(x_k, s_k, t_k),
            *sde.bridge(x_k, e_k, t_k, s_k), sde.diffusion(t_k), *sde.level(t_k),
        ]  # fmt: skip
        for both, one in zip(batched, alone, strict=True):
            torch.testing.assert_close(
                torch.as_tensor(both[k]), torch.as_tensor(one).squeeze(0), rtol=1e-14, atol=1e-14
            )


def test_perturb_is_alpha_x_plus_sigma_eps(sde: SDE) -> None:
    x, eps = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[-3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        sde.perturb(x, 0.37, eps).squeeze(), 2.0 * sde.alpha(0.37) - 3.0 * sde.sigma(0.37), rtol=1e-14, atol=0.0
    )


@pytest.mark.parametrize("t", [-1e-9, 1.0 + 1e-6, 5e-6, float("nan"), float("inf")])
def test_times_outside_the_domain_are_refused(sde: SDE, t: float) -> None:
    x = torch.zeros(1, 1)
    for call in (sde.log_alpha, sde.sigma, sde.half_log_snr, sde.level, sde.diffusion, lambda t: sde.drift(x, t)):
        with pytest.raises(ValueError, match="is outside"):
            call(t)
        with pytest.raises(ValueError, match="is outside"):
            call(torch.tensor([0.5, t], dtype=torch.float64))


def test_exact_ends_are_allowed(sde: SDE) -> None:
    data = sde.level(0.0)
    assert (float(data.alpha), float(data.sigma), float(data.half_log_snr)) == (1.0, 0.0, math.inf)
    assert math.isfinite(float(sde.sigma(1.0)))


def test_order_of_times_is_checked(sde: SDE) -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="must not be after"):
        sde.transition(x, 0.6, 0.5)
    with pytest.raises(ValueError, match="must not be after"):
        sde.bridge(x, x, 0.5, 0.6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPSDE(beta_min=0.0),
        lambda: VPSDE(beta_min=2.0, beta_max=1.0),
        lambda: SubVPSDE(beta_max=math.inf),
        lambda: CosineVPSDE(s=0.0),
        lambda: VESDE(sigma_min=0.0),
        lambda: VESDE(sigma_min=2.0, sigma_max=1.0),
        lambda: ExponentialVESDE(1.0),
        lambda: ExponentialVESDE(math.inf),
        lambda: DDPM([]),
        lambda: DDPM([1.0, 0.1]),
        lambda: DDPM([0.1, 1.1]),
        lambda: DDPM(torch.full((1_000_001,), 0.1)),
        lambda: DDPM([0.1, float("nan")]),
        lambda: DDPM([[0.1]]),
        lambda: DDPM.linear(0),
        lambda: DDPM.cosine(-1),
        lambda: RectifiedFlow().discretize(0),
    ],
)
def test_impossible_processes_are_refused(make: Callable[[], SDE]) -> None:
    with pytest.raises(ValueError, match=r"not|must"):
        make()


def test_moment_matched_prior_has_the_moments(sde: SDE) -> None:
    """The prior draw is linear in its normals, so unit vectors give mean and covariance without sampling error."""
    moments = Moments.of(SKEW.mean, SKEW.covariance)
    assert moments.basis is not None
    assert not torch.allclose(moments.basis, moments.basis.T)

    class Units(NoiseSource):
        def normal(self, step: int, stage: int = 0) -> torch.Tensor:
            assert step == NoiseSource.START
            return torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()

    t = 0.3
    x = sde.prior_sample((4, 3), t=t, moments=moments, noise=Units(0, (4, 3), dtype=torch.float64))
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    torch.testing.assert_close(x[0], alpha * SKEW.mean, rtol=1e-12, atol=1e-12)
    spread = (x[1:] - x[0]).T @ (x[1:] - x[0])
    truth = alpha**2 * SKEW.covariance + sigma**2 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(spread, truth, rtol=1e-12, atol=1e-12)
    points = torch.tensor([[0.2, -1.0, 0.1], [3.0, 2.0, -1.0]], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(alpha * SKEW.mean, truth)
    torch.testing.assert_close(sde.prior_log_prob(points, t=t, moments=moments), normal.log_prob(points))


def test_standard_prior(sde: SDE) -> None:
    noise = NoiseSource(5, (7, 2), dtype=torch.float64)
    sigma = sde.sigma(sde.t_max)
    x = sde.prior_sample((7, 2), seed=5, dtype=torch.float64)
    torch.testing.assert_close(x, sigma * noise.normal(NoiseSource.START), rtol=1e-15, atol=0.0)
    truth = torch.distributions.Normal(0.0, sigma).log_prob(x).sum(dim=1)
    torch.testing.assert_close(sde.prior_log_prob(x), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_discretize_keeps_the_log_snr(sde: SDE, steps: int) -> None:
    chain = sde.discretize(steps)
    times = chain.instants[1:]
    assert chain.steps == steps
    # A beta near 1 holds its 1 - beta, all that is left of the signal, to half a unit in its last place only.
    rounding = 2.0**-53 * sum(1.0 / (1.0 - beta) for beta in chain.betas)
    truth = sde.half_log_snr((times * sde.t_max).clamp(max=sde.t_max))
    torch.testing.assert_close(chain.half_log_snr(times), truth, rtol=1e-10, atol=1e-12 + rounding)


def test_linear_chain_is_the_ddpm_paper_s() -> None:
    """Ho et al. (2020): betas from 1e-4 to 0.02 in a thousand equal steps."""
    truth = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(DDPM.linear(1000).betas, dtype=torch.float64), truth, rtol=1e-12, atol=0.0)


def test_cosine_chain_is_the_paper_s() -> None:
    """Nichol & Dhariwal (2021), eq. 17: ``beta_i = min(1 - abar_i / abar_(i-1), 0.999)``, at 50 digits."""
    with mp.workdps(DIGITS):
        bars = [mp.cos((mp.mpf(i) / 50 + mp.mpf(0.008)) / (1 + mp.mpf(0.008)) * mp.pi / 2) ** 2 for i in range(51)]
        for ours, before, after in zip(DDPM.cosine(50).betas, bars, bars[1:], strict=False):
            assert relative(ours, min(1 - after / before, mp.mpf(0.999))) < 1e-10


@pytest.mark.parametrize("time", [0.0, 1.0, 0.25, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)])
def test_no_time_passes_between_equal_times(sde: SDE, time: Any) -> None:
    """The ends included, where alpha or sigma vanish and their ratios are 0 / 0."""
    x = torch.tensor([[0.3, -2.0], [1.0, 5.0], [-0.1, 0.0]], dtype=torch.float64)
    for mean, std in (sde.transition(x, time, time), sde.bridge(x, -x, time, time)):
        assert torch.equal(mean, x)
        assert not bool(std.any())


def test_states_of_two_shapes_are_not_broadcast(sde: SDE) -> None:
    x, other = torch.zeros(4, 2), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"one shape; came \(4, 2\) and \(4, 1\)"):
        sde.perturb(x, 0.5, other)
    with pytest.raises(ValueError, match=r"one shape; came \(4, 2\) and \(4, 1\)"):
        sde.bridge(x, other, 0.5, 0.25)


def test_a_long_chain_is_named_by_its_ends() -> None:
    assert repr(DDPM([0.1, 0.2])) == "DDPM(betas=(0.1, 0.2), steps=2)"
    assert repr(DDPM.linear(1000)) == "DDPM(betas=(0.0001, 0.00011992, ..., 0.02), steps=1000)"
