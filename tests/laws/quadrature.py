"""Densities of samplers on a line by deterministic quadrature: a Gaussian step carries a density by its kernel."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sdediff import SDE
from sdediff.analytic import GaussianMixture
from sdediff.samplers import Sampler
from sdediff.selftest.quadrature import FixedDraws, FloatArray


def exact_density(data: GaussianMixture, sde: SDE, x: Tensor, t: float) -> FloatArray:
    """The density of ``x_t`` at points ``(M, 1)``."""
    density: FloatArray = data.log_prob(x, sde, t).exp().numpy()
    return density


def carry_density(
    sampler: Sampler, data: GaussianMixture, sde: SDE, times: Tensor, reach: float, points: int
) -> tuple[FloatArray, FloatArray]:
    """Densities ``(N + 1, M)`` at all nodes, on the points ``(M,)`` from ``-reach`` to ``reach``, of a sampler whose
    step adds Gaussian noise of one size; from the exact density at the first node.

    The trapezoidal rule is exact to rounding for these integrands while the noise of a step exceeds the spacing.
    """
    model = data.model(sde)
    x = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    width = float(x[1] - x[0])
    densities = [exact_density(data, sde, x, float(times[0]))]
    for i in range(len(times) - 1):
        still, moved = (
            sampler.sample(model, sde, x, times[i : i + 2], FixedDraws([torch.full_like(x, z)])).x  # type: ignore[arg-type]
            for z in (0.0, 1.0)
        )
        std = float((moved - still).mean())
        if std < width:
            raise ValueError(f"the noise {std:g} of step {i} is lost between points {width:g} apart")
        kernel = torch.exp(-0.5 * ((x - still.T) / std).square()) / (std * math.sqrt(2.0 * math.pi))
        densities.append(width * kernel.numpy() @ densities[-1])
    return x[:, 0].numpy(), np.stack(densities)
