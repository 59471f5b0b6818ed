"""Shrinkage of covariances that few items cannot tell, by shares that are estimated from the same items."""

from __future__ import annotations

import torch
from torch import Tensor

_ENOUGH = 8
"""Items a dimension of a covariance from which on it is that of the items."""


def towards_a_sphere(covariance: Tensor, count: int) -> Tensor:
    r"""Shrink covariances ``(..., k, k)`` of ``count`` items towards multiples of the identity.

    By the share of oracle-approximating shrinkage (Chen et al. 2010, eq. 23), with ``t = tr S`` and ``s = tr S^2``,

        ((1 - 2/k) s + t^2) / ((n + 1 - 2/k) (s - t^2 / k)),    at most 1,

    times a factor that falls linearly from 1 to 0 at ``n = 8 k``: from there on the estimate is that of the items.
    """
    size = covariance.shape[-1]
    trace, square = covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1), covariance.square().sum(dim=(-2, -1))
    spread = (count + 1.0 - 2.0 / size) * (square - trace.square() / size)
    share = _few(count, size) * _ratio((1.0 - 2.0 / size) * square + trace.square(), spread)
    sphere = torch.eye(size, dtype=covariance.dtype, device=covariance.device) * (trace / size)[..., None, None]
    return torch.lerp(covariance, sphere, share[..., None, None]) * _predictive(count)


def towards_their_mean(variances: Tensor, count: int) -> Tensor:
    """Shrink variances ``(D,)`` of ``count`` items, fewer than 8, towards their mean.

    By the share of their spread that is chance: a variance v of n normal items varies by ``2 v^2 / n`` (Opgen-Rhein &
    Strimmer 2007).
    """
    mean = variances.mean()
    share = _few(count, 1) * _ratio(2.0 / count * variances.square().sum(), (variances - mean).square().sum())
    return torch.lerp(variances, mean, share) * _predictive(count)


def towards_no_correlation(correlations: Tensor, count: int) -> Tensor:
    """Shrink correlations ``(..., k, k)`` of ``count`` items towards 0.

    By the share of their squares that is chance, which of uncorrelated items is ``1 / (n - 1)`` each (Schaefer &
    Strimmer 2005).
    """
    size = correlations.shape[-1]
    off = ~torch.eye(size, dtype=torch.bool, device=correlations.device)
    square = (correlations.square() * off).sum(dim=(-2, -1))
    share = _ratio(torch.full_like(square, size * (size - 1) / max(count - 1, 1)), square)
    return torch.where(off, correlations * (1.0 - share[..., None, None]), correlations)


def _predictive(count: int) -> float:
    """Return the factor from the mean square about the items' own mean to the variance of another item about it.

    Which is ``(n + 1) / (n - 1)``, as far as there are few items. A Gaussian that is too narrow does more harm than one
    that is as much too wide.
    """
    return 1.0 + _few(count, 1) * 2.0 / (count - 1.0)


def _few(count: int, size: int) -> float:
    """Return 1 for hardly any items, 0 for enough of them for a covariance of a size."""
    return max(0.0, 1.0 - count / (_ENOUGH * size))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return ``part / whole``, at most 1; 1 where the whole is 0."""
    return torch.where(whole > part, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 1.0)
