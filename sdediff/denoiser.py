r"""Denoisers: callables ``(x, level) -> Split``, and the model that makes one from a network and a process.

A :class:`Denoiser` knows its process (``sde``) and, where known, the data's ``moments``; ``score``, ``epsilon`` and
``denoise`` follow from the split. :class:`ScoreModel` is the one built from a network; :class:`Clip` and
:class:`Threshold` wrap any denoiser and compose.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from sdediff.moments import Moments
from sdediff.numerics import choose, expand, flatten, scaled
from sdediff.predictions import PREDICTIONS, Prediction
from sdediff.sde import SDE
from sdediff.types import DataInfo, Level, Scalar, Split, Time


class Denoise(Protocol):
    """What a solver needs: the two halves of a state."""

    def __call__(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``."""
        ...


def _per_sample(value: Scalar, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(B,)`` from a scalar for the batch or one a sample."""
    if isinstance(value, float):  # made where it is needed: nothing to copy to the device
        return torch.full((x.shape[0],), value, dtype=dtype, device=x.device)
    tensor = torch.as_tensor(value, dtype=torch.float64 if x.device.type != "mps" else torch.float32)
    return tensor.to(dtype=dtype, device=x.device).expand(x.shape[0])


def _by_time(x: Tensor, level: Level, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.to(dtype), _per_sample(level.t, x, dtype)


def _by_log_snr(x: Tensor, level: Level, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return scaled(x, 1.0 / level.scale).to(dtype), _per_sample(level.half_log_snr, x, dtype)


def _by_level(x: Tensor, level: Level, _dtype: torch.dtype) -> tuple[Tensor, Level]:
    return x, level


CONDITIONINGS: dict[str, Callable[[Tensor, Level, torch.dtype], tuple[Tensor, Tensor | Level]]] = {
    "time": _by_time,  # (x, t), t in [0, 1]: the process's own time
    "logsnr": _by_log_snr,  # (x / scale, lambda): the variance-preserving frame, no schedule in it
    "level": _by_level,  # (x, Level): exact denoisers, which want float64 scalars
}


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
        """Split the state ``x`` ``(B, *shape)`` at ``level``; one forward of the network."""

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
            ``(x / sqrt(alpha^2 + sigma^2), lambda)``, which makes it independent of the schedule.
        moments: mean and covariance of the data, for the moment-matched prior.
        data: shape, levels and range of the data, for sampling without a shape and for bits/dim.

    Raises:
        ValueError: for an unknown prediction or conditioning; in use, if the output's shape is not the state's.
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
    ) -> None:
        super().__init__()
        self.network = network
        self.sde = sde
        self.prediction = choose(PREDICTIONS, prediction, "prediction") if isinstance(prediction, str) else prediction
        self.conditioning = conditioning
        self._inputs = choose(CONDITIONINGS, conditioning, "conditioning")
        self.moments = moments
        self.data = data

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state ``x`` ``(B, *shape)`` at ``level``; the network keeps its dtype, the state its own."""
        parameter = next(self.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        output = self.network(*self._inputs(x, level, dtype))
        if output.shape != x.shape:
            raise ValueError(f"the network returned {tuple(output.shape)} for a state {tuple(x.shape)}")
        return self.prediction.split(output.to(x.dtype), x, level)


class Wrapper(Denoiser):
    """A denoiser that changes the clean half of another; the noise half follows so that the state is unchanged."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.sde, self.moments, self.data = inner.sde, inner.moments, inner.data

    @abstractmethod
    def change(self, x0: Tensor) -> Tensor:
        """The new clean half."""

    def forward(self, x: Tensor, level: Level) -> Split:
        """Split the state, with the clean half changed."""
        return PREDICTIONS["sample"].split(self.change(self.inner(x, level).x0), x, level)


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
    """Dynamic thresholding (Saharia et al. 2022): clamp to a quantile of each sample and rescale to [-1, 1]."""

    def __init__(self, inner: Denoiser, quantile: float = 0.995) -> None:
        super().__init__(inner)
        if not 0.0 < quantile <= 1.0:
            raise ValueError(f"the quantile must lie in (0, 1], not {quantile}")
        self.quantile = quantile

    def change(self, x0: Tensor) -> Tensor:
        """Clamp each sample to its own quantile, at least 1, and divide by it."""
        quantile = flatten(x0).abs().quantile(self.quantile, dim=1)
        return (x0 / expand(quantile.clamp(min=1.0), x0)).clamp(-1.0, 1.0)
