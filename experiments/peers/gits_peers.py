"""iPNDM as GITS has it, and the analytic first step (Chen et al. 2024; Zhou et al. 2024; Dockhorn et al. 2022).

Their code, zju-pi/diff-sampler, is no package: its ``ipndm_sampler`` is written again here and gives its numbers. It
is an Adams-Bashforth method on ``dx / d sigma = eps`` with the weights of even steps, whatever the steps are; its grid
is that of Karras et al. with rho = 7. diffusers' ``IPNDMScheduler`` is another method, on the velocity.

The analytic first step takes ``eps = x / sqrt(1 + sigma^2)`` for the network's first answer, so that N forwards make
N + 1 steps. Their code offers it with every solver; here the solvers that can lead have it, on the same grids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor

from sdediff.conditions import Rows
from sdediff.dynamics import Frame
from sdediff.types import Level, Split

from . import diffusers_peers
from .adapter import Levels, Peer

WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
FAMILIES = ("DPMSolverMultistep dpmsolver++", "UniPCMultistep 2", "UniPCMultistep 3", "DEISMultistep", "DDIM")
"""Of diffusers, those that the analytic first step is tried on."""


def _ipndm(order: int, frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    x, known = y / levels[0].cos, deque[Tensor](maxlen=order)
    for here, there in pairwise(levels):
        known.appendleft(frame(x * here.cos, here).eps)
        width = there.sin / there.cos - here.sin / here.cos
        x = x + width * sum(w * eps for w, eps in zip(WEIGHTS[len(known) - 1], known, strict=True))
    return x * levels[-1].cos


class Started(Frame):
    """The denoiser with the first answer for nothing."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame.denoise, frame.sde)
        self.counted, self.first = frame, True

    def __call__(self, y: Tensor, level: Level, rows: Rows | None = None) -> Split:
        if self.first:
            self.first = False
            # of the state itself: (y - sin y) / cos would lose its digits
            return Split(y * (level.cos / (1.0 + level.sin)), y)
        return self.counted(y, level, rows)


def _analytic(solve: Callable[[Frame, Tensor, Levels], Tensor], frame: Frame, y: Tensor, levels: Levels) -> Tensor:
    return solve(Started(frame), y, levels)


def _with_first(peer: Peer) -> Peer:
    return Peer(f"{peer.name}, AFS", partial(_analytic, peer.solve), peer.grids, extra=-1)


def peers() -> list[Peer]:
    """iPNDM of every order on the grids that its code offers, and what takes an analytic first step."""
    grids = {name: diffusers_peers.GRIDS[name] for name in ("karras", "exponential", "time")}
    ours = [Peer(f"GITS iPNDM {order}", partial(_ipndm, order), grids) for order in (2, 3, 4)]
    others = [
        Peer(peer.name, peer.solve, grids)
        for peer in diffusers_peers.peers()
        if any(peer.name.startswith(f"diffusers {family}") for family in FAMILIES) and not peer.name.endswith("False")
    ]
    return [*ours, *map(_with_first, [*ours, *others])]
