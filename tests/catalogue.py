"""The exact problems that tests share: every process, and those data of the self-test whose law is known."""

from __future__ import annotations

import torch

from sdediff import DDPM, SDE, VESDE, VPSDE, CosineVPSDE, ExponentialVESDE, RectifiedFlow, SubVPSDE
from sdediff.selftest.problems import GAUSSIAN, MIXTURE, MIXTURE_1D, SKEW

__all__ = ["GAUSSIAN", "MIXTURE", "MIXTURE_1D", "PROCESSES", "SKEW", "random_betas"]


def random_betas(steps: int) -> torch.Tensor:
    """Betas without any pattern, with the total noise of the usual chain."""
    rng = torch.Generator().manual_seed(steps)
    rates = torch.empty(steps, dtype=torch.float64).exponential_(generator=rng)
    return -torch.expm1(-10.0 * rates / rates.sum())


PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(),
    "cosine": CosineVPSDE(),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "ve-exponential": ExponentialVESDE(),
    "flow": RectifiedFlow(),
    "ddpm": DDPM.linear(1000),
    "ddpm-cosine": DDPM.cosine(1000),
    "ddpm-random": DDPM(random_betas(50)),
}
"""One of each kind; the tests below run over all of them."""
