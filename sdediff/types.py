"""The nouns every other module speaks in.

A *state* is a float tensor ``(B, *shape)``. A *time* is a float or a float64 tensor of shape ``()`` or ``(B,)``;
a *level* is what a time means: how much signal and how much noise the state holds.
"""

from __future__ import annotations

from typing import Generic, NamedTuple

from torch import Tensor
from typing_extensions import TypeVar

Scalar = float | Tensor
"""A Python float, or a tensor of shape ``()`` or ``(B,)``: one number for the batch or one a sample."""
Time = Scalar
State = Tensor
S_co = TypeVar("S_co", bound=Scalar, covariant=True, default=Scalar)


class Level(NamedTuple, Generic[S_co]):
    """Signal and noise at one time: ``x_t = alpha x0 + sigma eps``.

    ``half_log_snr`` is lambda = log(alpha / sigma). ``scale`` = sqrt(alpha^2 + sigma^2) and
    ``angle`` = atan2(sigma, alpha) are the variance-preserving frame ``x_t = scale (cos x0 + sin eps)``.
    All fields are floats (``Level[float]``: one level for the whole batch) or float64 tensors of one shape, ``()`` or
    ``(B,)``.
    """

    t: S_co
    alpha: S_co
    sigma: S_co
    half_log_snr: S_co
    scale: S_co
    angle: S_co

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


class Split(NamedTuple):
    """A noisy state taken apart: ``alpha x0 + sigma eps == x_t``. The score is ``-eps / sigma``."""

    x0: Tensor
    eps: Tensor


class DataInfo(NamedTuple):
    """What a model's data are: enough to sample, to round to pixels and to count bits.

    Attributes:
        shape: of one item, for example ``(1, 8, 8)`` or ``(2,)``.
        levels: number of integer values ``0 .. levels - 1`` an entry takes; ``None`` for continuous data.
        low: the model's value for level 0.
        high: the model's value for level ``levels - 1``; levels are equally spaced between.
        name: of the data set.
    """

    shape: tuple[int, ...]
    levels: int | None = None
    low: float = -1.0
    high: float = 1.0
    name: str = ""


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
        x: the final state ``(B, *shape)``, in the dtype of the initial state.
        nfe: forwards of the network, every one counted (a batch is one forward).
        times: the times of the nodes, float64 ``(N + 1,)``; for adaptive methods the two ends.
        path: states at the nodes ``(N + 1, B, *shape)`` where asked for, else ``None``.
    """

    x: Tensor
    nfe: int
    times: Tensor
    path: Tensor | None = None
