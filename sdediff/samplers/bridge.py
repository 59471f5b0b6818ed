"""The bridge between two levels: the less noisy state given the noisier one and a clean sample."""

from __future__ import annotations

import math

from torch import Tensor

from sdediff.samplers.base import Noise
from sdediff.types import Level, Split


def bridge_std(here: Level[float], there: Level[float]) -> float:
    """Return the standard deviation of the state ``there`` given the state ``here`` and x0, in the frame."""
    return math.sqrt(-math.expm1(2.0 * (here.half_log_snr - there.half_log_snr))) * there.sin


def recombine(split: Split, there: Level[float], std: float, z: Noise, *, mean_std: float | None = None) -> Tensor:
    """Return ``cos x0 + sqrt(sin^2 - std^2) eps + std z`` at the level ``there``.

    Args:
        split: halves of the state.
        there: level at which they are recombined.
        std: standard deviation of the fresh noise.
        z: fresh noise, drawn only if needed.
        mean_std: standard deviation in the mean, where it is not ``std``.
    """
    fresh = std if mean_std is None else mean_std
    mean = split.mix(there.cos, math.sqrt(max((there.sin - fresh) * (there.sin + fresh), 0.0)))
    return mean if std == 0.0 else mean.add(z(0), alpha=std)
