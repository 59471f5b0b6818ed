"""A method on nodes of its own, chosen for one model, with or without the first forward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame
from sdediff.gaussian import Whitened
from sdediff.grids import Grid
from sdediff.noise import NoiseSource
from sdediff.numerics import flatten
from sdediff.samplers.base import Noise, Progress, Sampler, StepSampler
from sdediff.sde import SDE
from sdediff.types import Level, Solution, Split


@dataclass(frozen=True)
class Times(Grid):
    """Grid of given times, for one interval and one number of steps.

    Args:
        times: the nodes, from the start to the end.
        steps: number of steps by which a user calls for it.
    """

    times: tuple[float, ...]
    steps: int

    def default_steps(self, sde: SDE, proposed: int) -> int:
        """Return the number of steps for which the nodes were chosen."""
        return self.steps

    def nodes(self, sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        if (steps, t_from, t_to) != (self.steps, self.times[0], self.times[-1]):
            raise ValueError(
                f"these nodes are chosen for {self.steps} steps from t = {self.times[0]:g} to {self.times[-1]:g}, not "
                f"{steps} from {t_from:g} to {t_to:g}: choose anew"
            )
        return torch.tensor(self.times, dtype=torch.float64)


class ChosenForModel(Sampler):
    """A deterministic sampler that is another one for each model, interval or number of steps."""

    stochastic: ClassVar[bool] = False

    @abstractmethod
    def for_model(
        self, model: Denoiser, shape: Sequence[int], steps: int | None, interval: tuple[float, float]
    ) -> Chosen:
        """Return the sampler of a solve; see :meth:`~sdediff.samplers.base.Sampler.for_model`."""

    @final
    def sample(
        self,
        denoise: Denoiser,
        sde: SDE,
        x: Tensor,
        grid: Tensor,
        noise: NoiseSource,
        *,
        path: bool = False,
        progress: Progress | None = None,
    ) -> Solution:
        """Take the state ``x`` at ``grid[0]`` to ``grid[-1]`` on the nodes of the sampler that is chosen."""
        chosen = self.for_model(denoise, x.shape, len(grid) - 1, (float(grid[0]), float(grid[-1])))
        times = torch.tensor(chosen.times, dtype=torch.float64)
        return chosen.sample(denoise, sde, x, times, noise, path=path, progress=progress)


class ChosenHistory(NamedTuple):
    """History of the method, and the answer of the data's Gaussian while it stands for the network's."""

    inner: Any
    answer: GaussianAnswer | None


@dataclass(frozen=True)
class Chosen(StepSampler):
    """A step sampler on its own nodes.

    Args:
        method: the sampler whose steps are taken; it must be deterministic.
        times: nodes of the solve, of which ``steps`` are evaluated by the network.
        free: whether the data's Gaussian (the standard one where the moments are unknown) answers at the first node
            instead of the network, as in the noise it can; the solve then has one node more for its forwards.

    Raises:
        ValueError: for a method with noise.
    """

    method: StepSampler
    times: tuple[float, ...]
    free: bool = False

    def __post_init__(self) -> None:
        if self.method.stochastic:
            raise ValueError("nodes are chosen for deterministic solvers; this method draws noise")

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def evaluations(self) -> int:
        return self.method.evaluations

    @property
    def ends_clean(self) -> bool:
        return self.method.ends_clean

    @property
    def steps(self) -> int:
        return len(self.times) - 1 - int(self.free)

    @property
    def grid(self) -> Times:
        return Times(self.times, self.steps)

    def startup_order(self, steps: int) -> int:
        """Return 1: the nodes are what they are; see :meth:`~sdediff.samplers.base.Sampler.startup_order`."""
        return 1

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> ChosenHistory:
        """Begin the method."""
        return ChosenHistory(self.method.begin(frame, y, levels), GaussianAnswer(frame) if self.free else None)

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: ChosenHistory
    ) -> tuple[Tensor, ChosenHistory]:
        """Take a step of the method."""
        y, inner = self.method.step(carry.answer or denoise, y, here, there, noise, carry.inner)
        return y, ChosenHistory(inner, None)


class GaussianAnswer(Frame):
    """Denoiser of the data's own Gaussian in the frame of another, of the standard one where its moments are unknown.

    It counts no forwards. The standard one's answer is the analytic first step of Dockhorn et al. (2022), ``eps = y``
    in the noise.
    """

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame.denoise, frame.sde)
        self._white = Whitened(frame.moments)

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split the state ``y`` of the frame: ``eps = sin (y - cos m) / rho^2`` and ``x0 = (y - sin eps) / cos``."""
        white, at = self._white, self._white.at(level)
        u = white.whiten(y, at)
        mean = white.unwhiten(torch.zeros_like(u), white.at(level._replace(alpha=1.0, sigma=0.0, scale=1.0)), y)
        x0 = white.rotate_back(u * (white.std.square() * level.cos / at.rho).to(u)).reshape(y.shape) + mean
        return Split(x0, white.rotate_back(flatten(u) * (level.sin / at.rho).to(u)).reshape(y.shape))
