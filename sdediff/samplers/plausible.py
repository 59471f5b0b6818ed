r"""Clean halves that no data could have, at the noisy end of a process.

An error e of a network in epsilon is ``e tan(theta)`` in the clean half: at the noisy end of a cosine chain, where
``sigma / alpha`` is 20,000, an error of 0.015 is 300. A step of order 1 from there to an angle theta' leaves

    e cos(theta') (tan(theta) - tan(theta')) = e sin(theta - theta') / cos(theta)

of it in the state of the frame, whatever its integrand: about e on short steps, hundreds of e on one that crosses most
of the noise. In a solve with a step of more than ``LONG`` times, clean halves farther from the data's mean than data
are (one standard deviation, RMS over the features) say nothing, and the farther the less: a deviation d above the
bound b becomes ``b^2 / d``, and the noise half follows from the state. Shorter steps, clean halves that data could
have, and levels below ``LEAST_NOISE`` are left alone, so that the published formulas and the limit of many steps are
what they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame
from sdediff.numerics import expand, flatten
from sdediff.sde import SDE
from sdediff.types import Level, Split

LONG = 4.0
"""Magnification of an error in epsilon by a step above which the clean halves of a solve are held against the data."""
LEAST_NOISE = 5.0
"""sigma / alpha up to which clean halves are taken as they are."""
UNKNOWN = 5.0
"""Bound where the data's moments are unknown; data are taken to be of size about 1."""


def magnification(here: Level[float], there: Level[float]) -> float:
    """Return the error of the state of the frame after a step of order 1, per error in epsilon at its start."""
    return math.sin(here.angle - there.angle) / here.cos if here.cos > 0.0 else math.inf


def has_long_steps(levels: Sequence[Level[float]]) -> bool:
    """Tell whether a step of a solve towards the data magnifies errors more than ``LONG`` times."""
    return any(magnification(here, there) > LONG for here, there in pairwise(levels))


class PlausibleFrame(Frame):
    """Frame whose clean halves, in the noise, are ones that the data could have."""

    def __init__(self, denoise: Denoiser, sde: SDE) -> None:
        super().__init__(denoise, sde)
        moments = denoise.moments
        known = moments is not None and float(moments.variances.max()) > 0.0
        self._mean = moments.mean if moments is not None and known else None
        self._bound = math.sqrt(float(moments.variances.mean())) if moments is not None and known else UNKNOWN

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split the state ``y`` of the frame at ``level``; see :class:`~sdediff.dynamics.Frame`."""
        split = super().__call__(y, level, rows)
        if not level.cos > 0.0 or math.tan(level.angle) <= LEAST_NOISE:
            return split
        if self._mean is not None:
            self._mean = self._mean.to(split.x0)  # moved once
        deviation = split.x0 if self._mean is None else split.x0 - self._mean
        size = flatten(deviation).square().mean(dim=1).sqrt()
        removed = deviation * expand(1.0 - (self._bound / size.clamp(min=self._bound)).square(), deviation)
        plausible = Split(split.x0 - removed, split.eps + level.cos / level.sin * removed)
        plausible.fraction = split.fraction
        return plausible
