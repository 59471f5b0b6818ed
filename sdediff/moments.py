r"""The data's own Gaussian: mean and covariance, and what follows from them at any noise level.

If ``x_0 ~ N(m, C)`` then ``x_t ~ N(alpha m, alpha^2 C + sigma^2 I)``, exactly. For other data this is the Gaussian
with the right first two moments: a better terminal prior than ``N(0, sigma^2 I)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.numerics import LOG_2PI, flatten, in_parts
from sdediff.types import Level, brief


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance ``U diag(v) U^T`` of data of shape ``shape``, with ``D = prod(shape)``.

    Attributes:
        mean: ``shape``.
        variances: ``(D,)``, of the coordinates in ``basis``.
        basis: orthogonal ``(D, D)``, columns are directions; ``None`` for the coordinate axes.
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | None = None

    __repr__ = brief

    @classmethod
    def zero(cls, shape: Sequence[int]) -> Moments:
        """Moments of a point mass at the origin: the standard prior ``N(0, sigma^2 I)``."""
        return cls(torch.zeros(*shape, dtype=torch.float64), torch.zeros(math.prod(shape), dtype=torch.float64))

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """From a mean of any shape and a covariance ``(D, D)``."""
        variances, basis = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), variances.clamp(min=0.0), basis)

    @classmethod
    def fit(cls, data: Tensor, *, full_up_to: int = 1024, turn: Callable[[Tensor], Tensor] = Tensor.double) -> Moments:
        """Fit ``data`` ``(n, *shape)``, of any number type and a part at a time.

        Args:
            data: the items.
            full_up_to: the most dimensions that get the full covariance; beyond, its diagonal.
            turn: from rows ``(k, D)`` to the rows, as many, that are fitted.
        """
        flat = flatten(data)
        count, dim = flat.shape
        mean = torch.stack([turn(part).double().sum(dim=0) for part in in_parts(flat)]).sum(dim=0) / count
        centred = (turn(part).double() - mean for part in in_parts(flat))
        if dim > full_up_to or count < 2:
            variances = sum((part.square().sum(dim=0) for part in centred), start=torch.zeros_like(mean)) / count
            return cls(mean.reshape(data.shape[1:]), variances)
        products = sum((part.T @ part for part in centred), start=mean.new_zeros(dim, dim))
        return cls.of(mean.reshape(data.shape[1:]), products / count)

    def to(self, x: Tensor) -> Moments:
        """The same on the dtype and device of ``x``."""
        basis = None if self.basis is None else self.basis.to(x)
        return Moments(self.mean.to(x), self.variances.to(x), basis)

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"the moments are of items {tuple(self.mean.shape)}, not {tuple(x.shape[1:])}")

    def _std(self, level: Level) -> Tensor:
        variances = level.alpha**2 * self.variances + level.sigma**2
        return variances.sqrt()

    def sample(self, z: Tensor, level: Level) -> Tensor:
        """Turn standard normals ``(B, *shape)`` into draws of ``N(alpha m, alpha^2 C + sigma^2)``."""
        self._check(z)
        own = self.to(z)
        flat = flatten(z) * own._std(level)
        flat = flat if own.basis is None else flat @ own.basis.T
        return flat.reshape(z.shape) + level.alpha * own.mean

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """Log-density (nats, ``(B,)``, float64) of ``N(alpha m, alpha^2 C + sigma^2)``."""
        self._check(x)
        x = x.double() if x.device.type != "mps" else x
        own = self.to(x)
        flat = flatten(x - level.alpha * own.mean)
        flat = flat if own.basis is None else flat @ own.basis
        std = own._std(level)
        return -0.5 * ((flat / std).square() + LOG_2PI).sum(dim=1) - std.log().sum()
