r"""Reverse processes in the variance-preserving frame ``y = x / scale = cos(theta) x0 + sin(theta) eps``.

Every process is the same in this frame, on two clocks that do not depend on the schedule:

    half log-SNR lambda:  dy = [sin^2 y - (1 + eta^2) sin eps] d lambda + eta sqrt(2) sin dW,     growing lambda
    angle theta:          dy / d theta = v = cos eps - sin x0                                     (eta = 0)

``eta = 0`` is the probability-flow ODE, ``eta = 1`` the reverse SDE (Song et al. 2021, eq. 6 and 13); all have the
same marginals.
"""

from __future__ import annotations

import math

from torch import Tensor

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.gaussian import Moments
from sdediff.numerics import expand, scaled
from sdediff.parametrization import Prediction
from sdediff.sde import SDE
from sdediff.types import Level, Scalar, Split


class Frame:
    """Denoiser of states in the variance-preserving frame; counts the NFE."""

    def __init__(self, denoise: Denoiser, sde: SDE) -> None:
        self.denoise, self.sde, self.nfe = denoise, sde, 0

    @property
    def moments(self) -> Moments | None:
        """Mean and covariance of the data, where the denoiser knows them."""
        return self.denoise.moments

    @property
    def prediction(self) -> Prediction:
        """Prediction of the denoiser's network."""
        return self.denoise.prediction

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split the state ``y`` of the frame at ``level``.

        Args:
            y: state ``(b, *shape)``.
            level: level of the state.
            rows: indices in the batch of the items of these states; all of them, in order, by default.
        """
        self.nfe += self.denoise.nfe(level)
        split: Split = (self.denoise if rows is None else self.denoise.rows(rows))(to_x(y, level), level)
        return split

    def at_angle(self, angle: float) -> Level[float]:
        """Return the level of the process at an angle strictly between 0 and pi/2."""
        return self.at_half_log_snr(-math.log(math.tan(angle)))

    def at_half_log_snr(self, half_log_snr: float) -> Level[float]:
        """Return the level of the process at a half log-SNR."""
        return Level(*(float(field) for field in self.sde.level_at(half_log_snr)))


def to_x(y: Tensor, level: Level) -> Tensor:
    """Return the state of the process; free for variance-preserving processes."""
    return scaled(y, level.scale)


def to_y(x: Tensor, level: Level) -> Tensor:
    """Return the state of the frame."""
    return scaled(x, 1.0 / level.scale)


def velocity(split: Split, level: Level) -> Tensor:
    """Return ``dy / d theta`` of the probability-flow ODE."""
    return split.mix(-level.sin, level.cos)


def drift(y: Tensor, split: Split, level: Level, eta: float) -> Tensor:
    """Return ``dy / d lambda`` of the reverse process."""
    sin = expand(level.sin, y)
    return sin * (sin * y - (1.0 + eta**2) * split.eps)


def diffusion(level: Level, eta: float) -> Scalar:
    """Return the coefficient of ``dW(lambda)`` in the reverse process."""
    return eta * math.sqrt(2.0) * level.sin
