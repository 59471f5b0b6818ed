r"""The divergence of a vector field, from the same forward as its value.

With ``J = dv / dy`` the divergence is ``tr J``. Exactly, it is read off ``D`` vector-Jacobian products, one a basis
vector, batched into few backward passes. By Hutchinson's estimator it is the mean over probes ``e`` with
``E[e e^T] = I`` of ``e . (J^T e)`` (Hutchinson 1990; Grathwohl et al. 2019). The products ``J^T e`` are kept whole:
their coordinates say how wrong the estimate is (:mod:`~sdediff.likelihood.probes`), even for a single probe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[..., Tensor]
"""A vector field ``field(y)`` on the states ``(B, *shape)`` of a batch, each on its own; ``field(y, rows)`` on states
of the items that ``rows`` says, with repeats or without."""

_BUDGET = 1 << 16  # entries of the cotangents of one backward pass: more spills the caches and is slower


def value_and_diagonal(field: Field, y: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """The field, the exact diagonal of its Jacobian and its squares; one forward, ``D`` vector-Jacobian products.

    Args:
        field: ``(B, *shape) -> (B, *shape)``, each sample on its own.
        y: ``(B, *shape)``.
        axes: orthonormal rows ``(D, D)``, the directions along which the diagonal is taken.

    Returns:
        The value ``(B, *shape)`` and, of every row q, ``q . J q`` and ``|J^T q|^2``: ``(B, 2, D)``. The sum of the
        first is the divergence, that of the second the squared norm of J.
    """
    value, pull = _forward(field, y)
    count = len(y)
    parts = []
    for rows in torch.split(axes.to(y), chunk_size(y)):
        products = pull(rows[:, None, :].expand(-1, count, -1))  # (chunk, B, D)
        along = torch.einsum("kbd,kd->bk", products, rows)
        parts.append(torch.stack([along, products.square().sum(dim=2).T], dim=1))
    return value, torch.cat(parts, dim=2)


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
    products = [pull(part.transpose(0, 1)).transpose(0, 1) for part in torch.split(probes, chunk_size(y), dim=1)]
    return value, torch.cat(products, dim=1)


def chunk_size(y: Tensor) -> int:
    """Cotangents that one backward pass at the states ``y`` takes."""
    return max(1, _BUDGET // max(1, y.numel()))


def _forward(field: Field, y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value, detached, and the map from cotangents ``(K, B, D)`` to ``J^T`` times them, ``(K, B, D)``."""
    # Callers may stand under no_grad or inference_mode; the divergence needs autograd all the same.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = y.detach().clone().requires_grad_()
        value = field(leaf)
    if not value.requires_grad:
        raise ValueError("the divergence needs a differentiable field: its value has no autograd history")

    def pull(cotangents: Tensor) -> Tensor:
        return _products(value, leaf, cotangents.reshape(-1, *value.shape)).reshape(*cotangents.shape[:2], -1)

    return value.detach(), pull


def _products(value: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    """``J^T`` times cotangents ``(K, B, *shape)``, in one backward pass where every layer can be batched."""
    if len(cotangents) > 1:
        try:
            return torch.autograd.grad(value, leaf, cotangents, retain_graph=True, is_grads_batched=True)[0]
        except RuntimeError:  # a layer that vmap does not know: fused attention, convolutions in channels-last order
            pass
    return torch.stack([torch.autograd.grad(value, leaf, one, retain_graph=True)[0] for one in cotangents])
