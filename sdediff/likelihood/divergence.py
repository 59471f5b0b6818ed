r"""The divergence of a vector field, from the same forward as its value.

With ``J = dv / dy`` the divergence is ``tr J``. Exactly, it is read off ``D`` vector-Jacobian products, one a basis
vector, batched into few backward passes. By Hutchinson's estimator it is the mean over probes ``e`` with
``E[e e^T] = I`` of ``e . (J^T e)`` (Hutchinson 1990; Grathwohl et al. 2019). The products ``J^T e`` are kept whole:
their coordinates say how wrong the estimate is (:data:`PROBES`), even for a single probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.numerics import flatten

Field = Callable[[Tensor], Tensor]

_BUDGET = 1 << 16  # entries of the cotangents of one backward pass: more spills the caches and is slower


def value_and_divergence(field: Field, y: Tensor) -> tuple[Tensor, Tensor]:
    """The field and its exact divergence; one forward, ``D`` vector-Jacobian products.

    Args:
        field: ``(B, *shape) -> (B, *shape)``, each sample on its own.
        y: ``(B, *shape)``.

    Returns:
        The value ``(B, *shape)`` and the divergence ``(B,)``, without autograd history.
    """
    value, pull = _forward(field, y)
    count, dim = flatten(y).shape
    chunk = max(1, _BUDGET // max(1, y.numel()))
    total = y.new_zeros(count)
    basis = torch.eye(dim, dtype=y.dtype, device=y.device)
    for start in range(0, dim, chunk):
        rows = basis[start : start + chunk]
        products = pull(rows[:, None, :].expand(-1, count, -1))  # (chunk, B, D)
        total = total + torch.einsum("kbd,kd->b", products, rows)
    return value, total


def value_and_products(field: Field, y: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """The field and its transposed Jacobian times each probe; one forward, one batched backward pass.

    Args:
        field: ``(B, *shape) -> (B, *shape)``, each sample on its own.
        y: ``(B, *shape)``.
        probes: ``(B, K, D)``.

    Returns:
        The value ``(B, *shape)`` and the products ``J^T e`` of ``(B, K, D)``, without autograd history. The sum of
        ``e * J^T e`` over the last dimension is an unbiased estimate of the divergence for each probe.
    """
    value, pull = _forward(field, y)
    chunk = max(1, _BUDGET // max(1, y.numel()))
    products = [pull(part.transpose(0, 1)).transpose(0, 1) for part in torch.split(probes, chunk, dim=1)]
    return value, torch.cat(products, dim=1)


def _forward(field: Field, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value, detached, and the map from cotangents ``(K, B, D)`` to ``J^T`` times them, ``(K, B, D)``."""
    # Callers may stand under no_grad or inference_mode; the divergence needs autograd all the same.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = y.detach().clone().requires_grad_()
        value = field(leaf)
    if not value.requires_grad:
        raise ValueError("the divergence needs a differentiable field: its value has no autograd history")

    def pull(cotangents: Tensor) -> Tensor:
        shaped = cotangents.reshape(-1, *value.shape)
        (products,) = torch.autograd.grad(value, leaf, shaped, retain_graph=True, is_grads_batched=True)
        return products.reshape(*cotangents.shape[:2], -1)

    return value.detach(), pull


# ---- probes --------------------------------------------------------------------------------------------------


class ProbeLaw(NamedTuple):
    """A law of probes.

    Attributes:
        draw: from standard normals to probes of any shape.
        variance: of one probe's estimate ``e . (A^T e)`` of ``tr A``, ``(B,)``, from the probes ``(B, K, D)`` and the
            products ``A^T e`` ``(B, K, D)``.
    """

    draw: Callable[[Tensor], Tensor]
    variance: Callable[[Tensor, Tensor], Tensor]


def _rademacher_variance(probes: Tensor, products: Tensor) -> Tensor:
    """Twice the spread of each coordinate's share ``e_i (A^T e)_i``.

    For signs the share has mean ``a_ii`` and variance ``sum_{j != i} a_ji^2``, and for symmetric A the variance of
    their sum is ``2 sum_{i != j} a_ij^2`` (Hutchinson 1990), twice the sum of the variances; for others it is at most
    that. All coordinates speak, so it is far steadier than the spread of K sums. A single probe knows no ``a_ii``:
    their mean over the coordinates stands in, which overstates the variance by twice the diagonal's spread.
    """
    shares = probes * products
    count, dim = shares.shape[1:]
    if count > 1:
        return 2.0 * shares.var(dim=1).sum(dim=1)
    if dim <= 2:  # no spread to see beside the mean: the upper bound 2 |A|_F^2
        return 2.0 * shares.square().sum(dim=(1, 2))
    # Where the diagonal is constant, the mean over D coordinates takes the share 2 / D of the spread away.
    return 2.0 * dim / (dim - 2) * (shares - shares.mean(dim=2, keepdim=True)).square().sum(dim=(1, 2))


def _gaussian_variance(probes: Tensor, products: Tensor) -> Tensor:  # noqa: ARG001 - the table's signature
    """``2 |A|_F^2`` for symmetric A (at most that for others), by the unbiased ``|A^T e|^2``."""
    return 2.0 * products.square().sum(dim=2).mean(dim=1)


PROBES: dict[str, ProbeLaw] = {
    "rademacher": ProbeLaw(lambda normals: torch.where(normals < 0.0, -1.0, 1.0).to(normals), _rademacher_variance),
    "gaussian": ProbeLaw(lambda normals: normals, _gaussian_variance),
}
