"""Moments as named tensors, as checkpoints hold them: ``mean``, ``variances`` and those of the basis.

A matrix is ``basis``; turns are numbered, ``basis.0.cosine.shape``, ``basis.1.blocks.index`` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sdediff.bases import Basis, Chain, as_basis
from sdediff.gaussian import Moments
from sdediff.tables import subtable
from sdediff.tensors import check_finite


def moments_tensors(moments: Moments) -> dict[str, Tensor]:
    """Return the tensors of moments, by name."""
    plain = {"mean": moments.mean, "variances": moments.variances}
    if moments.basis is None or isinstance(moments.basis, Tensor):
        return plain if moments.basis is None else {**plain, "basis": moments.basis}
    chain = moments.basis if isinstance(moments.basis, Chain) else Chain((moments.basis,))
    return {**plain, **{f"basis.{name}": value for name, value in chain.tensors().items()}}


def read_moments(tensors: Mapping[str, Tensor], shape: tuple[int, ...] | None = None) -> Moments:
    """Return the moments of named tensors, which are not trusted.

    Args:
        tensors: tensors, as of :func:`moments_tensors`.
        shape: shape of an item, where it is known.

    Raises:
        ValueError: if they are no mean and covariance of such items.
    """
    check_finite(tensors)
    parts = subtable(tensors, "basis.")
    basis: Tensor | Basis | None = Chain.read(parts) if parts else tensors.get("basis")
    known = {"mean", "variances", *(f"basis.{name}" for name in parts)} | ({"basis"} if not parts else set())
    if not {"mean", "variances"} <= tensors.keys() <= known:
        raise ValueError(f"the moments are not made of: {', '.join(sorted(tensors))[:200]}")
    moments = Moments(tensors["mean"], tensors["variances"], basis)
    as_basis(basis).check(moments.mean.shape)
    fits = moments.variances.shape == (moments.mean.numel(),) and (shape is None or moments.mean.shape == shape)
    if not fits or bool((moments.variances < 0.0).any()):
        raise ValueError("the moments are no mean and covariance of the data")
    return moments
