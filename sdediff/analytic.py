r"""Exact denoisers: data whose density is known at every noise level, for tests and experiments.

If ``x_0`` is a mixture of ``N(m_k, C_k)`` then ``x_t`` is the mixture of ``N(alpha m_k, alpha^2 C_k + sigma^2 I)`` with
the same weights, so density, score and posterior mean have closed forms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdediff.gaussian import Moments
from sdediff.numerics import LOG_2PI, as_float64, expand, flatten
from sdediff.score_model import ScoreModel
from sdediff.sde import SDE
from sdediff.types import CLEAN, DataInfo, Level, Split, Time


class GaussianMixture:
    """A mixture of K Gaussians in D dimensions.

    Args:
        means: means of the components, ``(K, D)``.
        covariances: covariances ``(K, D, D)``, or ``(K,)`` or a float for isotropic components (variances).
        weights: weights ``(K,)``, normalised here; equal by default.
        shape: shape of a sample if it is not ``(D,)``, for example ``(1, 8, 8)``.

    Raises:
        ValueError: if shapes do not match, a weight is negative, or a covariance is not positive semi-definite.

    >>> law = sdediff.analytic.GaussianMixture([[-1.0], [1.0]], 0.1)
    >>> law.log_prob(torch.zeros(1, 1)), law.model(sdediff.VPSDE()).denoise(torch.zeros(1, 1), 0.5)
    (tensor([-4.7676], dtype=torch.float64), tensor([[0.]]))
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        covariances: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
        *,
        shape: Sequence[int] | None = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"means must have shape (K, D), not {tuple(self.means.shape)}")
        count, self.dim = self.means.shape
        self.shape = tuple(shape) if shape is not None else (self.dim,)
        weights = torch.ones(count) if weights is None else weights
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.weights.shape != (count,) or bool((self.weights < 0.0).any()) or float(self.weights.sum()) <= 0.0:
            raise ValueError(f"weights must be {count} non-negative numbers, not {self.weights.tolist()}")
        self.weights = self.weights / self.weights.sum()
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.ndim <= 1 and covariances.numel() in (1, count):
            self._variances, self._basis = covariances.expand(count)[:, None], None  # (K, 1)
        elif covariances.shape == (count, self.dim, self.dim):
            self._variances, self._basis = torch.linalg.eigh(covariances)  # (K, D), (K, D, D)
        else:
            raise ValueError(
                f"covariances must have shape ({count}, {self.dim}, {self.dim}), ({count},) or (), "
                f"not {tuple(covariances.shape)}"
            )
        if float(self._variances.min()) < -1e-10 * float(self._variances.max()):
            raise ValueError(f"a covariance has the negative eigenvalue {float(self._variances.min()):g}")
        self._variances = self._variances.clamp(min=0.0)

    @property
    def mean(self) -> Tensor:
        """The mean, ``(D,)``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance, ``(D, D)``."""
        centred = self.means - self.mean
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        if self._basis is None:
            return between + (self.weights @ self._variances[:, 0]) * torch.eye(self.dim, dtype=torch.float64)
        return between + torch.einsum("k,kid,kd,kjd->ij", self.weights, self._basis, self._variances, self._basis)

    @property
    def moments(self) -> Moments:
        """Mean and covariance as :class:`~sdediff.gaussian.Moments` of a sample's shape."""
        return Moments.of(self.mean.reshape(self.shape), self.covariance)

    def sample(self, n: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw samples ``(n, *shape)``."""
        rng = np.random.default_rng(seed)
        component = torch.from_numpy(rng.choice(len(self.weights), size=n, p=self.weights.numpy()))
        z = torch.from_numpy(rng.standard_normal((n, self.dim))) * self._variances[component].sqrt()
        if self._basis is not None:
            z = torch.einsum("nij,nj->ni", self._basis[component], z)
        return (self.means[component] + z).reshape(n, *self.shape).to(dtype)

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Time | None = None) -> Tensor:
        """Return the log-density in nats, float64 ``(B,)``, of the data or, given ``sde`` and ``t``, of ``x_t``.

        Raises:
            ValueError: if only one of ``sde`` and ``t`` is given.
        """
        if (sde is None) != (t is None):
            raise ValueError("give both sde and t for the density of x_t, or neither for that of the data")
        level = CLEAN if sde is None or t is None else sde.level(t)
        whitened, variances = self._whiten(flatten(x).double(), level)
        return torch.logsumexp(self._log_weights(whitened, variances), dim=1)

    def model(self, sde: SDE) -> ScoreModel:
        """Return the exact :class:`~sdediff.score_model.ScoreModel` of these data under ``sde``."""
        # Velocity keeps both halves of the split to rounding, at either end.
        return ScoreModel(
            self._velocity,
            sde,
            prediction="v_prediction",
            conditioning="level",
            moments=self.moments,
            data=DataInfo(self.shape),
        )

    def split(self, x: Tensor, level: Level) -> Split:
        """Return ``E[x0 | x]`` and ``E[eps | x]``, float64, each from its own formula."""
        flat = flatten(x).double()
        alpha, sigma = expand(level.alpha, flat), expand(level.sigma, flat)
        whitened, variances = self._whiten(flat, level)
        share = torch.softmax(self._log_weights(whitened, variances), dim=1)  # (B, K)
        # With residual z = U^T (x - alpha m) of component k: eps_k = sigma U z / d, x0_k = m + alpha U l z / d
        if self._basis is None:
            per_component = share / variances[..., 0]
            total = per_component.sum(dim=1, keepdim=True)
            eps = sigma * (flat * total - alpha * (per_component @ self.means.to(flat)))
            shrink = per_component * self._variances[:, 0].to(flat)
            x0 = share @ self.means.to(flat)
            x0 = x0 + alpha * (flat * shrink.sum(dim=1, keepdim=True) - alpha * (shrink @ self.means.to(flat)))
        else:
            scaled = whitened / variances * share[:, :, None]
            basis = self._basis.to(flat).transpose(1, 2).reshape(-1, self.dim)  # rows: directions of all components
            eps = sigma * (flatten(scaled) @ basis)
            x0 = share @ self.means.to(flat) + alpha * (flatten(scaled * self._variances.to(flat)) @ basis)
        return Split(x0.reshape(x.shape), eps.reshape(x.shape))

    def _velocity(self, x: Tensor, level: Level) -> Tensor:
        x0, eps = self.split(x, level)
        return (expand(level.cos, x0) * eps - expand(level.sin, x0) * x0).to(x.dtype)

    def _whiten(self, flat: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return residuals in each component's basis and their variances, ``(B, K, D)`` and ``(1 or B, K, D or 1)``.

        For isotropic components the residuals come as their norms ``(B, K, 1)``.
        """
        alpha, sigma = (as_float64(v).to(flat.device) for v in (level.alpha, level.sigma))
        variances = alpha.reshape(-1, 1, 1) ** 2 * self._variances.to(flat) + sigma.reshape(-1, 1, 1) ** 2
        means, a = self.means.to(flat), alpha.reshape(-1, 1)
        if self._basis is None:
            squared = flat.square().sum(1, keepdim=True) - 2.0 * a * (flat @ means.T) + a**2 * means.square().sum(1)
            # Not 0, where the root has no derivative: a state may be equal to a mean.
            return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()[..., None], variances
        basis = self._basis.to(flat)
        rotated = (flat @ basis.transpose(0, 1).reshape(self.dim, -1)).reshape(len(flat), -1, self.dim)
        rotated_means = torch.einsum("kid,ki->kd", basis, means)
        return rotated - alpha.reshape(-1, 1, 1) * rotated_means, variances

    def _log_weights(self, whitened: Tensor, variances: Tensor) -> Tensor:
        """Return ``log(weight_k N_k(x))``, ``(B, K)``."""
        repeats = self.dim // variances.shape[-1]
        quadratic = (whitened.square() / variances).sum(dim=-1)
        log_det = repeats * variances.log().sum(dim=-1)
        log_weights = self.weights.to(whitened).log()
        return log_weights - 0.5 * (quadratic + log_det + self.dim * LOG_2PI)


class Gaussian(GaussianMixture):
    """One Gaussian: ``mean`` of ``(D,)`` and covariance ``(D, D)`` or a variance.

    >>> sdediff.analytic.Gaussian([2.0, 0.0], 0.25).sample(1000).mean(dim=0).round(decimals=1).abs()
    tensor([2., 0.], dtype=torch.float64)
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        covariance: Tensor | float,
        *,
        shape: Sequence[int] | None = None,
    ) -> None:
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        super().__init__(torch.as_tensor(mean, dtype=torch.float64)[None], covariance[None], shape=shape)
