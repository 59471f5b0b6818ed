"""Weights that start at zero, and the seeded draw of all others."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def zeroed(layer: ModuleT) -> ModuleT:
    """Set a layer's parameters to zero, for blocks that start as the identity and outputs that start at 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights anew from ``generator``, so that they do not depend on torch's global one.

    Matrices and kernels become uniform in ``+-sqrt(3 / fan_in)`` times ``1 / sqrt(3)`` (torch's own default);
    those at zero stay there, and so do gains; biases become zero.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1 and bool(parameter.any()):
            bound = 1.0 / math.sqrt(parameter[0].numel())
            parameter.uniform_(-bound, bound, generator=generator)
        elif parameter.ndim == 1 and not bool((parameter == 1.0).all()):
            parameter.zero_()
