r"""The likelihood by an adaptive solver of torchdiffeq: the log-density rides along with the state.

Every step is chosen for both (Chen et al. 2018; Grathwohl et al. 2019). Probes must be kept along the whole path, or
the solver would see noise where it looks for error: the integral is ``e . (A^T e)`` of one matrix A, the integral of J,
and the probes' errors add up instead of averaging out. What it is for: tolerances, with the exact trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.dynamics import Frame, velocity
from sdediff.integrators.torchdiffeq import integrate
from sdediff.likelihood.divergence import value_and_diagonal, value_and_products
from sdediff.likelihood.probes import ProbeLaw, Sights, standard_error
from sdediff.numerics import all_finite, flatten
from sdediff.types import Level


class Carried(NamedTuple):
    """The end of a path: the state of the frame there, the integral of the divergence, its error, the forwards."""

    y: Tensor
    integral: Tensor
    standard_error: Tensor
    nfe: int


@dataclass(frozen=True)
class Augmented:
    """An adaptive method of torchdiffeq for state and log-density together.

    Args:
        method: its name.
        rtol: relative tolerance of the path.
        atol: absolute tolerance of the path in the frame and, in nats a dimension, of the log-density.
    """

    method: str
    rtol: float
    atol: float

    def carry(
        self,
        model: Denoiser,
        y: Tensor,
        start: Level[float],
        end: Level[float],
        probes: Tensor | None,
        law: ProbeLaw,
    ) -> Carried:
        """From the state ``y`` of the frame at one level to another.

        Args:
            model: a denoiser with its process.
            y: ``(B, *shape)``.
            start: the level of ``y``.
            end: the level at which to arrive.
            probes: ``(B, K, D)``; ``None`` for the exact trace.
            law: of the probes.
        """
        frame, dtype = Frame(model, model.sde), y.dtype
        wide = torch.float32 if y.device.type == "mps" else torch.float64
        axes = torch.eye(flatten(y).shape[1], dtype=dtype, device=y.device)

        def rates(angle: float, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            level, state = frame.at_angle(angle), parts[0].to(dtype)

            def field(state: Tensor) -> Tensor:
                return velocity(frame(state, level), level)

            if probes is None:
                value, diagonal = value_and_diagonal(field, state, axes)
                found: tuple[Tensor, ...] = (value, diagonal.to(wide).sum(dim=1))
            else:
                value, products = value_and_products(field, state, probes)
                products = products.to(wide)
                found = value, (probes.to(wide) * products).sum(dim=2).mean(dim=1), products
            if not all_finite(value):
                raise FloatingPointError(f"the model's output is not finite at t = {level.t:g}")
            return found

        initial = [y, torch.zeros(len(y), dtype=wide, device=y.device)]
        initial += [] if probes is None else [torch.zeros_like(probes, dtype=wide)]
        watched = [1.0, float(y[0].numel())]  # the products follow from the rest
        y, integral, *rest = integrate(
            rates,
            tuple(initial),
            float(start.angle),
            float(end.angle),
            method=self.method,
            rtol=(self.rtol, 0.0, 0.0)[: len(initial)],
            atol=(*(self.atol * factor for factor in watched), torch.inf)[: len(initial)],
        )
        if probes is None:
            return Carried(y, integral, torch.zeros_like(integral), frame.nfe)
        sights = Sights([probes.to(wide)], rest, [1.0])
        return Carried(y, integral, standard_error(law, sights), frame.nfe)
