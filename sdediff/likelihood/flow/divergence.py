r"""The divergence of a vector field, from the same forward as its value.

With ``J = dv / dy`` the divergence is ``tr J``. Exactly, it is read off ``D`` vector-Jacobian products, one a basis
vector, batched into few backward passes. By Hutchinson's estimator it is the mean over probes ``e`` with
``E[e e^T] = I`` of ``e . (J^T e)`` (Hutchinson 1990; Grathwohl et al. 2019). The products ``J^T e`` are kept whole:
their coordinates say how wrong the estimate is (:mod:`~sdediff.likelihood.flow.hutchinson`), even for a single probe.

Gradients flow through it in the memory of one node (:func:`products_through`). A likelihood is a sum over nodes of ``w
. v`` and of ``g . (J^T e)``; what joins the nodes is linear. A node's activations are made twice: forwards without a
graph, and backwards, one node after another, when the gradient ``(w, g)`` of the results there is known:

    gradient of  w . v(y) + sum_k g_k . J(y)^T e_k   with respect to y and to the parameters of v

by differentiating the products once more. This is the gradient of the number that was computed, to rounding, not an
approximation to that of the integral (as solving an adjoint equation backwards would be), and what stays in memory of a
node is its state, value and probes (Griewank & Walther 2000; Chen et al. 2016).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdediff.bases import Axes
from sdediff.execution import several_products, tf32_products, uncompiled

VectorField = Callable[..., Tensor]
"""Vector field ``field(y)`` on the states ``(B, *shape)`` of a batch, each sample on its own; ``field(y, rows)`` takes
states of the items with the indices ``rows``, with repeats or without."""

_MAX_COTANGENTS, _MAX_ON_DEVICE = 1 << 15, 1 << 23
"""Entries of the cotangents of one backward pass, on the CPU, where more overflow the caches and are slower, and on
accelerators, which are slower with fewer."""
_WORTHWHILE, _FEW = 8, 2
"""On the CPU, the number of cotangents that the caches must hold for a pass to take several, and the number up to which
a pass each is faster: the batched form of a layer's derivative costs a tenth to a fifth more than its own."""


class BatchedPass:
    """Backward passes of a network that take several cotangents each.

    They take as many as memory holds, or one where a layer has no batching rule, such as fused attention or
    convolutions in channels-last order.

    Attributes:
        most: the largest number of them; found out by the first passes along a path.
    """

    def __init__(self) -> None:
        self.most = sys.maxsize

    def products(self, value: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
        """Return ``J^T`` times cotangents ``(K, B, *shape)``, in as few backward passes as can be."""
        parts, done = [], 0
        while done < len(cotangents):
            part = cotangents[done : done + self.most]
            try:
                parts.append(_backward(value, leaf, part))
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self.most = len(part) // 2
            except RuntimeError:
                if len(part) == 1:
                    raise
                self.most = 1
            else:
                done += len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _backward(value: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    """Return ``J^T`` times cotangents ``(K, B, *shape)`` by one backward pass, or one each where that is faster."""
    if len(cotangents) <= (_FEW if value.device.type == "cpu" else 1):
        return torch.stack([torch.autograd.grad(value, leaf, each, retain_graph=True)[0] for each in cotangents])
    return torch.autograd.grad(value, leaf, cotangents, retain_graph=True, is_grads_batched=True)[0]


def value_and_diagonal(
    field: VectorField, y: Tensor, axes: Tensor | Axes, batched: BatchedPass | None = None
) -> tuple[Tensor, Tensor]:
    """Return a field, the exact diagonal of its Jacobian and its squares: one forward, ``D`` vector-Jacobian products.

    Args:
        field: vector field ``(B, *shape) -> (B, *shape)``, each sample on its own.
        y: states, ``(B, *shape)``.
        axes: orthonormal rows ``(D, D)``, the directions along which the diagonal is taken, or what makes them.
        batched: what is known of the field's backward passes.

    Returns:
        The value ``(B, *shape)`` and, of every row q, ``q . J q`` and ``|J^T q|^2``: ``(B, 2, D)``. The sum of the
        first is the divergence, that of the second the squared norm of J.
    """
    value, pull = _forward(field, y, batched)
    count = len(y)
    parts = []
    for rows in _chunks(axes, y):
        products = pull(rows[:, None, :].expand(-1, count, -1))  # (chunk, B, D)
        diagonal = torch.einsum("kbd,kd->bk", products, rows)
        parts.append(torch.stack([diagonal, products.square().sum(dim=2).T], dim=1))
    return value, torch.cat(parts, dim=2)


def _chunks(axes: Tensor | Axes, y: Tensor) -> Iterator[Tensor]:
    """Yield the rows that one backward pass at the states ``y`` takes, in their dtype."""
    size = most_cotangents(y)
    if isinstance(axes, Tensor):
        yield from torch.split(axes.to(y), size)
    else:
        for start in range(0, axes.dim, size):
            yield axes.rows(start, min(start + size, axes.dim)).to(y)


def value_and_products(
    field: VectorField, y: Tensor, probes: Tensor, batched: BatchedPass | None = None
) -> tuple[Tensor, Tensor]:
    """Return a field and its transposed Jacobian times each probe: one forward, and backward passes.

    Args:
        field: vector field ``(B, *shape) -> (B, *shape)``, each sample on its own.
        y: states, ``(B, *shape)``.
        probes: random probes, ``(B, K, D)``.
        batched: what is known of the field's backward passes.

    Returns:
        The value ``(B, *shape)`` and the products ``J^T e`` of ``(B, K, D)``, without autograd history. The sum of
        ``e * J^T e`` over the last dimension is an unbiased estimate of the divergence for each probe.
    """
    value, pull = _forward(field, y, batched)
    parts = torch.split(probes, most_cotangents(y), dim=1)
    products = [pull(part.transpose(0, 1)).transpose(0, 1) for part in parts]
    return value, torch.cat(products, dim=1)


def most_cotangents(y: Tensor) -> int:
    """Return the largest number of cotangents that one backward pass at the states ``y`` is to take."""
    own = y.device.type == "cpu"
    most = (_MAX_COTANGENTS if own else _MAX_ON_DEVICE) // max(1, y.numel())
    return most if most >= _WORTHWHILE or not own else 1


def _forward(field: VectorField, y: Tensor, batched: BatchedPass | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the value, detached, and the map from cotangents ``(K, B, D)`` to ``J^T`` times them, ``(K, B, D)``."""
    # Callers may run under no_grad or inference_mode; the divergence needs autograd all the same.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = y.detach().clone().requires_grad_()
        value = field(leaf)
    if not value.requires_grad:
        raise ValueError("the divergence needs a differentiable field: its value has no autograd history")
    batched = BatchedPass() if batched is None else batched

    def pull(cotangents: Tensor) -> Tensor:
        with several_products():
            found = batched.products(value, leaf, cotangents.reshape(-1, *value.shape))
        return found.reshape(*cotangents.shape[:2], -1)

    return value.detach(), pull


_VALUE_TOLERANCE = 1e-2
"""Relative difference up to which two values at one state are the same but for rounding, in whatever precision."""


class _Directional(NamedTuple):
    """A function of a field's Jacobian along directions.

    Attributes:
        evaluate: function ``(field, y, directions, batched) -> (value, result)``.
        products: function ``(directions, gradient of result) -> (probes e, gradient of J^T e)``, ``(B, K, D)`` each.
    """

    evaluate: Callable[[VectorField, Tensor, Tensor, BatchedPass | None], tuple[Tensor, Tensor]]
    products: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# The diagonal along an axis q is q . (J^T q); the squares serve the error estimates, which have no gradients.
_DIAGONAL = _Directional(value_and_diagonal, lambda axes, of: (axes.expand(len(of), -1, -1), of[:, 0, :, None] * axes))
_PRODUCTS = _Directional(value_and_products, lambda probes, of: (probes, of))


def diagonal_through(
    parameters: Sequence[Tensor] | None, field: VectorField, y: Tensor, axes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return :func:`value_and_diagonal` with gradients to ``y`` and to ``parameters``.

    Where ``parameters`` is ``None`` (not an empty list) no graph is left.
    """
    return _evaluate(_DIAGONAL, parameters, field, y, axes)


def products_through(
    parameters: Sequence[Tensor] | None,
    field: VectorField,
    y: Tensor,
    probes: Tensor,
    batched: BatchedPass | None = None,
) -> tuple[Tensor, Tensor]:
    """Return :func:`value_and_products` with gradients as in :func:`diagonal_through`."""
    return _evaluate(_PRODUCTS, parameters, field, y, probes, batched)


def _evaluate(
    function: _Directional,
    parameters: Sequence[Tensor] | None,
    field: VectorField,
    y: Tensor,
    directions: Tensor,
    batched: BatchedPass | None = None,
) -> tuple[Tensor, Tensor]:
    if parameters is None:
        return function.evaluate(field, y, directions, batched)
    apply = _NodeFunction.apply
    results: tuple[Tensor, Tensor] = apply(function, field, directions, y, *parameters)  # type: ignore[no-untyped-call]
    return results


class _NodeFunction(torch.autograd.Function):
    """A function of the Jacobian at one node, evaluated again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, function: _Directional, field: VectorField, directions: Tensor, y: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, result = function.evaluate(field, y, directions, None)
        # The parameters themselves, not what hooks on saved tensors make of them: they are differentiated by identity.
        ctx.function, ctx.field, ctx.parameters = function, field, parameters
        ctx.tf32 = torch.backends.cuda.matmul.allow_tf32  # the backward pass multiplies as this one does
        ctx.versions = [parameter._version for parameter in parameters]
        ctx.save_for_backward(y, value, directions)
        return value, result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_value: Tensor, of_result: Tensor) -> tuple[Tensor | None, ...]:
        y, value, directions = ctx.saved_tensors
        if [parameter._version for parameter in ctx.parameters] != ctx.versions:
            raise RuntimeError("a parameter was changed in place between the likelihood and its gradient")
        probes, of_products = ctx.function.products(directions.to(y), of_result)
        with tf32_products(ctx.tf32):
            gradients = _pull_back(ctx.field, y, value, ctx.parameters, (of_value, probes, of_products))
        return None, None, None, *gradients


def _pull_back(
    field: VectorField, y: Tensor, value: Tensor, parameters: Sequence[Tensor], wanted: tuple[Tensor, Tensor, Tensor]
) -> list[Tensor | None]:
    """Return the gradients of ``of_value . v + sum_k of_products_k . J^T probe_k`` to ``y`` and the parameters."""
    of_value, *sides = wanted
    totals: list[Tensor | None] = [None] * (1 + len(parameters))
    items = torch.arange(len(y), device=y.device)
    size = max(1, _MAX_COTANGENTS // y.numel())  # of copies of the states, whose graphs are kept
    for probes, of_products in zip(*(torch.split(side, size, dim=1) for side in sides), strict=True):
        # Copies of the states, one a probe: vmap does not have the second derivative of every layer.
        e, g = (side.transpose(0, 1).reshape(-1, *y.shape[1:]) for side in (probes, of_products))
        leaf = y.detach().repeat(probes.shape[1], *(1,) * (y.ndim - 1)).requires_grad_()
        # Fused attention and compiled networks have no second derivative; the plain ones have.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), uncompiled():
            again = field(leaf, items.repeat(probes.shape[1]))
            first = again[: len(y)]
            _check_same(first.detach(), value)
            (pulled,) = torch.autograd.grad(again, leaf, e, create_graph=True)
        pairs = [(first, of_value)] if totals[0] is None else []
        if pulled.requires_grad:  # not where J is a constant
            pairs.append((pulled, g))
        if not pairs:
            break
        outputs, slopes = zip(*pairs, strict=True)
        of_leaf, *more = torch.autograd.grad(outputs, [leaf, *parameters], slopes, allow_unused=True)
        found = [None if of_leaf is None else of_leaf.reshape(-1, *y.shape).sum(dim=0), *more]
        totals = [_sum(total, part) for total, part in zip(totals, found, strict=True)]
    return totals


def _check_same(again: Tensor, value: Tensor) -> None:
    """Refuse a model that is not a function of its input and has no gradient."""
    if not bool((again - value).norm() <= _VALUE_TOLERANCE * value.norm()):
        raise RuntimeError(
            "the model gave another value when asked again at the same state, so it has no gradient: "
            "put it in evaluation mode (dropout is random, and batch norm has a memory)"
        )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two optional tensors."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
