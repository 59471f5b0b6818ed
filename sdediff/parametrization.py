r"""Parametrisations of the denoiser, and the split of a state by each into a clean and a noise half.

With ``x = alpha x0 + sigma eps``, ``scale = sqrt(alpha^2 + sigma^2)``, ``cos = alpha / scale`` and ``sin = sigma /
scale``. Each prediction gives both halves in terms of the state and the output alone, by the formula of least
rounding; no half is recovered from the other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdediff.numerics import expand
from sdediff.sde import SDE
from sdediff.types import Level, Pair, Scalar, Split


class Prediction(ABC):
    """A parametrisation of the denoiser; stateless."""

    @abstractmethod
    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        """Turn the network's output at the state ``x`` into a :class:`Split`."""

    @abstractmethod
    def target(self, clean: Split, level: Level) -> Tensor:
        """Return the training target: the output of a perfect network for a known pair ``(x0, eps)``."""

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the factor from a relative error of the output to that of the velocity, at angles of the noise."""
        return np.ones_like(angle)

    @property
    def steady(self) -> bool:
        """Tell whether errors are nowhere magnified."""
        return bool((self.gain(np.linspace(0.0, 0.5 * np.pi, 5)) <= 1.0).all())


class Linear(Prediction):
    """A prediction linear in the two halves, so that they are linear in it and in ``y = x / scale``."""

    @abstractmethod
    def halves(self, level: Level) -> tuple[Pair, Pair]:
        """Return ``(a, b), (c, d)`` with ``x0 = a y + b output`` and ``eps = c y + d output``."""

    @final
    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        return Split.linear(x, output, *self.halves(level), scale=level.scale)


def split_output(prediction: Prediction, output: Tensor, x: Tensor, level: Level, learned_variance: bool) -> Split:
    """Turn what a network returned at the state ``x`` ``(B, *shape)`` into a split.

    Raises:
        ValueError: if the output is not of the state's shape, with twice the channels for a learned variance, or its
            numbers are integers or complex.
    """
    wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if learned_variance else x.shape
    if output.shape != wanted:
        twice = " and its learned variance" if learned_variance else ""
        raise ValueError(f"the network returned {tuple(output.shape)} for a state {tuple(x.shape)}{twice}")
    if not output.is_floating_point():
        raise ValueError(f"the network returned numbers of type {output.dtype}: they must be floating-point")
    output = output.to(x.dtype)
    if not learned_variance:
        return prediction.split(output, x, level)
    output, variance = output.chunk(2, dim=1)
    split = prediction.split(output, x, level)
    split.fraction = 0.5 * (variance + 1.0)
    return split


_NOTHING = 1e6
"""Gain by which single precision leaves nothing of the data but rounding."""
_SMALLEST = 1e-7
"""Smallest sine or cosine in a gain, which is to stay finite; that of a cosine chain's noisy end is 5e-5."""


def _inverse(value: Scalar) -> Scalar:
    """Return ``1 / value``, infinite at 0 for floats too: one half of the split has no value there."""
    return math.inf if isinstance(value, float) and value == 0.0 else 1.0 / value


class Epsilon(Linear):
    """The noise (Ho et al. 2020)."""

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        return (_inverse(level.cos), -level.sin * _inverse(level.cos)), (0.0, 1.0)

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / np.maximum(np.cos(angle), _SMALLEST)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.eps


class Sample(Linear):
    """The clean sample (Salimans & Ho 2022 call it x-prediction)."""

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        return (0.0, 1.0), (_inverse(level.sin), -level.cos * _inverse(level.sin))

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / np.maximum(np.sin(angle), _SMALLEST)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.x0


class Velocity(Linear):
    """``v = cos eps - sin x0`` (Salimans & Ho 2022), the velocity on the angle in the variance-preserving frame."""

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        return (level.cos, -level.sin), (level.sin, level.cos)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.mix(-level.sin, level.cos)


class Score(Linear):
    """``grad log p_t(x) = -eps / sigma`` (Song et al. 2021)."""

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        return (_inverse(level.cos), level.sin * level.sigma * _inverse(level.cos)), (0.0, -level.sigma)

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / np.maximum(np.cos(angle), _SMALLEST)

    def target(self, clean: Split, level: Level) -> Tensor:
        return -clean.eps / expand(level.sigma, clean.eps)


class Flow(Linear):
    """``eps - x0``, the velocity of the rectified flow (Liu et al. 2023), usable on any process."""

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        share = 1.0 / (level.cos + level.sin)
        return (share, -level.sin * share), (share, level.cos * share)

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / (np.cos(angle) + np.sin(angle))

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.mix(-1.0, 1.0)


class ReversedFlow(Linear):
    """``x0 - eps``, the velocity of flow matching from noise to data (Lipman et al. 2023), where time runs backwards.

    For networks trained on ``t data + (1 - t) noise``; their time is that of the conditioning ``"reversed_time"``.
    """

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        share = 1.0 / (level.cos + level.sin)
        return (share, level.sin * share), (share, -level.cos * share)

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.0 / (np.cos(angle) + np.sin(angle))

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.mix(1.0, -1.0)


SIGMA_DATA = 0.5
"""Standard deviation of the data that Karras et al. (2022) assume for images in [-1, 1]."""


def check_sigma_data(sigma_data: float) -> None:
    """Refuse a standard deviation of the data that is none.

    Raises:
        ValueError: naming it.
    """
    if not (sigma_data > 0.0 and math.isfinite(sigma_data)):
        raise ValueError(f"sigma_data is the standard deviation of the data, finite and above 0, not {sigma_data}")


def edm_scale(level: Level, sigma_data: float) -> Scalar:
    """Return the standard deviation ``R = sqrt(sin^2 + sigma_data^2 cos^2)`` of the state in the frame."""
    return (level.sin**2 + (sigma_data * level.cos) ** 2) ** 0.5


@dataclass(frozen=True)
class EDM(Linear):
    """The output F of ``x0 = c_skip x / alpha + c_out F`` (Karras et al. 2022, eq. 7 and table 1).

    With ``s = sigma / alpha``: ``c_skip = sigma_data^2 / (s^2 + sigma_data^2)`` and ``c_out = s sigma_data / sqrt(s^2 +
    sigma_data^2)``; the target has variance 1 at every level. For data of variance 1 it is ``-v``. The inputs ``c_in``
    and ``c_noise`` are those of the conditioning ``"edm"``.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = SIGMA_DATA

    def __post_init__(self) -> None:
        check_sigma_data(self.sigma_data)

    def halves(self, level: Level) -> tuple[Pair, Pair]:
        data, share = self.sigma_data, 1.0 / edm_scale(level, self.sigma_data)
        return (
            (data**2 * level.cos * share**2, data * level.sin * share),
            (level.sin * share**2, -data * level.cos * share),
        )

    def gain(self, angle: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.sigma_data / np.hypot(np.sin(angle), self.sigma_data * np.cos(angle))

    def target(self, clean: Split, level: Level) -> Tensor:
        share = 1.0 / edm_scale(level, self.sigma_data)
        return clean.mix(level.sin * share / self.sigma_data, -self.sigma_data * level.cos * share)


def check_signal(prediction: Prediction, sde: SDE, t: float) -> None:
    """Refuse a time at which no signal is left and the prediction says nothing about the data.

    Raises:
        ValueError: naming the time and the cures.
    """
    if t <= sde.t_signal:
        return
    level = sde.levels([t])[0]
    if float(prediction.gain(np.array([level.angle]))[0]) > _NOTHING:
        raise ValueError(
            f"no signal is left at t = {t:g} (alpha / sigma = {math.exp(level.half_log_snr):.0e}), where a network of "
            f"{type(prediction).__name__.lower()} says nothing about the data: begin or end at t = {sde.t_signal:g} or "
            "below (t_from, t_to), or take a network that predicts v_prediction or sample"
        )


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Epsilon(),
    "sample": Sample(),
    "v_prediction": Velocity(),
    "score": Score(),
    "flow": Flow(),
    "reversed_flow": ReversedFlow(),
    "edm": EDM(),
}
