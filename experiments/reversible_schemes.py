r"""Published ways to undo a solve, written for comparison: from the data up a grid of levels, and down again.

A scheme's ``up`` takes a state at node 0 to a tuple of tensors at node N, the first of them the latent; ``down`` takes
the tuple back. ``steps`` says how many steps a number of forwards pays for, up and down together. States are in the
variance-preserving frame; the schemes that the literature gives for DDIM work on ``u = y / cos`` with
``du = eps d tan``, the others on ``dy = v d theta``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import sdediff
from sdediff.dynamics import Frame, velocity
from sdediff.samplers.exponential import VelocityIntegrand
from sdediff.samplers.interpolation import weights
from sdediff.types import Level

States = tuple[Tensor, ...]


class Field:
    """A model along a grid of levels from the data to the noise; counts forwards."""

    def __init__(self, model: sdediff.ScoreModel, times: Tensor) -> None:
        self.levels: list[Level[float]] = model.sde.levels(times)
        self.frame = Frame(model, model.sde)
        self.steps = len(self.levels) - 1

    def slope(self, y: Tensor, node: int) -> Tensor:
        """``dy / d theta``."""
        return velocity(self.frame(y, self.levels[node]), self.levels[node])

    def slope_of_u(self, u: Tensor, node: int) -> Tensor:
        """``du / d tan`` of ``u = y / cos``: epsilon."""
        return self.frame(u * self.levels[node].cos, self.levels[node]).eps

    def width(self, a: int, b: int) -> float:
        """The angle from node a to node b."""
        return self.levels[b].angle - self.levels[a].angle

    def tan(self, node: int) -> float:
        """``sin / cos``."""
        return self.levels[node].sin / self.levels[node].cos


class Scheme(ABC):
    """A way up and down."""

    def steps(self, forwards: int) -> int:
        """Steps that so many forwards pay for, up and down together; here one each way."""
        return forwards // 2

    @abstractmethod
    def up(self, field: Field, y: Tensor) -> States:
        """From the data to the latent and what else must be kept."""

    @abstractmethod
    def down(self, field: Field, states: States) -> Tensor:
        """Back."""


@dataclass(frozen=True)
class ImplicitDDIM(Scheme):
    """DDIM down; up, each of its steps is solved for its start by fixed-point iterations (Pan et al. 2023)."""

    iterations: int

    def steps(self, forwards: int) -> int:
        return forwards // (1 + self.iterations)

    def up(self, field: Field, y: Tensor) -> States:
        u = y / field.levels[0].cos
        for n in range(field.steps):
            guess, width = u, field.tan(n + 1) - field.tan(n)
            for _ in range(self.iterations):
                guess = u + width * field.slope_of_u(guess, n + 1)
            u = guess
        return (u * field.levels[-1].cos,)

    def down(self, field: Field, states: States) -> Tensor:
        u = states[0] / field.levels[-1].cos
        for n in reversed(range(field.steps)):
            u = u - (field.tan(n + 1) - field.tan(n)) * field.slope_of_u(u, n + 1)
        return u * field.levels[0].cos


@dataclass(frozen=True)
class Sweeps(Scheme):
    """Adams-Bashforth 4 down; up, sweeps over the nodes that solve its N equations for the N states by substitution."""

    sweeps: int

    def steps(self, forwards: int) -> int:
        return forwards // (1 + self.sweeps)

    def _gain(self, field: Field, n: int, slopes: list[Tensor]) -> Tensor:
        """What the step down from node n + 1 to node n takes away."""
        known = slice(n + 1, min(n + 5, field.steps + 1))
        levels = field.levels
        factors = weights(VelocityIntegrand(), "asinh", "exact", levels[known], levels[n + 1], levels[n])
        return -sum((w * v for w, v in zip(factors, slopes[known], strict=True)), torch.zeros(()))

    def up(self, field: Field, y: Tensor) -> States:
        slopes = [torch.zeros_like(y)] * (field.steps + 1)
        for sweep in range(self.sweeps):
            state = y
            for n in range(field.steps):
                if sweep == 0:  # nothing is known of the slopes above: Euler
                    slopes[n] = field.slope(state, n)
                    state = state + field.width(n, n + 1) * slopes[n]
                    slopes[n + 1] = slopes[n]
                else:
                    state = state + self._gain(field, n, slopes)
                    slopes[n + 1] = field.slope(state, n + 1)
        for n in range(field.steps):  # the equations once more, with the last slopes: no forward
            y = y + self._gain(field, n, slopes)
        return (y,)

    def down(self, field: Field, states: States) -> Tensor:
        y = states[0]
        slopes = [torch.zeros_like(y)] * (field.steps + 1)
        for n in reversed(range(field.steps)):
            slopes[n + 1] = field.slope(y, n + 1)
            y = y - self._gain(field, n, slopes)
        return y


@dataclass(frozen=True)
class EDICT(Scheme):
    """Two copies of DDIM that step by each other's slope, then mix (Wallace et al. 2023, eq. 14-15)."""

    mix: float = 0.93

    def steps(self, forwards: int) -> int:
        return forwards // 4

    def up(self, field: Field, y: Tensor) -> States:
        a = b = y / field.levels[0].cos
        p = self.mix
        for n in range(field.steps):
            width = field.tan(n + 1) - field.tan(n)
            a = a + width * field.slope_of_u(b, n)
            b = b + width * field.slope_of_u(a, n)
            a = p * a + (1.0 - p) * b
            b = p * b + (1.0 - p) * a
        cos = field.levels[-1].cos
        return a * cos, b * cos

    def down(self, field: Field, states: States) -> Tensor:
        a, b = (y / field.levels[-1].cos for y in states)
        p = self.mix
        for n in reversed(range(field.steps)):
            width = field.tan(n + 1) - field.tan(n)
            b = (b - (1.0 - p) * a) / p
            a = (a - (1.0 - p) * b) / p
            b = b - width * field.slope_of_u(a, n)
            a = a - width * field.slope_of_u(b, n)
        return a * field.levels[0].cos


@dataclass(frozen=True)
class BELM(Scheme):
    """O-BELM: ``u_{n+1}`` from ``u_{n-1}`` and the slope at n, its error of lowest order (Wang et al. 2024, eq. 18)."""

    def _factors(self, field: Field, n: int) -> tuple[float, float, float]:
        h, g = field.tan(n + 1) - field.tan(n), field.tan(n) - field.tan(n - 1)
        return 1.0 - (h / g) ** 2, (h / g) ** 2, h + h * h / g

    def up(self, field: Field, y: Tensor) -> States:
        older = y / field.levels[0].cos
        u = older + (field.tan(1) - field.tan(0)) * field.slope_of_u(older, 0)
        for n in range(1, field.steps):
            keep, keep_older, width = self._factors(field, n)
            older, u = u, keep * u + keep_older * older + width * field.slope_of_u(u, n)
        return u * field.levels[-1].cos, older

    def down(self, field: Field, states: States) -> Tensor:
        u, older = states[0] / field.levels[-1].cos, states[1]
        for n in reversed(range(1, field.steps)):
            keep, keep_older, width = self._factors(field, n)
            u, older = older, (u - keep * older - width * field.slope_of_u(older, n)) / keep_older
        return older * field.levels[0].cos


@dataclass(frozen=True)
class ReversibleHeun(Scheme):
    """A state, and a second one that the slopes are read off (Kidger et al. 2021, algorithm 1)."""

    def steps(self, forwards: int) -> int:
        return forwards // 2 - 1

    def up(self, field: Field, y: Tensor) -> States:
        return self._walk(field, (y, y), range(field.steps + 1))

    def down(self, field: Field, states: States) -> Tensor:
        return self._walk(field, states, range(field.steps, -1, -1))[0]

    def _walk(self, field: Field, states: States, nodes: range) -> States:
        """The scheme is symmetric: down is up with the nodes in reverse."""
        y, other = states
        slope = field.slope(other, nodes[0])
        for a, b in pairwise(nodes):
            width = field.width(a, b)
            other = 2.0 * y - other + width * slope
            before, slope = slope, field.slope(other, b)
            y = y + 0.5 * width * (before + slope)
        return y, other


@dataclass(frozen=True)
class Coupled(Scheme):
    """Two states coupled through a one-step method's increment (McCallum & Foster 2024, eq. 3-4)."""

    order: int
    coupling: float = 0.999

    def steps(self, forwards: int) -> int:
        return forwards // (4 * self.order)

    def _increment(self, field: Field, y: Tensor, a: int, b: int) -> Tensor:
        """Euler's or Heun's, from node a to node b."""
        width, slope = field.width(a, b), field.slope(y, a)
        if self.order == 1:
            return width * slope
        return 0.5 * width * (slope + field.slope(y + width * slope, b))

    def up(self, field: Field, y: Tensor) -> States:
        z, c = y, self.coupling
        for n in range(field.steps):
            y = c * y + (1.0 - c) * z + self._increment(field, z, n, n + 1)
            z = z - self._increment(field, y, n + 1, n)
        return y, z

    def down(self, field: Field, states: States) -> Tensor:
        (y, z), c = states, self.coupling
        for n in reversed(range(field.steps)):
            z = z + self._increment(field, y, n + 1, n)
            y = (y - (1.0 - c) * z - self._increment(field, z, n, n + 1)) / c
        return y


SCHEMES: dict[str, Scheme] = {
    "implicit ddim, 1 iteration": ImplicitDDIM(1),
    "implicit ddim, 4": ImplicitDDIM(4),
    "implicit ddim, 9": ImplicitDDIM(9),
    "sweeps, 1": Sweeps(1),
    "sweeps, 4": Sweeps(4),
    "sweeps, 9": Sweeps(9),
    "edict": EDICT(),
    "belm": BELM(),
    "reversible heun": ReversibleHeun(),
    "coupled euler": Coupled(1),
    "coupled heun": Coupled(2),
}
"""Each pays for its own steps out of one budget of forwards."""
