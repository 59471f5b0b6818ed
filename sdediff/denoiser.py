r"""Denoisers: callables ``(x, level) -> Split``, and the model that makes one from a network and a process.

A :class:`Denoiser` knows its process (``sde``) and, where known, the data's ``moments``; ``score``, ``epsilon`` and
``denoise`` follow from the split. :class:`ScoreModel` is the one built from a network; :class:`Clip` and
:class:`Threshold` wrap any denoiser and compose.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from sdediff.conditioning import CONDITIONINGS, chain_steps
from sdediff.moments import Moments
from sdediff.numerics import choose, expand, flatten
from sdediff.predictions import PREDICTIONS, Prediction
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level, Split, Time


class Denoise(Protocol):
    """What a solver needs: the two halves of a state."""

    def __call__(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``."""
        ...


class Denoiser(nn.Module):
    """A denoiser of one process.

    Attributes:
        sde: the forward process whose states it splits.
        moments: mean and covariance of the data where known, else ``None``.
        data: shape, levels and range of the data where known, else ``None``.
    """

    sde: SDE
    moments: Moments | None
    data: DataInfo | None

    @abstractmethod
    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``."""

    def forwards(self, level: Level) -> int:
        """Forwards of the network that a split at ``level`` takes."""
        return 1

    def settle(self, times: Tensor) -> Tensor:
        """Nodes ``(N + 1,)`` of a grid, moved to where the network is best asked; the ends stay."""
        return times

    def split(self, x: Tensor, t: Time) -> Split:
        """Split the state ``x`` at time ``t``, a float or ``(B,)``."""
        result: Split = self(x, self.sde.level(t))
        return result

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """``E[x0 | x_t = x]``, shape of ``x``."""
        return self.split(x, t).x0

    def epsilon(self, x: Tensor, t: Time) -> Tensor:
        """``E[eps | x_t = x]``, shape of ``x``."""
        return self.split(x, t).eps

    def score(self, x: Tensor, t: Time) -> Tensor:
        """``grad log p_t(x) = -E[eps | x] / sigma``, shape of ``x``.

        Raises:
            ValueError: at ``t = 0``, where sigma = 0.
        """
        sigma = self.sde.sigma(t)
        if bool((sigma == 0.0).any()):
            raise ValueError(f"the score -eps / sigma has no value at t = 0; ask from t_min = {self.sde.t_min:g} up")
        return -self.epsilon(x, t) / expand(sigma, x)


class ScoreModel(Denoiser):
    """A network, a process, and what the network predicts.

    Args:
        network: any callable ``(x, t) -> tensor`` of the shape of ``x``; ``t`` has shape ``(B,)`` and lies in [0, 1].
        sde: the forward process.
        prediction: ``"epsilon"``, ``"sample"``, ``"v_prediction"``, ``"score"`` or ``"flow"``, or a
            :class:`~sdediff.predictions.Prediction`.
        conditioning: what the network is asked with: ``"time"`` for ``(x, t)``; ``"logsnr"`` for
            ``(x / sqrt(alpha^2 + sigma^2), lambda)``, which makes it independent of the schedule. Networks that count
            the steps of a chain (timestep k = 0 .. N-1 is ``t = (k + 1) / N``) take ``"label"`` for the real number
            ``t N - 1``, or, where they know integers alone, ``"interpolated"`` (two forwards between instants, see
            :mod:`sdediff.conditioning`) or ``"instants"`` (an error between them).
        moments: mean and covariance of the data, for the moment-matched prior.
        data: shape, levels and range of the data, for sampling without a shape and for bits/dim.
        learned_variance: the network returns twice the channels (dimension 1): the prediction, and v in [-1, 1] that
            says where the reverse step's log-variance lies, ``Split.fraction = (v + 1) / 2``.

    Raises:
        ValueError: for an unknown prediction or conditioning, or labels without a chain; in use, if the output's shape
            is not the state's (with twice the channels for a learned variance).
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: SDE,
        prediction: str | Prediction = "epsilon",
        *,
        conditioning: str = "time",
        moments: Moments | None = None,
        data: DataInfo | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.sde = sde
        self.prediction = choose(PREDICTIONS, prediction, "prediction") if isinstance(prediction, str) else prediction
        self.conditioning = conditioning
        self._inputs = choose(CONDITIONINGS, conditioning, "conditioning")
        if self._inputs.labels:
            chain_steps(sde)
        self.moments = moments
        self.data = data
        self.learned_variance = learned_variance

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``; the network keeps its dtype, the state its own."""
        return self._inputs.between(self._ask, self.sde, x, level)

    def forwards(self, level: Level) -> int:
        """Forwards of the network that a split at ``level`` takes: 2 where it is interpolated, else 1."""
        return self._inputs.forwards(self.sde, level)

    def settle(self, times: Tensor) -> Tensor:
        """Nodes of a grid, on the nearest instants for networks that know these alone."""
        return self._inputs.settle(self.sde, times)

    def _ask(self, x: Tensor, level: Level) -> Split:
        """One forward of the network."""
        parameter = next(self.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        output = self.network(*self._inputs.inputs(x, level, dtype, self.sde))
        wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if self.learned_variance else x.shape
        if output.shape != wanted:
            twice = " and its learned variance" if self.learned_variance else ""
            raise ValueError(f"the network returned {tuple(output.shape)} for a state {tuple(x.shape)}{twice}")
        output = output.to(x.dtype)
        if not self.learned_variance:
            return self.prediction.split(output, x, level)
        output, variance = output.chunk(2, dim=1)
        split = self.prediction.split(output, x, level)
        split.fraction = 0.5 * (variance + 1.0)
        return split


class Wrapper(Denoiser):
    """A denoiser that changes the clean half of another; the noise half follows so that the state is unchanged."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.sde, self.moments, self.data = inner.sde, inner.moments, inner.data

    def forwards(self, level: Level) -> int:
        """Those of the denoiser inside."""
        return self.inner.forwards(level)

    def settle(self, times: Tensor) -> Tensor:
        """As the denoiser inside."""
        return self.inner.settle(times)

    @abstractmethod
    def change(self, x0: Tensor) -> Tensor:
        """The new clean half."""

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state, with the clean half changed."""
        inner = self.inner(x, level)
        split = PREDICTIONS["sample"].split(self.change(inner.x0), x, level)
        split.fraction = inner.fraction
        return split


class Clip(Wrapper):
    """Clamp the clean half to the range of the data (Ho et al. 2020's implementation)."""

    def __init__(self, inner: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(inner)
        if not low < high:
            raise ValueError(f"clipping needs low < high, not {low} and {high}")
        self.low, self.high = low, high

    def change(self, x0: Tensor) -> Tensor:
        """Clamp."""
        return x0.clamp(self.low, self.high)


class Threshold(Wrapper):
    """Dynamic thresholding (Saharia et al. 2022): clamp to a quantile of each sample and rescale to [-1, 1].

    Args:
        inner: the denoiser.
        quantile: of the magnitudes of a sample's entries.
        most: the largest divisor; 1 is plain clamping.
    """

    def __init__(self, inner: Denoiser, quantile: float = 0.995, most: float = math.inf) -> None:
        super().__init__(inner)
        if not 0.0 < quantile <= 1.0:
            raise ValueError(f"the quantile must lie in (0, 1], not {quantile}")
        if not most >= 1.0:
            raise ValueError(f"no sample is divided by less than 1, so that its most cannot be {most}")
        self.quantile, self.most = quantile, most

    def change(self, x0: Tensor) -> Tensor:
        """Clamp each sample to its own quantile, at least 1 and at most ``most``, and divide by it."""
        quantile = flatten(x0).abs().quantile(self.quantile, dim=1)
        return (x0 / expand(quantile.clamp(1.0, self.most), x0)).clamp(-1.0, 1.0)
