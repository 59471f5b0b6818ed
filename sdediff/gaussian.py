r"""The data's own Gaussian: mean and covariance, and what follows from them at any noise level.

If ``x_0 ~ N(m, C)`` then ``x_t ~ N(alpha m, alpha^2 C + sigma^2 I)``, exactly. For other data this is the Gaussian
with the right first two moments: a better terminal prior than ``N(0, sigma^2 I)``, coordinates in which the
integrand of a solver is small (:class:`Whitened`), and a control variate of known mean (:class:`GaussianErrors`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.bases import Axes, Basis, as_basis
from sdediff.covariances import COVARIANCES
from sdediff.covariances.items import Items
from sdediff.numerics import LOG_2PI, as_float64, choose, flatten, wide
from sdediff.types import Level, Scalar, Split, brief

_FLOOR = 1e-5
"""Smallest variance of a coordinate, in units of the mean one: constant pixels have none. The largest grows with the
number of dimensions, that of 3x32x32 photographs is 800 times the mean, and their smallest 3e-5 of it."""


def gaussian_kl(squared_shift: Tensor, log_ratio: Tensor) -> Tensor:
    r"""Return ``KL(N(m, s^2) || N(n, r^2))`` of each entry, nats: every divergence of a bound is a sum of these.

    Args:
        squared_shift: squared distances of the means in units of the second law, ``((m - n) / r)^2``.
        log_ratio: logarithms of the variances' ratios, ``log(s^2 / r^2)``; 0 for equal variances.

    Returns:
        ``1/2 [shift^2 + ratio - 1 - log ratio]`` (Kingma & Welling 2014, appendix B), without the difference of the
        near-equals ``ratio`` and 1, in the dtype of the arguments.

    >>> sdediff.gaussian.gaussian_kl(torch.tensor(4.0), torch.tensor(0.0))
    tensor(2.)
    """
    return 0.5 * (squared_shift + torch.expm1(log_ratio) - log_ratio)


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance ``U diag(v) U^T`` of data of shape ``shape``, with ``D = prod(shape)``.

    Attributes:
        mean: the mean, of shape ``shape``.
        variances: variances along the basis, ``(D,)``.
        basis: orthogonal matrix ``(D, D)`` whose columns are directions, a :class:`~sdediff.bases.Basis`, or ``None``
            for the coordinate axes.

    >>> sdediff.Moments.fit(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).mean
    tensor([2., 0.], dtype=torch.float64)
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | Basis | None = None

    __repr__ = brief

    @classmethod
    def zero(cls, shape: Sequence[int]) -> Moments:
        """Return the moments of a point mass at the origin: the standard prior ``N(0, sigma^2 I)``."""
        return cls(torch.zeros(*shape, dtype=torch.float64), torch.zeros(math.prod(shape), dtype=torch.float64))

    @classmethod
    def unit(cls, shape: Sequence[int]) -> Moments:
        """Return the moments of data of mean 0 and variance 1."""
        zero = cls.zero(shape)
        return cls(zero.mean, zero.variances + 1.0)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Moments:
        """Return the moments of a mean of any shape and a covariance ``(D, D)``."""
        variances, basis = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), variances.clamp(min=0.0), basis)

    @classmethod
    def fit(
        cls,
        data: Tensor,
        *,
        covariance: str = "auto",
        shrink: bool = True,
        transform: Callable[[Tensor], Tensor] = Tensor.double,
    ) -> Moments:
        """Fit ``data`` ``(n, *shape)`` of any number type, a part at a time.

        Args:
            data: items of data.
            covariance: estimator, of :data:`~sdediff.covariances.COVARIANCES`: ``"full"`` for the whole covariance,
                ``"structured"`` for one of many dimensions (:mod:`sdediff.covariances.structured`), ``"diagonal"``, or
                ``"auto"``: full up to 1,024 dimensions, structured beyond.
            shrink: whether to shrink what few items cannot tell (:mod:`sdediff.covariances.shrinkage`); a whole
                covariance of 8 items a dimension or more is that of the items in any case.
            transform: function from rows ``(k, D)`` to the rows, as many, that are fitted.

        Raises:
            ValueError: for an unknown estimator, or no items.
        """
        if not len(data):
            raise ValueError("moments need at least one item of data")
        items = Items.of(data, transform)
        found = choose(COVARIANCES, covariance, "covariance")(items, shrink)
        return cls(items.mean.reshape(items.shape), found.variances, found.basis)

    def to(self, x: Tensor) -> Moments:
        """Return the moments in the dtype and on the device of ``x``."""
        basis = None if self.basis is None else self.basis.to(x)
        return Moments(self.mean.to(x), self.variances.to(x), basis)

    def coordinates(self, x: Tensor, alpha: Scalar = 1.0) -> Tensor:
        """Return ``x - alpha m`` in the basis of the covariance, ``(B, D)``."""
        return as_basis(self.basis).rotate(flatten(x - alpha * self.mean))

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"the moments are of items {tuple(self.mean.shape)}, not {tuple(x.shape[1:])}")

    def _std(self, level: Level) -> Tensor:
        variances = level.alpha**2 * self.variances + level.sigma**2
        return variances.sqrt()

    def sample(self, z: Tensor, level: Level) -> Tensor:
        """Transform standard normals ``(B, *shape)`` into draws of ``N(alpha m, alpha^2 C + sigma^2)``."""
        self._check(z)
        own = self.to(z)
        flat = as_basis(own.basis).rotate_back(flatten(z) * own._std(level))
        return flat.reshape(z.shape) + level.alpha * own.mean

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """Return the log-density (nats, ``(B,)``, float64) of ``N(alpha m, alpha^2 C + sigma^2)``."""
        self._check(x)
        x = wide(x)
        own = self.to(x)
        std = own._std(level)
        return -0.5 * ((own.coordinates(x, level.alpha) / std).square() + LOG_2PI).sum(dim=1) - std.log().sum()

    def kl(self, x0: Tensor, level: Level[float]) -> Tensor:
        """Return L_T, ``KL(N(alpha x0, sigma^2) || N(alpha m, alpha^2 C + sigma^2))`` in nats, float64 ``(B,)``."""
        x0 = wide(x0)
        own = self.to(x0)
        shift = level.alpha * own.coordinates(x0)
        excess = level.alpha**2 * own.variances / level.sigma**2  # the prior's variance over sigma^2, less 1
        squared_shift = (shift / level.sigma).square() / (1.0 + excess)
        return gaussian_kl(squared_shift, -torch.log1p(excess)).sum(dim=1)


class GaussianLevel(NamedTuple):
    """A noise level in the basis of the data's Gaussian: standard deviation rho and angle phi, ``(D,)``."""

    cos: Scalar
    sin: Scalar
    rho: Tensor
    phi: Tensor


class Whitened:
    r"""Coordinates of a state whitened by the data's own Gaussian; the variance-preserving frame without moments.

    In the basis of the data's covariance, where a coordinate has mean m and variance l, and with
    ``rho = sqrt(sin^2 + l cos^2)`` the standard deviation of ``y = cos x0 + sin eps``,

        u = (y - cos m) / rho,    tan(phi) = tan(theta) / sqrt(l)
        du / d phi = v = (sqrt(l) cos eps - sin (x0 - m) / sqrt(l)) / rho

    is the probability-flow ODE without its Gaussian part: ``v = 0`` for Gaussian data. With
    ``m = 0`` and ``l = 1`` it is the plain velocity on the angle.

    Args:
        moments: mean and covariance of the data.
    """

    def __init__(self, moments: Moments | None) -> None:
        self.basis = as_basis(None if moments is None else moments.basis)
        self.mean = torch.zeros((), dtype=torch.float64) if moments is None else flatten(moments.mean.double()[None])[0]
        variances = torch.ones(1, dtype=torch.float64) if moments is None else moments.variances.double()
        if moments is not None and not float(variances.max()) > 0.0:
            variances = torch.ones_like(variances)  # a point mass
        self.std = variances.clamp(min=_FLOOR * float(variances.mean())).sqrt().cpu()  # with the other coefficients

        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Basis]] = {}
        self._axes: dict[tuple[int, torch.dtype, torch.device], Axes] = {}

    def at(self, level: Level) -> GaussianLevel:
        """Return the level of floats, or of float64 tensors through which gradients flow, in these coordinates."""
        cos, sin = as_float64(level.cos).cpu(), as_float64(level.sin).cpu()
        return GaussianLevel(level.cos, level.sin, torch.hypot(sin, self.std * cos), torch.atan2(sin, self.std * cos))

    def _like(self, x: Tensor) -> tuple[Tensor, Basis]:
        """Return mean and basis in the dtype and on the device of ``x``, moved there once."""
        key = x.dtype, x.device
        if key not in self._cast:
            self._cast[key] = self.mean.to(x), self.basis.to(x)
        return self._cast[key]

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate ``(..., D)`` into the basis of the covariance."""
        return self._like(x)[1].rotate(x)

    def rotate_back(self, x: Tensor) -> Tensor:
        """Rotate ``(..., D)`` out of the basis of the covariance."""
        return self._like(x)[1].rotate_back(x)

    def axes(self, x: Tensor) -> Axes:
        """Return the axes as orthonormal rows, for states like ``x`` ``(B, *shape)``."""
        key = x[0].numel(), x.dtype, x.device
        if key not in self._axes:  # one for all nodes, as a graph through them keeps it
            self._axes[key] = Axes(self._like(x)[1], key[0], x.new_zeros(0))
        return self._axes[key]

    def whiten(self, y: Tensor, level: GaussianLevel) -> Tensor:
        """Whiten a state ``y`` ``(B, *shape)`` to ``u`` ``(B, D)``."""
        mean, _ = self._like(y)
        return self.rotate(flatten(y) - level.cos * mean) / level.rho.to(y)

    def unwhiten(self, u: Tensor, level: GaussianLevel, like: Tensor) -> Tensor:
        """Return the state ``y`` of ``u``, in the shape of ``like``."""
        (mean, _), y = self._like(u), u * level.rho.to(u)
        return (self.rotate_back(y) + level.cos * mean).reshape(like.shape)

    def velocity(self, split: Split, level: GaussianLevel) -> Tensor:
        """Return ``du / d phi``, ``(B, D)``, of any two halves."""
        (x0, eps), (mean, _) = (flatten(half) for half in split), self._like(split.x0)
        noise = self.rotate(eps) * (self.std * level.cos / level.rho).to(eps)
        return noise - self.rotate(x0 - mean) * (level.sin / (self.std * level.rho)).to(x0)

    def slope(self, split: Split, u: Tensor, level: GaussianLevel) -> Tensor:
        """Return ``du / d phi`` of the two halves of ``u``, by one rotation of their plain velocity instead of two."""
        plain = flatten(split.mix(-level.sin, level.cos))
        mean, _ = self._like(plain)
        linear = (self.std - 1.0 / self.std) * level.sin * level.cos
        return self.rotate(plain + level.sin * mean) * (level.rho / self.std).to(u) + u * linear.to(u)


class GaussianErrors:
    r"""Squared errors of a Gaussian denoiser at a batch of items: a control variate of known mean.

    If the data were ``N(m, C)`` with variances c along the basis of C, the best estimate of the noise in
    ``alpha x0 + sigma eps`` has the error, along each direction and with ``gamma = (alpha / sigma)^2``, by

        eps - eps_G = k eps - s z,    k = c gamma / (1 + c gamma),    s = sqrt(gamma) / (1 + c gamma),    z = x0 - m

    Over the noise its square has the mean ``k^2 + s^2 z^2``, whose integral over the half log-SNR lambda is
    ``1/2 [log(1 + c gamma) + (1 + gamma z^2) / (1 + c gamma)]`` where ``c > 0``. The errors of a trained
    denoiser at the same noise are strongly correlated with these, above all near the data, where both are all of the
    noise: the difference of the two is small, and the mean of the control variate is added exactly.

    Args:
        x0: items ``(B, *shape)``.
        moments: moments of the Gaussian.
    """

    def __init__(self, x0: Tensor, moments: Moments) -> None:
        own = moments.to(wide(x0))
        self._basis, self._variances, self._z = as_basis(own.basis), own.variances, own.coordinates(wide(x0))

    @classmethod
    def none(cls, x0: Tensor) -> GaussianErrors:
        """Return errors that are all 0, for no control variate."""
        errors = cls(x0, Moments.zero(x0.shape[1:]))
        errors._z = torch.zeros_like(errors._z)
        return errors

    @property
    def device(self) -> torch.device:
        """The device of the errors."""
        return self._z.device

    def _rotate(self, x: Tensor) -> Tensor:
        return self._basis.rotate(wide(flatten(x)))

    def squared_error(self, eps: Tensor, half_log_snr: float | Tensor) -> Tensor:
        """Return ``|eps - eps_G|^2`` of noise ``(B, *shape)`` at one level or one a sample, float64 ``(B,)``."""
        lam = self._levels(half_log_snr)
        return (self._keep(lam) * self._rotate(eps) - self._shrink(lam) * self._z).square().sum(dim=1)

    def mean(self, half_log_snr: Tensor) -> Tensor:
        """Return the mean over the noise at levels ``(L,)``: float64 ``(L, B)``."""
        lam = self._levels(half_log_snr)
        keep = self._keep(lam).square().sum(dim=1, keepdim=True)
        return keep + self._shrink(lam).square() @ self._z.square().T

    def integral(self, half_log_snr: Tensor) -> Tensor:
        """Integrate the mean over lambda between neighbours of ``(S + 1,)``, from large to small: ``(S, B)``."""
        lam = self._levels(half_log_snr)
        keep, shrink = self._keep(lam), self._shrink(lam)
        # With gamma = e^(2 lambda): d keep^2 = d/2 [log(1 + c gamma) - keep], d shrink^2 = d/2 [gamma / (1 + c gamma)]
        own = (torch.log1p(self._variances * torch.exp(2.0 * lam)) - keep).sum(dim=1, keepdim=True)
        primitive = 0.5 * (own + (torch.exp(lam) * shrink) @ self._z.square().T)
        return -primitive.diff(dim=0)

    def _levels(self, half_log_snr: float | Tensor) -> Tensor:
        """Return levels as a column, in the dtype and on the device of the errors."""
        return torch.as_tensor(half_log_snr, dtype=self._z.dtype, device=self._z.device).reshape(-1, 1)

    def _keep(self, lam: Tensor) -> Tensor:
        """Return ``k``, ``(L, D)``."""
        gain = self._variances * torch.exp(2.0 * lam)
        return gain / (1.0 + gain)

    def _shrink(self, lam: Tensor) -> Tensor:
        """Return ``s``, ``(L, D)``."""
        return torch.exp(lam) / (1.0 + self._variances * torch.exp(2.0 * lam))


def prior_moments(prior: str, moments: Moments | None) -> Moments | None:
    """Return the moments of the terminal law ``prior``, for data of the given moments.

    Raises:
        ValueError: for an unknown name.
    """
    return choose({"moments": moments, "standard": None}, prior, "prior")
