r"""The likelihood by an adaptive solver of the augmented ODE of state and log-density.

Every step is chosen for both (Chen et al. 2018; Grathwohl et al. 2019): the state of the solver is ``(y, l / sqrt(D))``
with ``dl / d theta = div v``, so that a tolerance permits as many nats a dimension as it permits in y. The error of
the solver is estimated by a second solve, at ``LOOSER`` times the tolerances.

Probes must be the same along the whole path, or the solver would take their noise for error: the integral is
``e . (A^T e)`` of one matrix A, the integral of J, and the probes' errors add up instead of averaging out. The products
``A^T e``, from which their size is estimated, are integrated too, scaled to be negligible for the step control. Its use
is tolerances, with the exact trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.bases import Axes, Identity
from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, velocity
from sdediff.likelihood.flow.divergence import value_and_diagonal, value_and_products
from sdediff.likelihood.flow.hutchinson import ProbeLaw, ProbeProducts, standard_error
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, flatten, wide
from sdediff.samplers.tolerance import AdaptiveSampler
from sdediff.types import Level, Split

LOOSER = 10.0
"""Ratio of the tolerances of the second solve to those asked for."""
_PRODUCT_SCALE = 1e-9  # scale of the products beside states of order 1 and tolerances down to 1e-12


class AugmentedSolution(NamedTuple):
    """The last state of the frame, the integral of the divergence ``(B,)`` with its standard error, and the cost."""

    y: Tensor
    integral: Tensor
    standard_error: Tensor
    nfe: int


class AugmentedFrame(Frame):
    """A denoiser on states ``(B, D + 1 + K D)`` of y, the log-density and K products.

    Args:
        model: denoiser of y.
        like: states of the batch, ``(B, *shape)``, in the network's shape and dtype.
        probes: random probes, ``(B, K, D)``; ``None`` for the exact trace.
    """

    def __init__(self, model: Denoiser, like: Tensor, probes: Tensor | None) -> None:
        super().__init__(model, model.sde)
        self._like, self._probes = like, probes
        self._dim = like[0].numel()
        self._axes = Axes(Identity(), self._dim, like.new_zeros(0))

    def initial(self) -> Tensor:
        """Return the state at the start of the path, whose integrals are 0."""
        y = wide(flatten(self._like))
        count = 1 if self._probes is None else 1 + self._probes[0].numel()
        return torch.cat([y, y.new_zeros(len(y), count)], dim=1)

    def unpack(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y ``(B, D)``, the integral of the divergence ``(B,)`` and those of the products ``(B, K D)``."""
        dim = self._dim
        return state[:, :dim], state[:, dim] * math.sqrt(dim), state[:, dim + 1 :] / _PRODUCT_SCALE

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split a state by the velocity of y, log-density and products."""
        states = y[:, : self._dim].reshape(-1, *self._like.shape[1:]).to(self._like.dtype)

        def field(state: Tensor) -> Tensor:
            return velocity(super(AugmentedFrame, self).__call__(state, level, rows), level)

        if self._probes is None:
            value, diagonal = value_and_diagonal(field, states, self._axes)
            rest = [wide(diagonal[:, 0]).sum(dim=1, keepdim=True) / math.sqrt(self._dim)]
        else:
            probes = self._probes if rows is None else self._probes[rows]
            value, products = value_and_products(field, states, probes)
            divergence = (wide(probes) * wide(products)).sum(dim=2).mean(dim=1, keepdim=True)
            rest = [divergence / math.sqrt(self._dim), flatten(wide(products)) * _PRODUCT_SCALE]
        if not all_finite(value):
            raise FloatingPointError("the model's output is not finite")
        slope = torch.cat([wide(flatten(value)), *rest], dim=1)
        return Split.linear(y, slope, (level.cos, -level.sin), (level.sin, level.cos))


def with_tolerances(method: AdaptiveSampler, rtol: float, atol: float) -> AdaptiveSampler:
    """Return a solver with other tolerances."""
    return replace(method, rtol=rtol, atol=atol)  # type: ignore[type-var]


def solver_error(fine: Sequence[Tensor], loose: Sequence[Tensor]) -> Tensor:
    """Return the estimated size of the error of a sum whose terms ``(B,)`` were solved at two tolerances.

    The difference is nine times an error in proportion to the tolerance, but may equal one that is not: 0.4 of it is
    stated, which is two to four times the error in the mean, and for single items seldom less than half of it. The
    terms' differences are added in size, so that they do not cancel.
    """
    changes = [(a - b).abs() for a, b in zip(fine, loose, strict=True)]
    return 0.4 * torch.stack(changes).sum(dim=0)


@dataclass(frozen=True)
class AugmentedODE:
    """An adaptive solver of the probability-flow ODE, for state and log-density together.

    Args:
        method: adaptive solver with its tolerances; the absolute one applies to the path in the frame and, in nats a
            dimension, to the log-density.
    """

    method: AdaptiveSampler

    def looser(self) -> AugmentedODE:
        """Return the solver at ``LOOSER`` times the tolerances."""
        return AugmentedODE(with_tolerances(self.method, LOOSER * self.method.rtol, LOOSER * self.method.atol))

    def solve(
        self,
        model: Denoiser,
        y: Tensor,
        start: Level[float],
        end: Level[float],
        probes: Tensor | None,
        law: ProbeLaw,
        source: NoiseSource,
    ) -> AugmentedSolution:
        """Solve from the state ``y`` of the frame at one level to another level.

        Args:
            model: denoiser with its process.
            y: states of the frame, ``(B, *shape)``.
            start: level of ``y``.
            end: level of the result.
            probes: random probes, ``(B, K, D)``; ``None`` for the exact trace.
            law: distribution of the probes.
            source: source of random numbers, unused by a deterministic solver.
        """
        frame = AugmentedFrame(model, y, probes)
        state = frame.initial()
        shrink = math.sqrt(y[0].numel() / state.shape[1])  # the mean square is taken over y's own entries
        method = with_tolerances(self.method, shrink * self.method.rtol, shrink * self.method.atol)
        last, integral, products = frame.unpack(method.integrate(frame, state, start, end, source, None))
        last = last.reshape(y.shape).to(y.dtype)
        if probes is None:
            return AugmentedSolution(last, integral, torch.zeros_like(integral), frame.nfe)
        of_path = ProbeProducts([wide(probes)], [products.reshape(probes.shape)], [1.0])
        return AugmentedSolution(last, integral, standard_error(law, of_path), frame.nfe)
