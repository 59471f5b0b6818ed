r"""The free numbers of a tuned solver, and the multistep method they start from.

Nodes are shares of the clock, a softmax, so that they keep their order. Rows are numbers on top of a multistep method,
whose own weights follow where the nodes go. All in float64, with gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.denoiser import Denoiser
from sdediff.grids import Power
from sdediff.samplers.tuned import AdamsMethod, StepWeights, Tuned, asinh_clock, tan_of_asinh_clock
from sdediff.sde import VPSDE

MEMORY = 5
"""Velocities that a row weighs: as many as a corrector of four values does."""


class Initialisation(NamedTuple):
    """A method to start from.

    Attributes:
        power: nodes uniform in ``t^(1/power)`` of the standard process.
        method: on them.
    """

    power: float
    method: AdamsMethod


class SolverTensors(NamedTuple):
    """A solver with gradients; what :class:`~sdediff.samplers.tuned.Tuned` has as plain numbers."""

    half_log_snr: Tensor
    rows: list[StepWeights[Tensor]]
    clean: StepWeights[Tensor]
    method: AdamsMethod
    asked: Tensor

    def sampler(self, model: Denoiser) -> Tuned:
        """The same as plain numbers."""

        def plain(row: StepWeights[Tensor]) -> StepWeights:
            return StepWeights(*(tuple(weights.tolist()) for weights in row))

        return Tuned(
            tuple(self.half_log_snr.tolist()),
            tuple(plain(row) for row in self.rows),
            plain(self.clean),
            self.method,
            tuple(self.asked.tolist()),
            model.moments,
        )


@dataclass(frozen=True, eq=False)
class SolverParameters:
    """Numbers to be learned.

    Args:
        ends: half log-SNR of the first and of the last node.
        start: the method at zero.
        shares: logits of the steps in the clock, ``(N,)``.
        step: free part of the predictor's weights, ``(N + 1, MEMORY)``; the last row is for the data.
        back: free part of the corrector's change, the same shape.
        asked: half log-SNR by which the model is asked off the inner nodes, ``(N - 1,)``.
    """

    ends: tuple[float, float]
    start: Initialisation
    shares: Tensor
    step: Tensor = field(repr=False)
    back: Tensor = field(repr=False)
    asked: Tensor = field(repr=False)

    @staticmethod
    def of(model: Denoiser, steps: int, t_to: float, start: Initialisation) -> SolverParameters:
        """A method as it is, with nothing learned."""
        sde = model.sde
        first, last = (float(sde.half_log_snr(t)) for t in (sde.t_max, t_to))
        clock = asinh_clock((-_nodes(first, last, steps, start.power)).exp())
        free = torch.zeros(steps + 1, MEMORY, dtype=torch.float64)
        return SolverParameters(
            (first, last), start, (clock[:-1] - clock[1:]).log(), free, free.clone(), free.new_zeros(steps - 1)
        )

    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [self.shares, self.step, self.back, self.asked]

    def tensors(self) -> SolverTensors:
        """The solver that the numbers mean."""
        first, last = (asinh_clock(torch.tensor(-end, dtype=torch.float64).exp()) for end in self.ends)
        passed = torch.softmax(self.shares, dim=0).cumsum(dim=0)
        inner = -tan_of_asinh_clock(first + (last - first) * passed[:-1]).log()
        half_log_snr = torch.cat([inner.new_tensor([self.ends[0]]), inner, inner.new_tensor([self.ends[1]])])
        sizes = [min(i + 1, MEMORY) for i in range(len(self.shares))]
        rows = [StepWeights(self.step[i, :size], self.back[i, :size]) for i, size in enumerate((*sizes, sizes[-1]))]
        asked = half_log_snr[:-1] + torch.cat([self.asked.new_zeros(1), self.asked])
        return SolverTensors(half_log_snr, rows[:-1], rows[-1], self.start.method, asked)


def _nodes(first: float, last: float, steps: int, power: float) -> Tensor:
    """Half log-SNR of nodes uniform in ``tau^(1/power)``, tau the time of the standard process."""
    reference = VPSDE()
    ends = reference.time(torch.tensor([first, last], dtype=torch.float64)).tolist()
    times = Power(power)(reference, steps, *ends)
    return reference._log_alpha(times) - reference._log_sigma(times)
