r"""Covariances of many dimensions, diagonal in a basis of few numbers that held-out items choose.

Beyond a thousand dimensions or so a covariance has more entries than can be kept, or be known from the data there are:
with 14,000 items of 3,072 dimensions the sample covariance is a worse Gaussian of other items than what is tried here.
The candidates, of which the Gaussian log-likelihood of held-out items chooses, are

- the entries, each by itself;
- the orthonormal cosine transform over the places, with the C x C covariance of the channels at every frequency: that
  of stationary data, but for their borders;
- on top of the better of the two, the whole covariances of groups of the coordinates of largest variance: of one
  group, or of one for the even and the odd frequencies along every axis each. These are uncorrelated where data are as
  likely as their mirror images, as photographs nearly are, and so four times as many numbers are known as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.bases import Basis, Blocks, Chain, Cosine
from sdediff.bases.cosine import LARGEST_TRANSFORM
from sdediff.covariances.items import Covariance, Items, SecondMoments
from sdediff.covariances.plain import diagonal
from sdediff.covariances.shrinkage import towards_a_sphere, towards_no_correlation, towards_their_mean

ENTRIES = 1 << 21
"""Most entries of the matrices of a basis: 16 MiB in float64."""
_FLOOR = 1e-6  # smallest variance for a density, in units of the mean one
_WORTH = 1e-3  # gain, nats a dimension, from which on groups are worth their numbers
_HALVINGS = 4  # sizes of groups that are tried, each half of the one before


class Turned(NamedTuple):
    """A basis, and the second moments ``(D,)`` of the coordinates along it."""

    basis: Chain
    moments: SecondMoments


class Groups(NamedTuple):
    """Whole covariances of groups of coordinates.

    Attributes:
        gain: gain in the log-likelihood of the held-out items, nats an item.
        coordinates: coordinates ``(G, k)``, those of each group in falling order of variance.
        correlations: their correlations over all items, ``(G, k, k)``.
    """

    gain: float
    coordinates: Tensor
    correlations: Tensor


def structured(items: Items, shrink: bool) -> Covariance:
    """Estimate a covariance diagonal in a basis of few numbers, by the likelihood of held-out items."""
    if items.count < 2:
        return diagonal(items, shrink)
    axes = Turned(Chain(()), items.second_moments(lambda rows: rows.square().sum(dim=0)))
    least = _FLOOR * float(axes.moments.whole.mean())
    turned = max([axes, *_by_frequency(items, shrink)], key=lambda each: _log_likelihood(each.moments, least))
    variances = turned.moments.whole
    variances = towards_their_mean(variances, items.count) if shrink else variances
    best = max(_groups(items, turned, least, shrink), key=lambda each: each.gain, default=None)
    if best is None or best.gain < _WORTH * items.dim:
        return Covariance(variances, turned.basis if turned.basis.parts else None)
    deviations = variances[best.coordinates].clamp(min=least).sqrt()
    found, matrices = torch.linalg.eigh(best.correlations * _outer(deviations))
    variances = variances.index_copy(0, best.coordinates.reshape(-1), found.clamp(min=0.0).reshape(-1))
    return Covariance(variances, Chain((*turned.basis.parts, Blocks(best.coordinates, matrices.contiguous()))))


def _log_likelihood(moments: SecondMoments, least: float) -> float:
    """Return the log-likelihood of held-out items with the variances of the others, but for a constant."""
    variances = moments.fit.clamp(min=least)
    return -0.5 * float((moments.held / variances + variances.log()).sum())


def _by_frequency(items: Items, shrink: bool) -> Iterator[Turned]:
    """Yield the cosine transform with the covariance of the channels at every frequency, where items have places."""
    shape = items.shape
    if len(shape) < 2 or max(shape[1:]) > LARGEST_TRANSFORM:
        return
    cosine, channels = Cosine.of(shape), shape[0]
    cosine = cosine.to(items.mean)
    if channels == 1 or channels * items.dim > ENTRIES:
        yield Turned(Chain((cosine,)), items.second_moments(lambda rows: cosine.rotate(rows).square().sum(dim=0)))
        return

    def products(rows: Tensor) -> Tensor:
        places = cosine.rotate(rows).reshape(len(rows), channels, items.dim // channels)
        by_frequency = places.permute(2, 0, 1)  # (F, k, C)
        return by_frequency.mT @ by_frequency

    moments = items.second_moments(products)
    covariances = towards_a_sphere(moments.whole, items.count) if shrink else moments.whole
    matrices = torch.linalg.eigh(covariances).eigenvectors
    along = SecondMoments(*((matrices * (each @ matrices)).sum(dim=1).clamp(min=0.0).T.reshape(-1) for each in moments))
    index = torch.arange(items.dim, device=items.mean.device).reshape(channels, -1).T
    yield Turned(Chain((cosine, Blocks(index.contiguous(), matrices.contiguous()))), along)


def _groups(items: Items, turned: Turned, least: float, shrink: bool) -> Iterator[Groups]:
    """Yield whole covariances of groups of coordinates, with what they gain."""
    for index in _indices(items, turned):

        def products(rows: Tensor, basis: Basis = turned.basis, index: Tensor = index) -> Tensor:
            grouped = basis.rotate(rows)[:, index].transpose(0, 1)  # (G, k, size)
            return grouped.mT @ grouped

        moments = items.second_moments(products)
        for size in (index.shape[1] >> halvings for halvings in range(_HALVINGS)):
            if size < 2:
                break
            fit, held, whole = (each[:, :size, :size] for each in moments)
            deviations = fit.diagonal(dim1=1, dim2=2).clamp(min=least).sqrt()
            before = (held.diagonal(dim1=1, dim2=2) / deviations.square()).sum() + 2.0 * deviations.log().sum()
            for shrunk in (True, False) if shrink else (False,):  # shrinkage blurs what is nearly singular
                alone = _correlations(fit, items.fitted, least, shrunk)
                root, failed = torch.linalg.cholesky_ex(alone * _outer(deviations))
                if bool(failed.any()):
                    continue
                after = torch.cholesky_solve(held, root).diagonal(dim1=1, dim2=2).sum()
                after = after + 2.0 * root.diagonal(dim1=1, dim2=2).log().sum()
                gain, chosen = 0.5 * float(before - after), index[:, :size]
                yield Groups(gain, chosen, _correlations(whole, items.count, least, shrunk))


def _correlations(covariance: Tensor, count: int, least: float, shrink: bool) -> Tensor:
    """Return the correlations ``(G, k, k)`` of covariances, shrunk by as much of them as is chance."""
    correlations = covariance / _outer(covariance.diagonal(dim1=1, dim2=2).clamp(min=least).sqrt())
    correlations.diagonal(dim1=1, dim2=2).fill_(1.0)
    return towards_no_correlation(correlations, count) if shrink else correlations


def _outer(deviations: Tensor) -> Tensor:
    return deviations[:, :, None] * deviations[:, None, :]


def _indices(items: Items, turned: Turned) -> Iterator[Tensor]:
    """Yield groups ``(G, k)`` of coordinates, in falling order of variance: one of all, and those of equal parity."""
    falling = turned.moments.fit.argsort(descending=True, stable=True)
    yield falling[None, : math.isqrt(ENTRIES)]
    long = [n for n in items.shape[1:] if n > 1]
    if not turned.basis.parts or not long:
        return
    places = torch.meshgrid(*(torch.arange(n, device=falling.device) % 2 for n in long), indexing="ij")
    parities = torch.stack(places).reshape(len(long), -1).repeat(1, items.shape[0])[:, falling]
    wanted = torch.tensor(list(product((0, 1), repeat=len(long))), device=falling.device)
    members = [falling[(parities == each[:, None]).all(dim=0)] for each in wanted]
    size = min(math.isqrt(ENTRIES // len(members)), *map(len, members))
    yield torch.stack([each[:size] for each in members])
