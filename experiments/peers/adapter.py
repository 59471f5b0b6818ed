"""What a peer is to the benchmark, and the grids it is given.

Every peer sees the same thing: the exact denoiser in the variance-preserving frame, a start state, and N + 1 levels,
the first and last of which are fixed. Whatever a peer's own code calls a grid (sigmas, timesteps) is only another way
to name levels, so a peer's own grids are computed by its own functions and then given as levels too; no chain of
training timesteps is emulated and no emulation error enters. A duplicate or zero last sigma is never given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff import SDE, Level
from sdediff.dynamics import Frame

Rule = Callable[[SDE, int, float, float], Tensor]
"""``(sde, steps, t_from, t_to) -> times``, float64 ``(steps + 1,)``: the signature of ``sdediff.GRIDS``."""
Levels = Sequence[Level[float]]


@dataclass(frozen=True)
class Peer:
    """One solver of another package with all its options set.

    Args:
        name: package, solver, options.
        solve: ``(frame, y, levels) -> y`` at the last level.
        grids: the package's own grids for this process, by name.
        swapped: its grids for other processes, which a model that does not depend on the schedule may use.
        forwards: of the network a step.
        extra: forwards beyond that, once a solve.
        most: the largest number of forwards at which the options still make a difference.
        handed: whether it follows levels that are not its own.
    """

    name: str
    solve: Callable[[Frame, Tensor, Levels], Tensor]
    grids: Mapping[str, Rule]
    forwards: int = 1
    extra: int = 0
    most: int = 10**9
    handed: bool = True
    swapped: Mapping[str, Rule] = field(default_factory=dict)

    def steps(self, budget: int) -> int:
        """As many steps as ``budget`` forwards pay for; an odd budget leaves a two-stage method one to spare."""
        return (budget - self.extra) // self.forwards if budget <= self.most else 0


def by_sigma(make: Callable[[int, float, float], Tensor]) -> Rule:
    """A rule from a package's function ``(count, sigma_min, sigma_max) -> sigmas``, sigma in units of the signal."""

    def rule(sde: SDE, steps: int, t_from: float, t_to: float) -> Tensor:
        top, bottom = (float(torch.exp(-sde.half_log_snr(t))) for t in (t_from, t_to))
        sigmas = torch.as_tensor(make(steps + 1, bottom, top), dtype=torch.float64).clone()
        sigmas[0], sigmas[-1] = top, bottom
        times = sde.time(-sigmas.log())
        times[0], times[-1] = t_from, t_to
        return times

    return rule


def ratio(levels: Levels) -> Tensor:
    """``sigma / alpha`` of the levels, float64."""
    return torch.tensor([level.sin / level.cos for level in levels], dtype=torch.float64)
