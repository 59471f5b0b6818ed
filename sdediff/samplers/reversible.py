r"""Algebraically reversible multistep solver of the probability-flow ODE: a solve can be undone to rounding.

The state at node n + 1 follows from the k states before it and from the velocities at all of them but the oldest:

    y_{n+1} = sum_{j=0}^{k-1} a_j ( y_{n-j} + int_{n-j}^{n+1} v d theta ),       sum_j a_j = 1,   a_{k-1} != 0,

with v interpolated through its values at n, ..., n-k+2. The same relation, solved for the oldest state, gives it from
the k states after it: no equation to iterate, one forward a node, exact whatever the coefficients or the network
(bidirectional explicit multistep methods, Wang et al. 2024, who keep two states and have order 2). So a solve that is
to be undone returns k states, not one.

The a_j are those of ``(z - 1) prod_m (z - r e^{i phi_m})(z - r e^{-i phi_m})``. The roots other than 1 are motions that
the ODE does not have. Forwards they die out as ``r^n``; backwards they amplify rounding, by ``r^-N`` at most, which is
set to a constant. So r tends to 1 with the number of steps, and to the symmetric methods of Quinlan & Tremaine (1990),
whose undamped extra motions make leapfrog and reversible Heun (Kidger et al. 2021) lose accuracy on flows that
contract. The angles phi trade the growth of those motions against the error constant.
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, to_x, to_y, velocity
from sdediff.noise import NoiseSource
from sdediff.numerics import choose, combine
from sdediff.samplers.base import Noise, Progress, Sampler, StepSampler, checked_solution, take_steps
from sdediff.samplers.clocks import CLOCKS
from sdediff.samplers.exponential import VelocityIntegrand
from sdediff.samplers.interpolation import weights
from sdediff.sde import SDE
from sdediff.types import Level, Solution


class Relation(NamedTuple):
    """``y_{n+1} = sum keep_j y_{n-j} + sum weights_j v_{n-j}``, newest first."""

    keep: list[float]
    weights: list[float]

    def newest(self, states: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
        """Return the newest state."""
        return combine([*zip(self.keep, states, strict=True), *zip(self.weights, slopes, strict=True)])

    def oldest(self, states: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
        """Return the oldest state, given the newest and all between."""
        *between, oldest = self.keep
        terms = [(1.0, states[0]), *((-k, y) for k, y in zip(between, states[1:], strict=True))]
        terms += [(-w, v) for w, v in zip(self.weights, slopes, strict=True)]
        return combine([(factor / oldest, tensor) for factor, tensor in terms])


class ReversibleHistory(NamedTuple):
    """Past states, their slopes and the relations of a solve.

    Attributes:
        relations: relations of the whole grid.
        done: number of steps done.
        before: states before the current one, newest first.
        slopes: velocities at these states.
    """

    relations: Sequence[Relation]
    done: int
    before: list[Tensor]
    slopes: list[Tensor]


@dataclass(frozen=True)
class Reversible(StepSampler):
    """Reversible multistep method: one forward a step, and one a step to undo it exactly.

    Args:
        angles: angles of the roots other than 1, in conjugate pairs, each strictly between 0 and pi; m of them make a
            method of order 2m with 2m + 1 states.
        growth: factor by which undoing a solve may amplify rounding, at least 1; more damps the extra motions more.
        clock: name in ``CLOCKS``, in which the velocity is a polynomial.

    Raises:
        ValueError: for an unknown clock, no angle, one outside (0, pi), or a growth below 1.
    """

    stochastic: ClassVar[bool] = False
    ends_clean: ClassVar[bool] = False
    needs_short_steps: ClassVar[bool] = True

    angles: tuple[float, ...] = (0.6, 2.4)
    growth: float = 100.0
    clock: str = "logsnr"

    def __post_init__(self) -> None:
        choose(CLOCKS, self.clock, "clock")
        if not self.angles or not all(0.0 < angle < cmath.pi for angle in self.angles):
            raise ValueError(f"a reversible method needs angles between 0 and pi, not {self.angles}")
        if not self.growth >= 1.0:
            raise ValueError(f"the growth of rounding is at least 1, not {self.growth}")

    @property
    def order(self) -> int:
        return 2 * len(self.angles)

    def startup_order(self, steps: int) -> int:
        """Return the method's order; see :meth:`~sdediff.samplers.base.Sampler.startup_order`."""
        return self.order

    @property
    def states(self) -> int:
        """Number of states of consecutive nodes that make a solve reversible."""
        return 2 * len(self.angles) + 1

    def begin(self, frame: Frame, y: Tensor, levels: list[Level[float]]) -> ReversibleHistory:
        """Compute the relations of every step of the grid."""
        return ReversibleHistory(self.relations(levels), 0, [], [])

    def step(
        self, denoise: Frame, y: Tensor, here: Level[float], there: Level[float], noise: Noise, carry: ReversibleHistory
    ) -> tuple[Tensor, ReversibleHistory]:
        """Take a step; one forward."""
        relation, states = carry.relations[carry.done], [y, *carry.before]
        slopes = [velocity(denoise(y, here), here), *carry.slopes][: len(relation.weights)]
        newest = relation.newest(states[: len(relation.keep)], slopes)
        return newest, ReversibleHistory(carry.relations, carry.done + 1, states[: self.states - 1], slopes)

    def relations(self, levels: list[Level[float]]) -> list[Relation]:
        """Return the relations that lead to each node but the first.

        The first ones, which are never undone, are Adams-Bashforth steps of rising order.
        """
        radius = self.growth ** (-1.0 / (len(levels) - 1))
        pairs = [cmath.rect(radius, sign * angle) for angle in self.angles for sign in (1.0, -1.0)]
        factors = [float(-a) for a in np.poly([1.0, *pairs]).real[1:]]
        relations = []
        for i, there in enumerate(levels[1:]):
            back = levels[i::-1][: self.states]
            relations.append(self._relation([1.0] if len(back) < self.states else factors, back, there))
        return relations

    def _relation(self, factors: list[float], back: Sequence[Level[float]], there: Level[float]) -> Relation:
        integrand, nodes = VelocityIntegrand(), back[: self.states - 1]
        integrals = [weights(integrand, self.clock, "exact", nodes, here, there) for here in back[: len(factors)]]
        return Relation(factors, [float(w) for w in np.array(factors) @ np.array(integrals)])


@dataclass(frozen=True)
class ReversibleForward(Sampler):
    """Reversible solve that returns its last k states, ``(B k, *shape)``: sample by sample, newest first."""

    stochastic: ClassVar[bool] = False

    method: Reversible

    @property
    def order(self) -> int:
        return self.method.order

    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Return the NFE, that of the method."""
        return self.method.nfe(steps, clean=clean)

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
        """Take the state ``x`` at ``grid[0]`` to the last k nodes.

        Raises:
            ValueError: for fewer than k steps.
        """
        check_steps(self.method, grid)
        levels = sde.levels(grid)
        frame = self.method.frame(denoise, sde, levels)
        y, carry, nodes = take_steps(self.method, frame, x, levels, noise, path, progress)
        last = [to_x(y, level) for y, level in zip([y, *carry.before], reversed(levels), strict=False)]
        return checked_solution(torch.stack(last, dim=1).flatten(0, 1), frame, grid, nodes)


@dataclass(frozen=True)
class ReversibleBackward(Sampler):
    """Inverse of :class:`ReversibleForward`: from k states ``(B k, *shape)`` to the one that the solve started from.

    The grid is that of the solve in reverse.
    """

    stochastic: ClassVar[bool] = False

    method: Reversible

    @property
    def order(self) -> int:
        return self.method.order

    def nfe(self, steps: int, *, clean: bool = True) -> int:
        """Return the NFE: the relation needs no slope at the oldest state, from which the solve started."""
        return steps - 1

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
        """Take the states of the first k nodes to the last.

        Raises:
            ValueError: for fewer than k steps.
        """
        check_steps(self.method, grid)
        count, levels = self.method.states, sde.levels(grid.flip(0))
        frame = self.method.frame(denoise, sde, levels)  # of the solve that is undone
        final = len(levels) - 1
        first = x.reshape(-1, count, *x.shape[1:]).unbind(1)
        states = [to_y(y, levels[final - j]) for j, y in enumerate(first)]
        slopes, nodes = list[Tensor](), list(first)
        relations = self.method.relations(levels)
        for oldest in range(final - count, -1, -1):  # the node to find; the window of k + 1 nodes ends at oldest + k
            while len(slopes) < count - 1:
                node = oldest + count - 1 - len(slopes)
                slopes.append(velocity(frame(states[1 + len(slopes)], levels[node]), levels[node]))
            states = [*states[1:], relations[oldest + count - 1].oldest(states, slopes)]
            slopes = slopes[1:]
            if path:
                nodes.append(to_x(states[-1], levels[oldest]))
            if progress is not None:
                progress(final - oldest, final)
        return checked_solution(to_x(states[-1], levels[0]), frame, grid, nodes if path else [])


def check_steps(method: Reversible, grid: Tensor) -> None:
    """Refuse a solve with fewer steps than the states that it returns.

    Raises:
        ValueError: naming the smallest number of steps.
    """
    if len(grid) - 1 < method.states:
        raise ValueError(f"a reversible solve needs at least {method.states} steps, not {len(grid) - 1}")
