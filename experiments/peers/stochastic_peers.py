"""Stochastic samplers of the peers, with every normal they draw taken from the benchmark.

Left out because they are another entry in other words: diffusers' ``sde-dpmsolver++`` of order 2 is ``dpmpp_2m_sde``;
DDPM with the posterior variance, DDIM at eta = 1 and azula's ``DDPMSampler`` are ``euler_ancestral``. Left out because
they do not converge here: diffusers' order 3 of ``sde-dpmsolver++`` as shipped, and SA-Solver in epsilon. In
k-diffusion's SDE samplers the share of noise is the square of eta here: their 0.25 is our 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from typing import Any
from unittest import mock

import diffusers
import torch
from azula import sample
from torch import Tensor

import sdediff
from sdediff.dynamics import Frame, diffusion, drift

from .adapter import Levels, Rule, by_sigma, ratio
from .azula_peers import Exact
from .diffusers_peers import _by_sigmas
from .kdiffusion_peers import _load, _model
from .law import Draw, Noisy


@contextmanager
def _drawing(draw: Draw) -> Iterator[None]:
    """What a package draws from a generator of its own comes from the benchmark."""

    def normals(*_: Any, **__: Any) -> Tensor:
        return draw()

    with mock.patch.object(torch, "randn", normals), mock.patch.object(torch, "randn_like", normals):
        yield


def _kdiffusion(
    sampler: Callable[..., Tensor], options: Mapping[str, Any], frame: Frame, y: Tensor, levels: Levels, draw: Draw
) -> Tensor:
    with _drawing(draw):
        x = sampler(_model(frame), y / levels[0].cos, ratio(levels), disable=True, **options)
    return x * levels[-1].cos


def _diffusers(make: Callable[[], Any], frame: Frame, y: Tensor, levels: Levels, draw: Draw) -> Tensor:
    with _drawing(draw):
        return _by_sigmas(make, frame, y, levels)


def _azula(eta: float, frame: Frame, y: Tensor, levels: Levels, draw: Draw) -> Tensor:
    made = sample.DDIMSampler(Exact(frame, levels), eta=eta, steps=len(levels) - 1, silent=True, dtype=torch.float64)
    with _drawing(draw):
        return made(y)


def _euler(frame: Frame, y: Tensor, levels: Levels, draw: Draw) -> Tensor:
    """torchsde's Euler method on lambda, whose update needs no package."""
    for here, there in pairwise(levels):
        width = there.half_log_snr - here.half_log_snr
        y = y + width * drift(y, frame(y, here), here, 1.0) + diffusion(here, 1.0) * width**0.5 * draw()
    return y


def _constant(value: float, _timestep: Any) -> float:
    return value


def grids() -> dict[str, Rule]:
    """The packages' own grids, and the two that serve deterministic peers best."""
    k = _load()
    return {
        "time": sdediff.GRIDS["time"],
        "t^(1/2)": sdediff.grids.Power(2.0),
        "t^(1/3)": sdediff.grids.Power(3.0),
        "exponential": sdediff.GRIDS["logsnr"],
        "karras": by_sigma(lambda n, low, high: k.get_sigmas_karras(n, low, high)[:-1]),
        "polyexponential 1/2": by_sigma(lambda n, low, high: k.get_sigmas_polyexponential(n, low, high, rho=0.5)[:-1]),
    }


def peers() -> list[Noisy]:
    """Every stochastic sampler with its options; those with a share of noise both at all of it and at our default's."""
    k = _load()
    table: list[tuple[str, str, float, int, dict[str, Any]]] = [  # name, function, eta, forwards a step, options
        ("euler_ancestral", "sample_euler_ancestral", 1.0, 1, {}),
        ("dpm_2_ancestral", "sample_dpm_2_ancestral", 1.0, 2, {}),
        ("dpmpp_2s_ancestral", "sample_dpmpp_2s_ancestral", 1.0, 2, {}),
        ("dpmpp_sde", "sample_dpmpp_sde", 1.0, 2, {}),
        ("dpmpp_2m_sde midpoint", "sample_dpmpp_2m_sde", 1.0, 1, {}),
        ("dpmpp_2m_sde heun", "sample_dpmpp_2m_sde", 1.0, 1, {"solver_type": "heun"}),
        ("dpmpp_2m_sde midpoint 0.25", "sample_dpmpp_2m_sde", 0.5, 1, {"eta": 0.25}),
        ("dpmpp_3m_sde", "sample_dpmpp_3m_sde", 1.0, 1, {}),
        ("dpmpp_3m_sde 0.25", "sample_dpmpp_3m_sde", 0.5, 1, {"eta": 0.25}),
        ("heun churn 10", "sample_heun", 1.0, 2, {"s_churn": 10.0}),
        ("heun churn 40, 0.05 to 50", "sample_heun", 1.0, 2, {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0}),
    ]
    made = []
    for name, function, eta, forwards, options in table:
        solve = partial(_kdiffusion, partial(_with_noise, getattr(k, function)), options)
        made.append(Noisy(f"k-diffusion {name}", solve, eta, forwards))
    for order, tau in product((2, 3), (1.0, 0.5)):
        options = {"predictor_order": order, "corrector_order": order, "tau_func": partial(_constant, tau)}
        scheduler = partial(diffusers.SASolverScheduler, **options)
        made.append(Noisy(f"diffusers SASolver {order} {tau:g}", partial(_diffusers, scheduler), tau))
    return [
        *made,
        Noisy("azula DDIM 0.25", partial(_azula, 0.25), 0.5),
        Noisy("torchsde euler on lambda", _euler, 1.0),
    ]


def _with_noise(sampler: Callable[..., Tensor], model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """The package's sampler, its Brownian tree replaced where it has one."""
    if "noise_sampler" in sampler.__wrapped__.__code__.co_varnames:  # type: ignore[attr-defined]
        options["noise_sampler"] = lambda _from, _to: torch.randn_like(x)
    return sampler(model, x, sigmas, **options)
