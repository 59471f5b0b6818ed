"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move ``average`` towards ``network`` in place.

    Args:
        average: a copy of the network.
        network: the trained network.
        decay: the limit of the decay; early on it is ``(1 + step) / (10 + step)``, so that the start is forgotten.
        step: number of updates before this one.
    """
    decay = min(decay, (1.0 + step) / (10.0 + step))
    for averaged, new in zip(average.parameters(), network.parameters(), strict=True):
        averaged.lerp_(new, 1.0 - decay)
    for buffer, current in zip(average.buffers(), network.buffers(), strict=True):
        buffer.copy_(current)
