"""Laws of samplers on a line by deterministic quadrature, for methods or data that are not affine.

Backwards: ``u_i(y) = E[u_{i+1}(step_i(y, z))]`` carries a test function from the end to the start through the sampler's
own one-step solves. Forwards: a Gaussian step carries a density by its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from sdediff import SDE, Denoiser
from sdediff.analytic import GaussianMixture
from sdediff.samplers import Sampler

Array = NDArray[np.float64]
Rule = tuple[Array, Array]


class Given:
    """A noise source that returns the given values, ``(B, 1)``, for each stage of the one step it serves."""

    def __init__(self, stages: Sequence[Tensor]) -> None:
        self.stages, self.shape = stages, tuple(stages[0].shape)

    def normal(self, step: int, stage: int = 0) -> Tensor:
        return self.stages[stage]


def normal_rule(points: int) -> Rule:
    """Gauss-Legendre on ``[-8, 0]`` and ``[0, 8]``: nodes and weights of the standard normal. Unlike Gauss-Hermite it
    converges on integrands with kinks too."""
    nodes, weights = np.polynomial.legendre.leggauss(points // 2)
    half = 4.0 * (nodes + 1.0)
    density = 4.0 * weights * np.exp(-0.5 * half**2) / math.sqrt(2.0 * math.pi)
    return np.concatenate([-half, half]), np.concatenate([density, density]) / (2.0 * density.sum())


def hermite_rule(points: int) -> Rule:
    """Gauss-Hermite: nodes and weights of the standard normal, for smooth integrands."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return nodes, weights / weights.sum()


def backward(
    sampler: Sampler,
    model: Denoiser,
    times: Tensor,
    ends: Callable[[Array], Array],
    rules: Sequence[Rule],
    reach: float = 8.0,
) -> tuple[Array, Array]:
    """Expectations ``(M, F)`` of the functions ``ends(x) -> (M, F)`` of the end, for starts ``(M,)``.

    ``rules`` are the quadratures of a step's draws, one a stage; the states must lie within ``reach`` times the scale.
    """
    grids = [np.linspace(-reach, reach, 161) * float(s) for s in model.sde.level(times).scale]
    value: Callable[[Array], Array] = ends
    meshes = np.meshgrid(*(nodes for nodes, _ in rules), indexing="ij")
    weights = np.ones(1)
    for _, own in rules:
        weights = np.multiply.outer(weights, own)
    weights = weights.ravel()
    for i in range(len(times) - 2, -1, -1):
        y = np.repeat(grids[i], weights.size)
        draws = [torch.from_numpy(np.tile(mesh.ravel(), len(grids[i]))[:, None].copy()) for mesh in meshes]
        end = sampler.sample(model, model.sde, torch.from_numpy(y)[:, None], times[i : i + 2], Given(draws))  # type: ignore[arg-type]
        u = value(end.x.numpy()[:, 0]).reshape(len(grids[i]), weights.size, -1)
        u = np.einsum("mkf,k->mf", u, weights)
        value = CubicSpline(grids[i], u)
    return grids[0], u


def exact_density(data: GaussianMixture, sde: SDE, x: Tensor, t: float) -> Array:
    """The density of ``x_t`` at points ``(M, 1)``."""
    density: Array = data.log_prob(x, sde, t).exp().numpy()
    return density


def carry_density(
    sampler: Sampler, data: GaussianMixture, sde: SDE, times: Tensor, reach: float, points: int
) -> tuple[Array, Array]:
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
            sampler.sample(model, sde, x, times[i : i + 2], Given([torch.full_like(x, z)])).x  # type: ignore[arg-type]
            for z in (0.0, 1.0)
        )
        std = float((moved - still).mean())
        if std < width:
            raise ValueError(f"the noise {std:g} of step {i} is lost between points {width:g} apart")
        kernel = torch.exp(-0.5 * ((x - still.T) / std).square()) / (std * math.sqrt(2.0 * math.pi))
        densities.append(width * kernel.numpy() @ densities[-1])
    return x[:, 0].numpy(), np.stack(densities)
