"""Levels, split states, descriptions of data, and solutions.

A *state* is a float tensor ``(B, *shape)``. A *time* is a float or a float64 tensor of shape ``()`` or ``(B,)``;
a *level* is the signal and noise of a state at one time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from sdediff.numerics import Scalar as Scalar
from sdediff.numerics import expand, scaled

Time = Scalar
S_co = TypeVar("S_co", bound=Scalar, covariant=True, default=Scalar)


class UndefinedError(AttributeError, ValueError):
    """Error of a figure that this result does not have; ``hasattr`` is false for it, and the message says why."""


def brief(result: Any) -> str:
    """Show a named tuple or a dataclass by its fields, tensors by shape, type and mean."""
    names = getattr(result, "_fields", None) or result.__dataclass_fields__
    parts = [f"{name}={_in_brief(getattr(result, name))}" for name in names]
    line = f"{type(result).__name__}({', '.join(parts)})"
    if len(line) <= 100 and "\n" not in line:
        return line
    return f"{type(result).__name__}(\n  {(',' + chr(10)).join(parts).replace(chr(10), chr(10) + '  ')}\n)"


def _in_brief(value: Any) -> str:
    """Show a value in at most a few lines."""
    if isinstance(value, np.ndarray):
        kind = str(value.dtype)
    elif isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key!r}: {_in_brief(entry)}" for key, entry in value.items()) + "}"
        return text if len(text) <= 1000 else f"{{{len(value)} entries}}"
    else:
        text = repr(value)
        return text if len(text) <= 1000 else f"{type(value).__name__}(...)"
    if 1 <= value.size <= 4:
        return f"{kind} {np.array2string(value, precision=5, separator=', ', threshold=5).replace(chr(10), '')}"
    return f"{kind} {tuple(value.shape)}" + (f", mean {value.mean(dtype=np.float64):.5g}" if value.size else "")


class Level(NamedTuple, Generic[S_co]):
    """Signal and noise at one time: ``x_t = alpha x0 + sigma eps``.

    ``half_log_snr`` is lambda = log(alpha / sigma). ``scale`` = sqrt(alpha^2 + sigma^2) and
    ``angle`` = atan2(sigma, alpha) are the variance-preserving frame ``x_t = scale (cos x0 + sin eps)``.
    All fields are floats (``Level[float]``: one level for the whole batch) or float64 tensors of one shape, ``()`` or
    ``(B,)``.

    >>> level = sdediff.RectifiedFlow().levels([0.25])[0]
    >>> level.alpha, level.sigma
    (0.75, 0.25)
    """

    t: S_co
    alpha: S_co
    sigma: S_co
    half_log_snr: S_co
    scale: S_co
    angle: S_co

    def perturb(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return ``alpha x0 + sigma eps``, ``(B, *shape)``: a draw of ``x_t | x0`` when ``eps`` is standard normal."""
        return expand(self.alpha, x0) * x0 + expand(self.sigma, x0) * eps

    @property
    def cos(self) -> S_co:
        """alpha in the variance-preserving frame."""
        return self.alpha / self.scale  # type: ignore[operator, return-value]

    @property
    def sin(self) -> S_co:
        """sigma in the variance-preserving frame."""
        return self.sigma / self.scale  # type: ignore[operator, return-value]


CLEAN: Level[float] = Level(t=0.0, alpha=1.0, sigma=0.0, half_log_snr=float("inf"), scale=1.0, angle=0.0)
"""The level of the data themselves, the same for every process."""


Pair = tuple[Scalar, Scalar]
"""Factors of two tensors."""


@final
class Split:
    """Clean and noise half of a state: ``alpha x0 + sigma eps == x_t``. The score is ``-eps / sigma``.

    Unpacks like a pair, ``x0, eps = split``. Both halves are linear in two tensors (themselves, or a state and the
    network's output), from which every combination of them is computed lazily and directly: no half is recovered from
    the other.

    Attributes:
        fraction: place of the network's log-variance of the reverse step, entry by entry, between the posterior's (0)
            and the marginal's (1) (Nichol & Dhariwal 2021, eq. 15), shape of the state; ``None`` if not learned.

    >>> x0, eps = sdediff.Split(torch.ones(1, 2), torch.zeros(1, 2))
    >>> x0
    tensor([[1., 1.]])
    """

    fraction: Tensor | None = None

    def __init__(self, x0: Tensor, eps: Tensor) -> None:
        self._basis: tuple[Tensor, Tensor] = (x0, eps)
        self._clean: Pair = (1.0, 0.0)
        self._noise: Pair = (0.0, 1.0)
        self._scale: Scalar = 1.0

    @classmethod
    def linear(cls, x: Tensor, output: Tensor, clean: Pair, noise: Pair, scale: Scalar = 1.0) -> Split:
        """Return the split of halves ``a y + b output``, with ``(a, b)`` for either half and ``y = x / scale``."""
        split = cls(x, output)
        split._clean, split._noise, split._scale = clean, noise, scale
        return split

    @cached_property
    def x0(self) -> Tensor:
        """The clean half, shape of the state."""
        return self.mix(1.0, 0.0)

    @cached_property
    def eps(self) -> Tensor:
        """The noise half, shape of the state."""
        return self.mix(0.0, 1.0)

    def mix(self, clean: Scalar, noise: Scalar) -> Tensor:
        """Return ``clean x0 + noise eps``; one of the two tensors itself where it is equal to that."""
        return scaled(*self.direction(clean, noise))

    def direction(self, clean: Scalar, noise: Scalar) -> tuple[Tensor, float]:
        """A tensor and a factor whose product is :meth:`mix`: saves a pass where the factor can join another."""
        (u, v), a, b = self._basis, self._factor(0, clean, noise), self._factor(1, clean, noise)
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            terms = [c * tensor for c, tensor in ((a, u), (b, v)) if not _zero(c)]
            return (terms[0] if len(terms) == 1 else terms[0] + terms[1]), 1.0
        if a == 0.0 or b == 0.0:
            return (u, a) if b == 0.0 else (v, b)
        return (torch.add(v, u, alpha=a / b), b) if abs(a) <= abs(b) else (torch.add(u, v, alpha=b / a), a)

    def _factor(self, i: int, clean: Scalar, noise: Scalar) -> Scalar:
        """The factor of tensor i in a combination; a half that is not wanted may be infinite."""
        total: Scalar = 0.0
        for wanted, own in ((clean, self._clean[i]), (noise, self._noise[i])):
            if not (_zero(wanted) or _zero(own)):
                total = total + wanted * own
        return expand(total if i == 1 else total / self._scale, self._basis[i])

    def __iter__(self) -> Iterator[Tensor]:
        yield self.x0
        yield self.eps


def _zero(factor: Scalar) -> bool:
    """Return whether a factor is the float 0 (a tensor is not read, which would wait for its device)."""
    return not isinstance(factor, Tensor) and factor == 0.0


class DataInfo(NamedTuple):
    """Description of a model's data, for sampling, rounding to pixels and counting bits.

    Attributes:
        shape: shape of one item, for example ``(1, 8, 8)`` or ``(2,)``.
        levels: number of integer values ``0 .. levels - 1`` an entry takes; ``None`` for continuous data.
        low: the model's value for level 0.
        high: the model's value for level ``levels - 1``; levels are equally spaced between.
        name: name of the data set.
        shift: shift m of each entry of continuous rows ``(D,)``; ``None`` for 0.
        scale: scale s > 0 of each entry; ``None`` for 1. The model's coordinates are ``(x - m) / s``; the library's
            functions take and return data in their own units
            (:mod:`sdediff.data.units`).

    >>> sdediff.DataInfo(shape=(1, 8, 8), levels=17, name="digits").high
    1.0
    """

    shape: tuple[int, ...]
    levels: int | None = None
    low: float = -1.0
    high: float = 1.0
    name: str = ""
    shift: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None


class Solution(NamedTuple):
    """Result of a solver.

    Attributes:
        x: the final state ``(B, *shape)``, in the dtype of the initial state.
        nfe: number of forwards of the network (a batch is one forward).
        times: times of the nodes, float64 ``(N + 1,)``; for adaptive methods the two ends.
        path: states at the nodes ``(N + 1, B, *shape)`` with ``path=True``, else ``None``.

    >>> model = sdediff.analytic.Gaussian([2.0, 0.0], 0.25).model(sdediff.VPSDE())
    >>> sdediff.solve(model, torch.zeros(1, 2), "ddim", steps=5).times.shape
    torch.Size([6])
    """

    x: Tensor
    nfe: int
    times: Tensor
    path: Tensor | None = None

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)
