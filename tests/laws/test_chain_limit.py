"""The linear chain of N steps tends to the linear-beta VP-SDE at order 1 in 1/N."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from sdediff import DDPM, SDE, VPSDE
from sdediff.selftest.convergence import slope

LENGTHS = (250, 500, 1000, 2000)
TOLERANCE = 0.1
ONE, ZERO = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)


def log_alpha_bar(t: float) -> Callable[[SDE, int], float]:
    return lambda sde, steps: 2.0 * float(sde.log_alpha(t))


def posterior_variance(t: float, s: float) -> Callable[[SDE, int], float]:
    return lambda sde, steps: float(sde.bridge(ONE, ZERO, t, s)[1]) ** 2


def posterior_variance_of_one_step(t: float) -> Callable[[SDE, int], float]:
    """beta-tilde, as a rate."""
    return lambda sde, steps: steps * float(sde.bridge(ONE, ZERO, t, t - 1.0 / steps)[1]) ** 2


def prior_divergence(sde: SDE, steps: int) -> float:
    """KL of ``x_1 | x_0 = 1`` from N(0, 1) in nats: the bound's L_T."""
    return -0.5 * math.log1p(-(float(sde.alpha(1.0)) ** 2))


QUANTITIES = {
    "log alpha-bar(1/4)": log_alpha_bar(0.25),
    "log alpha-bar(1/2)": log_alpha_bar(0.5),
    "log alpha-bar(1)": log_alpha_bar(1.0),
    "posterior variance(1/2 -> 1/4)": posterior_variance(0.5, 0.25),
    "posterior variance(1 -> 9/10)": posterior_variance(1.0, 0.9),
    "beta-tilde(1/10)": posterior_variance_of_one_step(0.1),
    "beta-tilde(1/2)": posterior_variance_of_one_step(0.5),
    "L_T": prior_divergence,
}


def measured(quantity: Callable[[SDE, int], float], limit: SDE) -> float:
    """The order at which the chain's quantity meets the limit's (both at the same N where it depends on N)."""
    return slope(LENGTHS, [abs(quantity(DDPM.linear(n), n) / quantity(limit, n) - 1.0) for n in LENGTHS])


@pytest.mark.parametrize("name", QUANTITIES)
def test_chain_tends_to_the_vp_sde(name: str) -> None:
    assert abs(measured(QUANTITIES[name], VPSDE()) - 1.0) < TOLERANCE


@pytest.mark.parametrize("name", QUANTITIES)
def test_it_tends_to_no_other(name: str) -> None:
    """The control: against betas that end 2 % higher the difference does not go away."""
    assert not abs(measured(QUANTITIES[name], VPSDE(beta_max=20.4)) - 1.0) < TOLERANCE
