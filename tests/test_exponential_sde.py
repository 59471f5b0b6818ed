"""The stochastic members of the multistep family by name: the published updates, written out, with the same noise."""

import math
from itertools import pairwise

import pytest
import torch

import sdediff
from catalogue import MIXTURE
from sdediff.samplers.multistep import Multistep

VP = sdediff.VPSDE()
TIMES = [0.95, 0.8, 0.55, 0.42, 0.2, 0.11, 0.03, 1e-3]
LEVELS = VP.levels(TIMES)


def start():
    return VP.prior_sample((6, 2), t=TIMES[0], dtype=torch.float64, seed=1)


def third_order(noise, eta=1.0, half=0.5):
    """k-diffusion's ``dpmpp_3m_sde``, in ``x / alpha``; ``half`` is its share of the quadratic term."""
    model, x = MIXTURE.model(VP), start() / LEVELS[0].alpha
    denoised, widths = [], []
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        denoised.append(model(s.alpha * x, s).x0)
        widths.append(t.half_log_snr - s.half_log_snr)
        h = widths[-1]
        decay = h * (1.0 + eta)
        x = math.exp(-decay) * x - math.expm1(-decay) * denoised[-1]
        slope = math.expm1(-decay) / decay + 1.0  # phi_2 in its naming
        if i >= 2:
            r0, r1 = widths[-2] / h, widths[-3] / h
            near, far = (denoised[-1] - denoised[-2]) / r0, (denoised[-2] - denoised[-3]) / r1
            bend = (near - far) / (r0 + r1)
            x = x + slope * (near + r0 * bend) - 2.0 * half * (slope / decay - 0.5) * bend
        elif i == 1:
            x = x + slope * (denoised[-1] - denoised[-2]) * h / widths[-2]
        x = x + t.sigma / t.alpha * math.sqrt(-math.expm1(-2.0 * eta * h)) * noise.normal(i)
    return LEVELS[-1].alpha * x


def solve_by(solver):
    return sdediff.solve(MIXTURE.model(VP), start(), solver, grid=TIMES, seed=4).x


def test_the_third_order_update_is_the_published_one():
    noise = sdediff.NoiseSource(4, (6, 2), dtype=torch.float64)
    assert torch.allclose(solve_by("sde-dpm++3m"), third_order(noise), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(solve_by("sde-dpm++3m"), third_order(noise, half=1.0), atol=1e-4)  # the whole term
    whole = Multistep("sample", "logsnr", 3, "exact", eta=1.0)
    assert torch.allclose(solve_by(whole), third_order(noise, half=1.0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_its_eta_is_the_root_of_theirs(eta):
    """Both measure the noise by eta, theirs by the square of the one that scales it."""
    noise = sdediff.NoiseSource(4, (6, 2), dtype=torch.float64)
    ours = solve_by(Multistep("sample", "logsnr", 3, "half", eta=math.sqrt(eta)))
    assert torch.allclose(ours, third_order(noise, eta), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_exponential_euler_maruyama_holds_epsilon(eta):
    """SDE-DPM-Solver-1 (Lu et al. 2022b, eq. 13) at eta = 1, DDIM at eta = 0: ``d(x / alpha) = (1 + eta^2) eps d tan``
    with eps held, and noise of variance ``eta^2 (tan^2 - tan'^2)``."""
    model, x = MIXTURE.model(VP), start()
    noise = sdediff.NoiseSource(4, (6, 2), dtype=torch.float64)
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        h = t.half_log_snr - s.half_log_snr
        drift = -(1.0 + eta**2) * t.sigma * math.expm1(h) * model(x, s).eps
        x = t.alpha / s.alpha * x + drift + eta * t.sigma * math.sqrt(math.expm1(2.0 * h)) * noise.normal(i)
    solver = sdediff.SAMPLERS["exponential-em"] if eta == 1.0 else Multistep("epsilon", "logsnr", 1, eta=eta)
    assert torch.allclose(solve_by(solver), x, rtol=1e-10, atol=1e-11)
    assert not torch.allclose(solve_by("ancestral"), x, atol=1e-3)  # which holds the clean sample
    if eta == 0.0:
        assert torch.allclose(solve_by("ddim"), x, rtol=1e-10, atol=1e-11)
