"""What different samplers do with the same noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from catalogue import GAUSSIAN, MIXTURE, PROCESSES
from sdediff import DDPM, SAMPLERS, SDE, BrownianPath, Denoiser, NoiseSource
from sdediff.samplers import Sampler
from sdediff.samplers.ancestral import Ancestral
from sdediff.samplers.ddim import DDIM
from sdediff.samplers.euler_maruyama import EulerMaruyama
from sdediff.selftest.convergence import (
    affine_map,
    graded_angle,
    moments_at,
    pathwise_error,
    probability_flow,
    slope,
    uniform_logsnr,
)

SIZES = (64, 128, 256)
T_TO = 1e-3
KINDS = ("vp", "cosine", "ve", "flow", "ddpm")


def gaussian_gap(one: Sampler, other: Sampler, sde: SDE, steps: int) -> float:
    """RMS distance between the ends of two linear samplers on the same start and normals: exact, from their maps."""
    model, times = GAUSSIAN.model(sde), uniform_logsnr(sde, steps, sde.t_max, T_TO)
    (c, a, k), (c2, a2, k2) = affine_map(one, model, times, 2), affine_map(other, model, times, 2)
    mean, covariance = moments_at(GAUSSIAN, sde, sde.t_max)
    shift, response = c - c2 + (a - a2) @ mean, a - a2
    return math.sqrt(
        float(shift.square().sum() + (response @ covariance @ response.T).trace() + (k - k2).square().sum())
    )


def mixture_gap(one: Sampler, other: Sampler, sde: SDE, steps: int, seeds: tuple[int, int] = (0, 0)) -> float:
    """RMS distance between the ends of two samplers over 100 shared starts, each with noise of its own seed."""
    model, times = MIXTURE.model(sde), uniform_logsnr(sde, steps, sde.t_max, T_TO)
    noises = [NoiseSource(seed, (100, 2), dtype=torch.float64) for seed in seeds]
    x = sde.prior_sample((100, 2), moments=MIXTURE.moments, seed=9, dtype=torch.float64)
    ends = [s.sample(model, sde, x, times, noise).x for s, noise in zip((one, other), noises, strict=True)]
    return float((ends[0] - ends[1]).square().mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", ["posterior", "marginal"])
def test_ancestral_follows_euler_maruyama(variance: str, kind: str) -> None:
    """A step's coefficients differ by h^2 in the mean and h^(3/2) in the noise; the latter are independent and add up
    in squares, so the paths differ by h. At least order 1; a slope of 0.8 is what these N can show of it."""
    gaps = [gaussian_gap(Ancestral(variance), EulerMaruyama(), PROCESSES[kind], n) for n in SIZES]
    assert slope(SIZES, gaps) > 0.8


def test_ancestral_follows_euler_maruyama_on_a_mixture() -> None:
    gaps = [mixture_gap(Ancestral(), EulerMaruyama(), PROCESSES["vp"], n) for n in SIZES]
    assert slope(SIZES, gaps) > 0.8


def test_different_noise_is_caught() -> None:
    gaps = [mixture_gap(Ancestral(), EulerMaruyama(), PROCESSES["vp"], n, seeds=(0, 1)) for n in SIZES]
    assert not slope(SIZES, gaps) > 0.8


def test_ddim_with_all_noise_is_ancestral(sde: SDE) -> None:
    """Equal to rounding, strided and to the very end, on every process."""
    model, noise = MIXTURE.model(sde), NoiseSource(2, (5, 2), dtype=torch.float64)
    times = torch.tensor([sde.t_max, 0.83, 0.5, 0.49, 0.1, 1e-3, 0.0], dtype=torch.float64)
    x = sde.prior_sample((5, 2), dtype=torch.float64)
    ends = [s.sample(model, sde, x, times, noise).x for s in (DDIM(eta=1.0), Ancestral("posterior"))]
    torch.testing.assert_close(*ends, rtol=1e-14, atol=1e-14)
    less = DDIM(eta=0.99).sample(model, sde, x, times, noise).x
    assert float((less - ends[1]).abs().max()) > 1e-6  # the control: one percent less noise is another path


def textbook_chain(chain: DDPM, model: Denoiser, x: Tensor, noise: NoiseSource, large: bool) -> Tensor:
    """Ho et al. (2020), algorithm 2, with betas and running products."""
    betas = torch.tensor(chain.betas, dtype=torch.float64)
    bars = torch.cumprod(1.0 - betas, dim=0)
    for k, i in enumerate(range(chain.steps - 1, -1, -1)):
        before = bars[i - 1] if i > 0 else torch.ones((), dtype=torch.float64)
        eps = model.epsilon(x, (i + 1) / chain.steps)
        x = (x - betas[i] / (1.0 - bars[i]).sqrt() * eps) / (1.0 - betas[i]).sqrt()
        if i > 0:
            variance = betas[i] if large else betas[i] * (1.0 - before) / (1.0 - bars[i])
            x = x + variance.sqrt() * noise.normal(k)
    return x


@pytest.mark.parametrize(("variance", "large"), [("posterior", False), ("marginal", True)])
def test_ancestral_is_the_ddpm_paper_s_algorithm(variance: str, large: bool) -> None:
    """On the chain's own grid, to rounding (the first beta-bar, 1e-3, costs the textbook form three digits)."""
    chain = DDPM.linear(100)
    model, noise = MIXTURE.model(chain), NoiseSource(4, (6, 2), dtype=torch.float64)
    x = chain.prior_sample((6, 2), dtype=torch.float64)
    ours = Ancestral(variance).sample(model, chain, x, chain.instants.flip(0), noise).x
    torch.testing.assert_close(ours, textbook_chain(chain, model, x, noise, large), rtol=1e-11, atol=1e-11)
    other = textbook_chain(chain, model, x, noise, not large)
    assert float((ours - other).abs().max()) > 1e-3


def test_ddim_tends_to_the_probability_flow() -> None:
    """eta = 0 on strided chains of the thousand-step process, order 1."""
    chain = PROCESSES["ddpm"]
    model = MIXTURE.model(chain)
    x = chain.prior_sample((16, 2), moments=MIXTURE.moments, dtype=torch.float64)
    truth = probability_flow(model, x, 1.0, T_TO)

    def order(eta: float) -> float:
        errors = [pathwise_error(DDIM(eta), model, x, graded_angle(chain, n, 1.0, T_TO), truth) for n in SIZES]
        return slope(SIZES, errors)

    assert abs(order(0.0) - 1.0) < 0.2
    assert not abs(order(0.3) - 1.0) < 0.2


class Increments:
    """A noise source whose normals are increments of one Brownian motion in lambda: one path for any grid."""

    def __init__(self, path: BrownianPath, clock: Tensor) -> None:
        self.path, self.clock = path, clock.tolist()

    def normal(self, step: int, stage: int = 0) -> Tensor:
        start, end = self.clock[step], self.clock[step + 1]
        return self.path.increment(start, end) / math.sqrt(end - start)


def test_refining_one_brownian_path_converges_strongly() -> None:
    """With noise that does not depend on the state, Euler-Maruyama is of strong order 1 (Kloeden & Platen 1992), and
    so is what follows it pathwise. On Gaussian data, where no path can end in another mode."""
    sde, count = PROCESSES["vp"], 40
    model = GAUSSIAN.model(sde)
    start, end = (float(v) for v in sde.half_log_snr(torch.tensor([sde.t_max, 0.01], dtype=torch.float64)))
    path = BrownianPath(NoiseSource(8, (count, 2), dtype=torch.float64), start, end)
    x = sde.prior_sample((count, 2), moments=GAUSSIAN.moments, dtype=torch.float64)

    def run(name: str, steps: int) -> Tensor:
        clock = torch.linspace(start, end, steps + 1, dtype=torch.float64)
        return SAMPLERS[name].sample(model, sde, x, sde.time(clock), Increments(path, clock)).x  # type: ignore[arg-type]

    truth, sizes = run("euler-maruyama", 4096), (32, 64, 128)
    for name in ("euler-maruyama", "ancestral", "ancestral-marginal", "torchsde-euler"):
        errors = [float((run(name, n) - truth).square().mean().sqrt()) for n in sizes]
        assert abs(slope(sizes, errors) - 1.0) < 0.2, name
