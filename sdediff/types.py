"""The nouns every other module speaks in.

A *state* is a float tensor ``(B, *shape)``. A *time* is a float or a float64 tensor of shape ``()`` or ``(B,)``;
a *level* is what a time means: how much signal and how much noise the state holds.
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
State = Tensor
S_co = TypeVar("S_co", bound=Scalar, covariant=True, default=Scalar)


class UndefinedError(AttributeError, ValueError):
    """A figure that does not exist for this result: ``hasattr`` says no, and whoever asks all the same is told why."""


def brief(result: Any) -> str:
    """Show a named tuple or a dataclass by its fields, tensors by shape, type and mean: a result that fits a screen."""
    names = getattr(result, "_fields", None) or result.__dataclass_fields__
    parts = [f"{name}={_in_brief(getattr(result, name))}" for name in names]
    line = f"{type(result).__name__}({', '.join(parts)})"
    if len(line) <= 100 and "\n" not in line:
        return line
    return f"{type(result).__name__}(\n  {(',' + chr(10)).join(parts).replace(chr(10), chr(10) + '  ')}\n)"


def _in_brief(value: Any) -> str:
    """A value in at most a few lines."""
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
"""The factors of two tensors."""


@final
class Split:
    """A noisy state taken apart: ``alpha x0 + sigma eps == x_t``. The score is ``-eps / sigma``.

    Unpacks like a pair, ``x0, eps = split``. Both halves are linear in two tensors (themselves, or a state and what a
    network said about it), and every combination of them is made from those two when it is asked for: what nobody asks
    for is never made, and nothing is recovered from a half that was itself recovered.

    Attributes:
        fraction: where the network puts the reverse step's log-variance, entry by entry, between the posterior's (0)
            and the marginal's (1) (Nichol & Dhariwal 2021, eq. 15), shape of the state; ``None`` where it does not say.

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
        """The halves ``clean[0] y + clean[1] output`` and ``noise[0] y + noise[1] output`` with ``y = x / scale``."""
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
        """``clean x0 + noise eps``; one of the two tensors itself where that is all it takes."""
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
    """Whether a factor is 0 for the whole batch (a tensor is not read: that would wait for its device)."""
    return not isinstance(factor, Tensor) and factor == 0.0


class DataInfo(NamedTuple):
    """What a model's data are: enough to sample, to round to pixels and to count bits.

    Attributes:
        shape: of one item, for example ``(1, 8, 8)`` or ``(2,)``.
        levels: number of integer values ``0 .. levels - 1`` an entry takes; ``None`` for continuous data.
        low: the model's value for level 0.
        high: the model's value for level ``levels - 1``; levels are equally spaced between.
        name: of the data set.
        shift: of continuous rows ``(D,)``, what the model's coordinates take off each entry; ``None`` for nothing.
        scale: what they divide each entry by after that, above 0; ``None`` for 1. The model works on
            ``(x - shift) / scale``, data are given to and come from the library's functions in their own units
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
    """What a solver returns.

    Attributes:
        x: the final state ``(B, *shape)``, in the dtype of the initial state.
        nfe: forwards of the network, every one counted (a batch is one forward).
        times: the times of the nodes, float64 ``(N + 1,)``; for adaptive methods the two ends.
        path: states at the nodes ``(N + 1, B, *shape)`` where asked for, else ``None``.

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
