r"""Parameters of a tuned solver and their initialisation by a multistep method.

Nodes are cumulated shares of the clock, a softmax, so that they keep their order. Learned weights are added to those of
a multistep method, which are functions of the nodes. All in float64, with gradients.
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
"""Number of velocities with learned weights in a step: as many as for a corrector of four values."""


class Initialisation(NamedTuple):
    """Initial nodes and multistep method.

    Attributes:
        power: power of the grid, uniform in ``t^(1/power)`` of the standard process.
        method: multistep method on these nodes.
        nodes: half log-SNRs of the nodes, ``N + 1``, in place of the grid's.
    """

    power: float
    method: AdamsMethod
    nodes: tuple[float, ...] | None = None


class SolverTensors(NamedTuple):
    """Fields of :class:`~sdediff.samplers.tuned.Tuned` as tensors with gradients."""

    half_log_snr: Tensor
    rows: list[StepWeights[Tensor]]
    clean: StepWeights[Tensor]
    method: AdamsMethod
    evaluated: Tensor

    def sampler(self, model: Denoiser) -> Tuned:
        """Return the sampler with plain numbers."""

        def plain(row: StepWeights[Tensor]) -> StepWeights:
            return StepWeights(*(tuple(weights.tolist()) for weights in row))

        return Tuned(
            tuple(self.half_log_snr.tolist()),
            tuple(plain(row) for row in self.rows),
            plain(self.clean),
            self.method,
            tuple(self.evaluated.tolist()),
            model.moments,
        )


@dataclass(frozen=True, eq=False)
class SolverParameters:
    """Learned parameters of a solver.

    Args:
        bounds: half log-SNR of the first and of the last node.
        start: initial nodes and method, to which the learned weights are added.
        shares: logits of the steps in the clock, ``(N,)``.
        step: learned weights of the predictor, ``(N + 1, MEMORY)``; the last row is for the data.
        back: learned weights of the corrector's change, of the same shape.
        offsets: differences of half log-SNR between evaluation and inner node, ``(N - 1,)``.
    """

    bounds: tuple[float, float]
    start: Initialisation
    shares: Tensor
    step: Tensor = field(repr=False)
    back: Tensor = field(repr=False)
    offsets: Tensor = field(repr=False)

    @staticmethod
    def of(model: Denoiser, steps: int, t_to: float, start: Initialisation) -> SolverParameters:
        """Initialise the parameters: a method with nothing learned."""
        sde = model.sde
        first, last = (float(sde.half_log_snr(t)) for t in (sde.t_max, t_to))
        if start.nodes is None:
            nodes = _nodes(first, last, steps, start.power)
        else:
            nodes = torch.tensor([first, *start.nodes[1:-1], last], dtype=torch.float64)
        clock = asinh_clock((-nodes).exp())
        free = torch.zeros(steps + 1, MEMORY, dtype=torch.float64)
        return SolverParameters(
            (first, last), start, (clock[:-1] - clock[1:]).log(), free, free.clone(), free.new_zeros(steps - 1)
        )

    def parameters(self) -> list[Tensor]:
        """Return the learned tensors."""
        return [self.shares, self.step, self.back, self.offsets]

    def tensors(self) -> SolverTensors:
        """Return nodes and weights of the solver."""
        first, last = (asinh_clock(torch.tensor(-end, dtype=torch.float64).exp()) for end in self.bounds)
        fraction = torch.softmax(self.shares, dim=0).cumsum(dim=0)
        inner = -tan_of_asinh_clock(first + (last - first) * fraction[:-1]).log()
        half_log_snr = torch.cat([inner.new_tensor([self.bounds[0]]), inner, inner.new_tensor([self.bounds[1]])])
        sizes = [min(i + 1, MEMORY) for i in range(len(self.shares))]
        rows = [StepWeights(self.step[i, :size], self.back[i, :size]) for i, size in enumerate((*sizes, sizes[-1]))]
        evaluated = half_log_snr[:-1] + torch.cat([self.offsets.new_zeros(1), self.offsets])
        return SolverTensors(half_log_snr, rows[:-1], rows[-1], self.start.method, evaluated)


def _nodes(first: float, last: float, steps: int, power: float) -> Tensor:
    """Return half log-SNRs of nodes uniform in ``tau^(1/power)``, tau the time of the standard process."""
    reference = VPSDE()
    bounds = reference.time(torch.tensor([first, last], dtype=torch.float64)).tolist()
    times = Power(power)(reference, steps, *bounds)
    return reference._log_alpha(times) - reference._log_sigma(times)
