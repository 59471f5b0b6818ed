"""The DDPM chain equals its SDE at all its instants: transitions and posteriors, to 1e-12.

The truth is the chain's own definition (Ho et al. 2020, eq. 2, 4, 6, 7) with running products at 50 digits.
"""

from __future__ import annotations

from typing import Any

import mpmath as mp
import pytest
import torch

from catalogue import random_betas
from sdediff import DDPM, SDE, VPSDE

BOUND = 1e-12
LENGTHS = (1, 2, 10, 1000, 4000)
BETAS = {"linear": lambda n: DDPM.linear(n).betas, "cosine": lambda n: DDPM.cosine(n).betas, "random": random_betas}


def textbook(betas: list[float]) -> dict[str, torch.Tensor]:
    """The chain's quantities, one a step, rounded once."""
    rows: dict[str, list[float]] = {key: [] for key in ("ratio", "variance", "from_x_t", "from_x0", "posterior")}
    with mp.workdps(50):
        bar: Any = mp.mpf(1)
        for value in betas:
            beta, before = mp.mpf(value), bar
            bar = before * (1 - beta)
            rows["ratio"].append(float(mp.sqrt(1 - beta)))
            rows["variance"].append(value)
            rows["from_x_t"].append(float(mp.sqrt(1 - beta) * (1 - before) / (1 - bar)))
            rows["from_x0"].append(float(mp.sqrt(before) * beta / (1 - bar)))
            rows["posterior"].append(float((1 - before) / (1 - bar) * beta))
    return {key: torch.tensor(row, dtype=torch.float64) for key, row in rows.items()}


def through_sde(sde: SDE, steps: int) -> dict[str, torch.Tensor]:
    """The same from the SDE's transition and bridge between the instants."""
    instants = torch.arange(steps + 1, dtype=torch.float64) / steps
    s, t = instants[:-1], instants[1:]
    one, zero = torch.ones(steps, 1, dtype=torch.float64), torch.zeros(steps, 1, dtype=torch.float64)
    ratio, std = sde.transition(one, s, t)
    from_x_t, bridge_std = sde.bridge(one, zero, t, s)
    from_x0, _ = sde.bridge(zero, one, t, s)
    return {
        "ratio": ratio[:, 0],
        "variance": std**2,
        "from_x_t": from_x_t[:, 0],
        "from_x0": from_x0[:, 0],
        "posterior": bridge_std**2,
    }


def worst(sde: SDE, betas: list[float]) -> float:
    """The largest relative error over all quantities and instants (the first posterior variance is 0 in both)."""
    truth, ours = textbook(betas), through_sde(sde, len(betas))
    errors = [torch.where(truth[k] == 0.0, ours[k].abs(), (ours[k] / truth[k] - 1.0).abs()).max() for k in truth]
    return float(torch.stack(errors).max())


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("kind", BETAS)
def test_chain_is_its_sde(kind: str, steps: int) -> None:
    betas = torch.as_tensor(BETAS[kind](steps), dtype=torch.float64).tolist()
    assert worst(DDPM(betas), betas) < BOUND


def test_the_limit_process_is_not_the_chain() -> None:
    """The control: the linear-beta SDE, in the chain's place, is caught at any length."""
    for steps in (10, 1000, 4000):
        assert worst(VPSDE(), list(DDPM.linear(steps).betas)) > 1e3 * BOUND


def test_labels_are_the_chain_s_own() -> None:
    """Interpolating log-SNR between instants never leaves the interval between the instants' values."""
    chain = DDPM.linear(10)
    at_instants = chain.half_log_snr(chain.instants[1:])
    between = chain.half_log_snr(0.5 * (chain.instants[1:-1] + chain.instants[2:]))
    assert bool(((between < at_instants[:-1]) & (between > at_instants[1:])).all())
