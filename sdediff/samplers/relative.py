r"""Multistep methods relative to the data's own Gaussian, with interpolation by a kernel: the default ODE solver.

The equation is solved in the coordinates u of :class:`~sdediff.gaussian.Whitened`, each in units of the standard
deviation its Gaussian would have and on its own angle phi. Each is a variance-preserving process of its own, whose
reverse family is

    u' = c u + (1 + eta^2) int (cos phi_s / cos phi')^(eta^2) (du / d phi) d phi + sqrt(1 - c^2) z,
    c = (cos phi / cos phi')^(eta^2),

the probability-flow ODE for ``eta = 0``, the reverse SDE for ``eta = 1`` (see :mod:`sdediff.samplers.exponential`). For
Gaussian data the slope is zero and one step of any length exact, where the integrand of every other form changes; for
other data it is their deviation from the Gaussian that is integrated. The last step to the data adds no noise: it
follows the probability flow, so that the law of Gaussian data is kept with noise, too. Without moments the slope is the
plain velocity, and the last step of a method with noise returns the denoised state, narrower than the data. The
weights of the last slopes come from :mod:`sdediff.samplers.interpolation`. Networks whose errors are magnified in the
velocity (those that predict epsilon, the score or the sample) are solved with the plain velocity, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sdediff.dynamics import Frame
from sdediff.gaussian import Whitened
from sdediff.grids import Grid
from sdediff.parametrization import Prediction
from sdediff.samplers.base import Noise, StepSampler
from sdediff.samplers.clocks import FloatArray
from sdediff.samplers.coordinates import Coordinates, PlainCoordinates, RelativeUpdate, WhitenedCoordinates
from sdediff.samplers.ddim import check_eta
from sdediff.samplers.interpolation import cos_phi, kernel_weights
from sdediff.samplers.multistep import Term, adams
from sdediff.types import Level

_NOISE_SHARE = 0.03
"""Share of a network's error that is one of the noise half, ``1 / cos`` as large in the velocity, whatever the network
predicts: what a velocity network learned at ``sigma / alpha`` of thousands is not exact to its last digit."""
_LAST_SHARE, _CLEAN_ANGLE, _ERROR_SHARE = 0.15, 0.005, 0.03
"""Share of the steps that are the last ones, angle below which a solve ends on the data, and share of the largest error
that any of the last steps may have."""


class RelativeHistory(NamedTuple):
    """State, past slopes and updates of a solve.

    Attributes:
        updates: updates of the whole grid.
        done: number of updates done.
        coordinates: coordinates in which the equation is solved.
        u: state in these coordinates.
        slopes: past slopes, newest first.
    """

    updates: Sequence[RelativeUpdate]
    done: int
    coordinates: Coordinates
    u: Tensor
    slopes: list[Term]


@dataclass(frozen=True)
class Relative(StepSampler):
    """Multistep on the velocity relative to the data's own Gaussian: one forward a step.

    Args:
        memory: number of slopes in a step, 2 to 6; the order, with or without a corrector.
        correct_from: number of steps from which one of the slopes corrects the step before, instead of extending the
            memory (Zhao et al. 2023); more accurate where steps are short, less where they are long. ``None``: never.
        gradual: whether a solve with a corrector uses at most a third as many slopes as steps, but 3 at least: in few
            steps four or five of them reach too far back.
        use_moments: whether the data's Gaussian is used where it is known.
        eta: 0 for the ODE, 1 for the reverse SDE, between for the family between.

    Raises:
        ValueError: for another memory, or for noise and a corrector, which would undo it.
    """

    memory: int = 5
    correct_from: int | None = 8
    eta: float = 0.0
    gradual: bool = True
    use_moments: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.memory <= 6:
            raise ValueError(f"memory must be 2 to 6, not {self.memory}")
        check_eta(self.eta)
        if self.eta > 0.0 and self.correct_from is not None:
            raise ValueError("a corrector would undo the noise of the step it redoes: give it eta = 0")

    @property
    def order(self) -> int:
        return 2 if self.stochastic else self.memory

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def grid_for(self, prediction: Prediction) -> str | Grid:
        """Return ``"mixed"`` for the ODE of networks whose errors are magnified in the velocity, else the usual one."""
        return self.grid if prediction.steady or self.stochastic else "mixed"

    def startup_order(self, steps: int) -> int:
        """Return the order of the predictor; see :meth:`~sdediff.samplers.base.Sampler.startup_order`."""
        return 2 if self.stochastic else self.predictor_memory(steps)

    def corrects(self, steps: int) -> bool:
        """Return whether a solve of ``steps`` steps has a corrector."""
        return self.correct_from is not None and steps >= self.correct_from

    def predictor_memory(self, steps: int) -> int:
        """Return the number of slopes that the predictor uses in a solve of ``steps`` steps."""
        if not self.corrects(steps):
            return self.memory
        return (min(self.memory, max(3, steps // 3)) if self.gradual else self.memory) - 1

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> RelativeHistory:
        """Compute the updates of every step of the grid, and the coordinates of the state."""
        # an error that a prediction magnifies would be magnified again by the units of coordinates of small variance
        moments = frame.moments if frame.prediction.steady and self.use_moments else None
        white = None if moments is None else Whitened(moments)
        variances = None if white is None else tuple(white.std.square().tolist())
        updates = _relative_updates(self, tuple(levels), variances, frame.prediction)
        coordinates: Coordinates = PlainCoordinates(levels, updates)
        if white is not None:
            coordinates = WhitenedCoordinates(white, y, levels, updates)
        return RelativeHistory(updates, 0, coordinates, coordinates.start(y), [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: RelativeHistory
    ) -> tuple[Tensor, RelativeHistory]:
        """Take a step; one forward."""
        done, coordinates = carry.done, carry.coordinates
        slopes = [coordinates.slope(denoise(y, here), carry.u, done), *carry.slopes][: len(carry.updates[done].weights)]
        u = coordinates.update(done, carry.u, slopes, noise)
        return coordinates.to_frame(u, done), carry._replace(done=done + 1, u=u, slopes=slopes)


@lru_cache(maxsize=64)
def _relative_updates(
    method: Relative, levels: tuple[Level[float], ...], variances: tuple[float, ...] | None, prediction: Prediction
) -> list[RelativeUpdate]:
    """Compute the updates of every step of a grid, once for all solves on it."""
    roots, power = np.sqrt(np.array(variances or (1.0,))), method.eta**2
    correct = method.corrects(len(levels) - 1)

    def gain(angle: FloatArray) -> FloatArray:
        """Return the factor by which the network's error is magnified in the velocity."""
        return np.hypot(prediction.gain(angle), _NOISE_SHARE * np.tan(np.minimum(angle, 0.5 * np.pi - 1e-7)))

    def keep(here: Level[float], there: Level[float]) -> FloatArray:
        ratio: FloatArray = cos_phi(here.angle, roots)[0] / cos_phi(there.angle, roots)[0]
        if is_last(there):
            return ratio if variances is None else np.ones_like(ratio)
        return ratio**power

    def weigh(nodes: Sequence[Level[float]], here: Level[float], there: Level[float]) -> FloatArray:
        if is_last(there):
            return np.array([[-here.sin]]) if variances is None else -np.arctan2(here.sin, roots * here.cos)[None]
        angles = np.array([level.angle for level in nodes])
        return (1.0 + power) * kernel_weights(angles, here.angle, there.angle, roots, power, gain)

    def is_last(there: Level[float]) -> bool:
        """Return whether a step of a method with noise ends on the data: it adds no noise.

        Where the data's Gaussian is known the step follows the probability flow, ``u' = u - phi slope``, which keeps
        the law; elsewhere it denoises, ``u' = cos phi u - sin phi slope``, which narrows it.
        """
        return power > 0.0 and there.sin == 0.0

    def std(here: Level[float], there: Level[float]) -> FloatArray:
        kept = keep(here, there)
        return np.zeros_like(kept) if power == 0.0 or is_last(there) else np.sqrt((1.0 - kept) * (1.0 + kept))

    angles = [level.angle for level in levels]
    memory = memory_of_steps(angles, method.predictor_memory(len(levels) - 1), correct)
    # A slope that the last step uses alone is unlike all others on concentrated data: it corrects nothing.
    corrects = [correct and (count > 1 or i < len(memory) - 1) for i, count in enumerate(memory)]
    rows = adams(levels, memory, corrects, weigh, keep)
    steps = zip(rows, pairwise(levels), strict=True)
    return [RelativeUpdate(keep(here, there), row, std(here, there)) for row, (here, there) in steps]


def memory_of_steps(angles: Sequence[float], memory: int, correct: bool) -> list[int]:
    """Return the number of slopes that each step uses: ``memory``, but fewer in the last steps of a solve to the data.

    On concentrated data the velocity turns sharply where it is decided which of them a state goes to, and earlier
    slopes do harm. The last step, which is the shortest, uses one alone; those of the last ``_LAST_SHARE`` use
    two where there is a corrector, which extrapolates further than a predictor; each as many more as it needs for its
    error, by the distances of its nodes, to be below ``_ERROR_SHARE`` times that of the longest step.
    """
    steps, theta = len(angles) - 1, np.array(angles)

    def error(i: int, count: int) -> float:
        return float(np.abs(theta[i + 1] - theta[i]) * np.abs(theta[i + 1] - theta[i + 1 - count : i + 1]).prod())

    values = [memory] * steps
    if theta[-1] < min(_CLEAN_ANGLE, theta[0]):
        allowed = _ERROR_SHARE * max((error(i, memory) for i in range(memory - 1, steps)), default=0.0)
        for i in range(steps - max(1, round(_LAST_SHARE * steps) if correct else 1), steps):
            least = 1 if i == steps - 1 else 2
            values[i] = next(
                (count for count in range(least, memory) if error(i, min(count, i + 1)) <= allowed), memory
            )
    return [max(values[i:]) for i in range(steps)]  # a slope that a step has dropped is not available to later ones
