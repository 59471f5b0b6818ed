"""Scalar functions without cancellation, and products of scalars with states."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sdediff.tables import nearest

Scalar = float | Tensor
"""A Python float, or a tensor of shape ``()`` or ``(B,)``: one number for the batch or one a sample."""
EntryT = TypeVar("EntryT")

LOG_2PI = math.log(2.0 * math.pi)
_ROUNDING = 1e-9  # of numbers up to a million in float64, with room

PART = 1 << 20
"""Number of entries of a data set that are processed at a time."""


def as_float64(value: Scalar) -> Tensor:
    """Return ``value`` as a float64 tensor, on its own device where that device has float64."""
    if isinstance(value, Tensor):
        if widest(value.device) != torch.float64:  # scalars are free on the CPU
            value = value.cpu()
        return value.to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floats of a device, in which densities are summed: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in the widest floats of its device."""
    return x.to(widest(x.device))


def single(x: Tensor) -> Tensor:
    """Return floats of half precision in single precision, anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def log1mexp(x: Tensor) -> Tensor:
    """Compute ``log(1 - exp(x))`` for ``x <= 0`` without cancellation at either end (Maechler, 2012)."""
    near_zero = x > -math.log(2.0)
    # Both branches get arguments at which they are finite, so that gradients are finite too.
    return torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x))),
    )


def to_nearest(x: Tensor) -> Tensor:
    """Round ``x`` to the nearest integers, and down half-way between two, whatever the last bits of ``x`` say."""
    return (x + (0.5 - _ROUNDING)).floor()


def softplus(x: Tensor) -> Tensor:
    """Compute ``log(1 + exp(x))`` in full precision (torch's own turns linear at 20)."""
    return torch.logaddexp(torch.zeros_like(x), x)


def expand(value: Scalar, x: Tensor) -> Scalar:
    """Reshape ``value``, a float or a tensor ``()`` or ``(B,)``, to multiply the state ``x`` ``(B, *shape)``.

    Floats pass through (the cheapest way to scale a tensor); tensors take the dtype and device of ``x``.

    Raises:
        ValueError: if ``value`` has another shape, rather than broadcasting it silently.
    """
    if not isinstance(value, Tensor):
        return value
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, x.shape[0])):
        raise ValueError(
            f"a scalar per sample must have shape () or ({x.shape[0]},) for a state {tuple(x.shape)}, "
            f"not {tuple(value.shape)}"
        )
    value = value.to(dtype=x.dtype, device=x.device)
    return value if value.ndim == 0 else value.reshape(-1, *(1,) * (x.ndim - 1))


def scaled(x: Tensor, factor: Scalar) -> Tensor:
    """Return ``factor x``, and ``x`` itself where the factor is a float equal to 1 up to rounding."""
    return x if isinstance(factor, float) and abs(factor - 1.0) < 1e-15 else x * expand(factor, x)


def combine(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Compute ``sum of factor * tensor`` in few passes over memory: one new tensor, updated in place.

    The tensors themselves are not changed, and gradients flow through all of them.
    """
    terms = [term for term in terms if term[0] != 0.0] or terms[:1]  # zero times infinity counts for nothing here
    (factor, total), rest = terms[0], terms[1:]
    if factor == 1.0 and rest:
        total, rest = torch.add(total, rest[0][1], alpha=rest[0][0]), rest[1:]
    else:
        total = total * factor
    for factor, tensor in rest:
        total.add_(tensor, alpha=factor)
    return total


def all_finite(x: Tensor) -> bool:
    """Return whether no entry is NaN or infinite."""
    # Any NaN or infinity makes the sum so, which takes a 30th of the time; each entry is tested if the sum overflows.
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def flatten(x: Tensor) -> Tensor:
    """Reshape ``(B, *shape)`` to ``(B, D)``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # not -1, which is undefined for an empty batch


def sum_features(x: Tensor) -> Tensor:
    """Sum over all but the batch dimension: ``(B, *shape)`` to ``(B,)``."""
    return flatten(x).sum(dim=1)


def error_of_mean(values: Tensor) -> float:
    """Return the standard error of the mean of ``(B,)`` as an estimate for the population; NaN for one value."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Return the log-density of N(0, I) in nats: ``(B, *shape)`` to ``(B,)``."""
    return -0.5 * sum_features(x.square() + LOG_2PI)


def in_parts(x: Tensor) -> Iterator[Tensor]:
    """Yield the items of a tensor ``(n, ...)``, about a million entries at a time."""
    size = max(1, PART * len(x) // max(1, x.numel()))
    for start in range(0, len(x), size):
        yield x[start : start + size]


def choose(table: Mapping[str, EntryT], name: str, what: str) -> EntryT:
    """Look ``name`` up in one of the library's tables.

    Raises:
        ValueError: naming the unknown name and those that are allowed.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {ascii(name)[:80]}{nearest(name, table)}; choose one of: {', '.join(table)}")
    return table[name]
