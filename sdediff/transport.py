r"""Deterministic transport: data to latents and back along the probability-flow ODE.

``encode`` and ``decode`` cross one interval, ``[t_min, t_max]``, by one solver, so that each undoes the other up to
the solver's error (Song et al. 2021, section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.numerics import expand, flatten
from sdediff.samplers import Sampler
from sdediff.sampling import resolve, solve
from sdediff.types import Solution

DEFAULT_TOLERANCE = 1e-6


def _transport(
    model: Denoiser, x: Tensor, solver: str | Sampler, ends: tuple[float, float], options: dict[str, Any]
) -> Solution:
    given = {key for key, value in options.items() if value is not None}
    if solver == "ode" and not given & {"steps", "grid", "rtol", "atol"}:
        options = {**options, "rtol": DEFAULT_TOLERANCE}
    if resolve(solver, steps=options.get("steps"), rtol=options.get("rtol"), atol=options.get("atol")).stochastic:
        raise ValueError(f"encoding and decoding need a deterministic solver; {solver!r} is stochastic")
    return solve(model, x, solver, t_from=ends[0], t_to=ends[1], **options)


def encode(model: Denoiser, x: Tensor, solver: str | Sampler = "ode", **options: Any) -> Tensor:
    """Latents of data: the state at ``t_max`` reached from ``x`` at ``t_min``.

    Args:
        model: a denoiser with its process.
        x: data ``(B, *shape)``.
        solver: a deterministic solver; ``"ode"`` with no further option is adaptive at 1e-6.
        **options: ``steps``, ``grid``, ``rtol``, ``atol``, ``path``, ``progress`` of :func:`~sdediff.sampling.solve`.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.
    """
    return _transport(model, x, solver, (model.sde.t_min, model.sde.t_max), options).x


def decode(model: Denoiser, z: Tensor, solver: str | Sampler = "ode", **options: Any) -> Tensor:
    """Data of latents: the inverse of :func:`encode`, with the same options.

    Raises:
        ValueError: for a stochastic solver, or as :func:`~sdediff.sampling.solve`.
    """
    return _transport(model, z, solver, (model.sde.t_max, model.sde.t_min), options).x


def slerp(a: Tensor, b: Tensor, fraction: float | Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) between latents ``(B, *shape)``: 0 gives ``a``, 1 gives ``b``.

    Nearly parallel pairs are joined by a straight line, which is the limit.
    """
    u, v = flatten(a).double(), flatten(b).double()
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp(min=1e-300)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    share = torch.as_tensor(fraction, dtype=torch.float64, device=a.device)
    straight = angle.sin().abs() < 1e-6
    safe = torch.where(straight, 1.0, angle)
    first = torch.where(straight, 1.0 - share, torch.sin((1.0 - share) * safe) / safe.sin())
    second = torch.where(straight, share, torch.sin(share * safe) / safe.sin())
    return expand(first, a) * a + expand(second, b) * b


def interpolate(
    model: Denoiser, x_a: Tensor, x_b: Tensor, points: int = 8, solver: str | Sampler = "ode", **options: Any
) -> Tensor:
    """Paths between data: both ends are encoded, joined on the sphere, and decoded.

    Args:
        model: a denoiser with its process.
        x_a: data ``(B, *shape)``, the starts.
        x_b: data ``(B, *shape)``, the ends.
        points: number of points of each path, both ends included, at least 2.
        solver: as in :func:`encode`.
        **options: as in :func:`encode`.

    Returns:
        ``(points, B, *shape)``.

    Raises:
        ValueError: for fewer than two points, shapes that differ, or as :func:`encode`.
    """
    if points < 2:
        raise ValueError(f"interpolation needs at least 2 points, not {points}")
    if x_a.shape != x_b.shape:
        raise ValueError(f"both ends need one shape; came {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    z = encode(model, torch.cat([x_a, x_b]), solver, **options)
    z_a, z_b = z.chunk(2)
    between = torch.cat([slerp(z_a, z_b, float(s)) for s in torch.linspace(0.0, 1.0, points, dtype=torch.float64)])
    return decode(model, between, solver, **options).reshape(points, *x_a.shape)
