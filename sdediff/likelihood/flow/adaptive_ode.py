r"""The likelihood by an adaptive solver: the log-density rides along with the state.

Every step is chosen for both (Chen et al. 2018; Grathwohl et al. 2019): the state of the solver is ``(y, l / sqrt(D))``
with ``dl / d theta = div v``, so that a tolerance permits as many nats a dimension as it permits in y. What the solver
misses is seen by solving once more, ``LOOSER`` times as loosely.

Probes must be kept along the whole path, or the solver would see noise where it looks for error: the integral is
``e . (A^T e)`` of one matrix A, the integral of J, and the probes' errors add up instead of averaging out. The products
``A^T e``, which say how large they are, ride along too, too small to be seen by the solver. What it is for: tolerances,
with the exact trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.conditions import Rows
from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, velocity
from sdediff.likelihood.flow.divergence import value_and_diagonal, value_and_products
from sdediff.likelihood.flow.hutchinson import ProbeLaw, ProbeProducts, standard_error
from sdediff.noise import NoiseSource
from sdediff.numerics import all_finite, flatten, wide
from sdediff.samplers.base import AdaptiveSampler
from sdediff.types import Level, Split

LOOSER = 10.0
"""Tolerances of the solve that is compared with, over those asked for."""
_HIDDEN = 1e-9  # of the products, beside states of order 1 and tolerances down to 1e-12


class AugmentedSolution(NamedTuple):
    """The end of a path: the state of the frame there, the integral of the divergence, its error, the forwards."""

    y: Tensor
    integral: Tensor
    standard_error: Tensor
    nfe: int


class AugmentedFrame(Frame):
    """A denoiser in whose states ``(B, D + 1 + K D)`` the log-density and K products ride along with y.

    Args:
        model: the denoiser.
        like: states of the batch, ``(B, *shape)``, whose shape and dtype the network sees.
        probes: ``(B, K, D)``; ``None`` for the exact trace.
    """

    def __init__(self, model: Denoiser, like: Tensor, probes: Tensor | None) -> None:
        super().__init__(model, model.sde)
        self._like, self._probes = like, probes
        self._dim = like[0].numel()
        self._axes = torch.eye(self._dim, dtype=like.dtype, device=like.device)

    def start(self) -> Tensor:
        """Return the state at the start of the path, where nothing is integrated yet."""
        y = wide(flatten(self._like))
        count = 1 if self._probes is None else 1 + self._probes[0].numel()
        return torch.cat([y, y.new_zeros(len(y), count)], dim=1)

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y ``(B, D)``, the integral of the divergence ``(B,)`` and those of the products ``(B, K D)``."""
        dim = self._dim
        return state[:, :dim], state[:, dim] * math.sqrt(dim), state[:, dim + 1 :] / _HIDDEN

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        """Split a state whose velocity is that of all its parts."""
        states = y[:, : self._dim].reshape(-1, *self._like.shape[1:]).to(self._like.dtype)

        def field(state: Tensor) -> Tensor:
            return velocity(super(AugmentedFrame, self).__call__(state, level, rows), level)

        if self._probes is None:
            value, seen = value_and_diagonal(field, states, self._axes)
            rest = [wide(seen[:, 0]).sum(dim=1, keepdim=True) / math.sqrt(self._dim)]
        else:
            probes = self._probes if rows is None else self._probes[rows]
            value, products = value_and_products(field, states, probes)
            divergence = (wide(probes) * wide(products)).sum(dim=2).mean(dim=1, keepdim=True)
            rest = [divergence / math.sqrt(self._dim), flatten(wide(products)) * _HIDDEN]
        if not all_finite(value):
            raise FloatingPointError("the model's output is not finite")
        slope = torch.cat([wide(flatten(value)), *rest], dim=1)
        return Split.linear(y, slope, (level.cos, -level.sin), (level.sin, level.cos))


def within(method: AdaptiveSampler, rtol: float, atol: float) -> AdaptiveSampler:
    """Return a solver with other tolerances."""
    return replace(method, rtol=rtol, atol=atol)  # type: ignore[type-var]


def solver_error(fine: Sequence[Tensor], loose: Sequence[Tensor]) -> Tensor:
    """Return the estimated size of the error of a sum whose terms ``(B,)`` were found within two tolerances.

    Of errors that follow the tolerance the difference holds nine, of those that do not it may hold one: 0.4 of it is
    stated, which is two to four times the error in the mean, and of single items seldom less than half of theirs.
    Terms of unlike sign do not hide each other's difference.
    """
    changes = [(a - b).abs() for a, b in zip(fine, loose, strict=True)]
    return 0.4 * torch.stack(changes).sum(dim=0)


@dataclass(frozen=True)
class AugmentedODE:
    """An adaptive solver of the probability-flow ODE, for state and log-density together.

    Args:
        method: the solver, with its tolerances: absolute ones are of the path in the frame and, in nats a dimension,
            of the log-density.
    """

    method: AdaptiveSampler

    def looser(self) -> AugmentedODE:
        """Return the solver that it is compared with."""
        return AugmentedODE(within(self.method, LOOSER * self.method.rtol, LOOSER * self.method.atol))

    def carry(
        self,
        model: Denoiser,
        y: Tensor,
        start: Level[float],
        end: Level[float],
        probes: Tensor | None,
        law: ProbeLaw,
        source: NoiseSource,
    ) -> AugmentedSolution:
        """Take the state ``y`` of the frame from one level to another.

        Args:
            model: a denoiser with its process.
            y: ``(B, *shape)``.
            start: the level of ``y``.
            end: the level at which to arrive.
            probes: ``(B, K, D)``; ``None`` for the exact trace.
            law: of the probes.
            source: of random numbers, of which a deterministic solver takes none.
        """
        riding = AugmentedFrame(model, y, probes)
        state = riding.start()
        shrink = math.sqrt(y[0].numel() / state.shape[1])  # the mean square is taken over y's own entries
        method = within(self.method, shrink * self.method.rtol, shrink * self.method.atol)
        arrived, integral, products = riding.parts(method.integrate(riding, state, start, end, source, None))
        arrived = arrived.reshape(y.shape).to(y.dtype)
        if probes is None:
            return AugmentedSolution(arrived, integral, torch.zeros_like(integral), riding.nfe)
        sights = ProbeProducts([wide(probes)], [products.reshape(probes.shape)], [1.0])
        return AugmentedSolution(arrived, integral, standard_error(law, sights), riding.nfe)
