"""The terms of a chain's bound as a loss: bits a dimension of the steps that a batch was drawn at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.instants import chain_steps, position_of
from sdediff.likelihood.bound.chain import ChainSteps, reverse_variance
from sdediff.likelihood.discrete.decoder import log_gaussian
from sdediff.numerics import to_nearest
from sdediff.sde import SDE
from sdediff.types import Level, Split


class ChainTerms:
    """The terms L_0 .. L_{N-1} of a chain's bound with a learned variance (Nichol & Dhariwal 2021, eq. 4-6, 15).

    L_0 is the decoder's, here the Gaussian density of continuous (dequantised) data about the denoiser's x0.

    Args:
        sde: the chain.

    Raises:
        ValueError: for any other process.
    """

    def __init__(self, sde: SDE) -> None:
        self._sde, self.count = sde, chain_steps(sde)
        levels = sde.levels(torch.arange(1, self.count + 1, dtype=torch.float64) / self.count)
        self._steps = ChainSteps(levels, reverse_variance("learned"))

    def cost(self, split: Split, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """Return the term of each item's instant.

        Args:
            split: the network's split of the noisy states, with the place of its log-variance.
            x0: clean states ``(B, *shape)``.
            eps: their noise.
            level: levels of instants, ``(B,)``.

        Returns:
            Bits a dimension, ``(B,)``: the mean over instants, N times, is the bound without its prior term.
        """
        index = to_nearest(position_of(self._sde, level)).long() - 1
        first = (index == 0).to(x0.device)
        nats = -log_gaussian(x0, split.x0, self._steps.decoder_std(split))
        if self.count > 1:
            nats = torch.where(first, nats, self._steps.cost(split, eps, (index - 1).clamp(min=0)))
        return nats / (x0[0].numel() * math.log(2.0))


def without_mean(split: Split) -> Split:
    """Return a split through whose halves no gradient flows, with the variance's place as it is."""
    halves = Split(split.x0.detach(), split.eps.detach())
    halves.fraction = split.fraction
    return halves
