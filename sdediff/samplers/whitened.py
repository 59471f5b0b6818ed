r"""A state measured against the data's own Gaussian.

In the basis of the data's covariance, where a coordinate has mean m and variance l, and with
``rho = sqrt(sin^2 + l cos^2)`` the standard deviation of ``y = cos x0 + sin eps``,

    u = (y - cos m) / rho,    tan(phi) = tan(theta) / sqrt(l)
    du / d phi = v = (sqrt(l) cos eps - sin (x0 - m) / sqrt(l)) / rho

is the probability-flow ODE with nothing left in it of what a Gaussian explains: ``v = 0`` for Gaussian data. With
``m = 0`` and ``l = 1`` it is the plain velocity on the angle.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.moments import Moments
from sdediff.numerics import as_float64, flatten
from sdediff.types import Level, Scalar, Split

_FLOOR = 1e-4
"""Smallest variance of a coordinate, in units of the largest: constant pixels have none."""


class Spot(NamedTuple):
    """A level seen from the data's Gaussian: scalars, and ``(D,)`` for each coordinate's deviation and angle."""

    cos: Scalar
    sin: Scalar
    rho: Tensor
    phi: Tensor


class Whitened:
    """The data's own Gaussian as a frame of states; without moments the plain frame, unchanged.

    Args:
        moments: mean and covariance of the data.
    """

    def __init__(self, moments: Moments | None) -> None:
        self.basis = None if moments is None else moments.basis
        self.mean = torch.zeros((), dtype=torch.float64) if moments is None else flatten(moments.mean.double()[None])[0]
        variances = torch.ones(1, dtype=torch.float64) if moments is None else moments.variances.double()
        if moments is not None and not float(variances.max()) > 0.0:
            variances = torch.ones_like(variances)  # a point mass: nothing to measure against
        self.std = variances.clamp(min=_FLOOR * float(variances.max())).sqrt().cpu()  # beside the other coefficients

        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor | None]] = {}
        self._eyes: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def at(self, level: Level) -> Spot:
        """A level, of floats or of float64 tensors through which gradients flow."""
        cos, sin = as_float64(level.cos).cpu(), as_float64(level.sin).cpu()
        return Spot(level.cos, level.sin, torch.hypot(sin, self.std * cos), torch.atan2(sin, self.std * cos))

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and basis on the dtype and device of ``x``, moved there once."""
        key = x.dtype, x.device
        if key not in self._cast:
            self._cast[key] = self.mean.to(x), None if self.basis is None else self.basis.to(x)
        return self._cast[key]

    def turn(self, x: Tensor) -> Tensor:
        """``(..., D)`` into the basis of the covariance."""
        _, basis = self._like(x)
        return x if basis is None else x @ basis

    def back(self, x: Tensor) -> Tensor:
        """``(..., D)`` out of the basis of the covariance."""
        _, basis = self._like(x)
        return x if basis is None else x @ basis.T

    def axes(self, x: Tensor) -> Tensor:
        """The axes as orthonormal rows ``(D, D)``, for states like ``x`` ``(B, *shape)``."""
        _, basis = self._like(x)
        if basis is not None:
            return basis.T
        key = x[0].numel(), x.dtype, x.device
        if key not in self._eyes:  # one for all nodes: a graph through them keeps it
            self._eyes[key] = torch.eye(key[0], dtype=x.dtype, device=x.device)
        return self._eyes[key]

    def into(self, y: Tensor, spot: Spot) -> Tensor:
        """``u`` ``(B, D)`` of a state ``y`` ``(B, *shape)``."""
        mean, _ = self._like(y)
        return self.turn(flatten(y) - spot.cos * mean) / spot.rho.to(y)

    def out(self, u: Tensor, spot: Spot, like: Tensor) -> Tensor:
        """The state ``y`` of ``u``, in the shape of ``like``."""
        (mean, _), y = self._like(u), u * spot.rho.to(u)
        return (self.back(y) + spot.cos * mean).reshape(like.shape)

    def velocity(self, split: Split, spot: Spot) -> Tensor:
        """``du / d phi``, ``(B, D)``, of any two halves."""
        (x0, eps), (mean, _) = (flatten(half) for half in split), self._like(split.x0)
        noise = self.turn(eps) * (self.std * spot.cos / spot.rho).to(eps)
        return noise - self.turn(x0 - mean) * (spot.sin / (self.std * spot.rho)).to(x0)

    def slope(self, split: Split, u: Tensor, spot: Spot) -> Tensor:
        """The same where the halves are those of ``u``: one turn of their plain velocity instead of two."""
        plain = flatten(split.mix(-spot.sin, spot.cos))
        mean, _ = self._like(plain)
        linear = (self.std - 1.0 / self.std) * spot.sin * spot.cos
        return self.turn(plain + spot.sin * mean) * (spot.rho / self.std).to(u) + u * linear.to(u)
