r"""What a network may predict, and how each prediction splits a state into its clean and its noise half.

With ``x = alpha x0 + sigma eps``, ``r = sqrt(alpha^2 + sigma^2)``, ``cos = alpha / r`` and ``sin = sigma / r``. Each
prediction fills both halves by the formula that keeps most digits; no half is recovered from the other twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sdediff.numerics import expand
from sdediff.types import Level, Split


class Prediction(ABC):
    """A parametrisation of the denoiser; stateless."""

    @abstractmethod
    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        """Turn the network's output at the state ``x`` into a :class:`Split`."""

    @abstractmethod
    def target(self, clean: Split, level: Level) -> Tensor:
        """The output a perfect network would give for a known pair ``(x0, eps)``."""


class Epsilon(Prediction):
    """The noise (Ho et al. 2020)."""

    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        return Split((x - sigma * output) / alpha, output)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.eps


class Sample(Prediction):
    """The clean sample (Salimans & Ho 2022 call it x-prediction)."""

    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        return Split(output, (x - alpha * output) / sigma)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.x0


class Velocity(Prediction):
    """``v = cos eps - sin x0`` (Salimans & Ho 2022), the velocity on the angle in the variance-preserving frame."""

    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        cos, sin = expand(level.cos, x), expand(level.sin, x)
        y = x / expand(level.scale, x)
        return Split(cos * y - sin * output, sin * y + cos * output)

    def target(self, clean: Split, level: Level) -> Tensor:
        return expand(level.cos, clean.x0) * clean.eps - expand(level.sin, clean.x0) * clean.x0


class Score(Prediction):
    """``grad log p_t(x) = -eps / sigma`` (Song et al. 2021)."""

    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        eps = -expand(level.sigma, x) * output
        return Split((x - expand(level.sigma, x) * eps) / expand(level.alpha, x), eps)

    def target(self, clean: Split, level: Level) -> Tensor:
        return -clean.eps / expand(level.sigma, clean.eps)


class Flow(Prediction):
    """``eps - x0``, the velocity of the rectified flow (Liu et al. 2023), usable on any process."""

    def split(self, output: Tensor, x: Tensor, level: Level) -> Split:
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        total = alpha + sigma
        return Split((x - sigma * output) / total, (x + alpha * output) / total)

    def target(self, clean: Split, level: Level) -> Tensor:
        return clean.eps - clean.x0


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Epsilon(),
    "sample": Sample(),
    "v_prediction": Velocity(),
    "score": Score(),
    "flow": Flow(),
}
