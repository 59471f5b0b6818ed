"""Laws of samplers on a line by deterministic quadrature, for methods that are not affine on Gaussian data.

``u_i(y) = E[u_{i+1}(step_i(y, z))]`` carries a function of the end back to the start by the sampler's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.samplers import Sampler
from sdediff.samplers.clocks import FloatArray

Rule = tuple[FloatArray, FloatArray]
"""Nodes and weights of a quadrature of the standard normal."""


class FixedDraws:
    """A noise source that returns the given values, ``(B, 1)``, for each stage of the one step it serves."""

    def __init__(self, stages: Sequence[Tensor]) -> None:
        self.stages, self.shape = stages, tuple(stages[0].shape)

    def normal(self, step: int, stage: int = 0) -> Tensor:
        """Return the values of a stage."""
        return self.stages[stage]


def normal_rule(points: int) -> Rule:
    """Return Gauss-Legendre rules on ``[-8, 0]`` and ``[0, 8]``, which converge on integrands with kinks too."""
    nodes, weights = np.polynomial.legendre.leggauss(points // 2)
    half = 4.0 * (nodes + 1.0)
    density = 4.0 * weights * np.exp(-0.5 * half**2) / math.sqrt(2.0 * math.pi)
    return np.concatenate([-half, half]), np.concatenate([density, density]) / (2.0 * density.sum())


def hermite_rule(points: int) -> Rule:
    """Return the Gauss-Hermite rule, for smooth integrands."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return nodes, weights / weights.sum()


def backward(
    sampler: Sampler,
    model: Denoiser,
    times: Tensor,
    ends: Callable[[FloatArray], FloatArray],
    rules: Sequence[Rule],
    reach: float = 8.0,
) -> tuple[FloatArray, FloatArray]:
    """Return starts ``(M,)`` and the expectations ``(M, F)`` of functions of the end from there.

    Args:
        sampler: sampler without memory: it is asked for single steps.
        model: denoiser of data on a line.
        times: times of the nodes.
        ends: functions of the end, ``(M,) -> (M, F)``.
        rules: quadratures of a step's draws, one a stage.
        reach: bound on the states, in units of the process's scale.
    """
    grids = [np.linspace(-reach, reach, 161) * float(s) for s in torch.as_tensor(model.sde.level(times).scale)]
    value: Callable[[FloatArray], FloatArray] = ends
    meshes = np.meshgrid(*(nodes for nodes, _ in rules), indexing="ij")
    weights = np.ones(1)
    for _, own in rules:
        weights = np.multiply.outer(weights, own)
    weights = weights.ravel()
    for i in range(len(times) - 2, -1, -1):
        y = np.repeat(grids[i], weights.size)
        draws = [torch.from_numpy(np.tile(mesh.ravel(), len(grids[i]))[:, None].copy()) for mesh in meshes]
        end = sampler.sample(model, model.sde, torch.from_numpy(y)[:, None], times[i : i + 2], FixedDraws(draws))  # type: ignore[arg-type]
        u = value(end.x.numpy()[:, 0]).reshape(len(grids[i]), weights.size, -1)
        u = np.einsum("mkf,k->mf", u, weights)
        value = scipy.interpolate.CubicSpline(grids[i], u)
    return grids[0], u
