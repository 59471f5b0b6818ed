"""Features of the conditioning scalar."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies (Vaswani et al. 2017; Tancik et al. 2020).

    Args:
        features: even number of outputs.
        low: lowest angular frequency; ``pi / 20`` is one half turn over a log-SNR range of 20.
        high: highest angular frequency.
    """

    def __init__(self, features: int, low: float = math.pi / 20.0, high: float = 4.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"the number of Fourier features must be even and positive, not {features}")
        self.count, self.low, self.high = features // 2, low, high

    def forward(self, scalar: Tensor) -> Tensor:
        """Map ``(B,)`` to ``(B, features)``."""
        exponents = torch.linspace(0.0, 1.0, self.count, dtype=scalar.dtype, device=scalar.device)
        phase = scalar[:, None] * self.low * (self.high / self.low) ** exponents
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class Embedding(nn.Sequential):
    """Embed the conditioning ``(B,)`` as ``(B, features)``: Fourier features through a two-layer perceptron.

    The features are made in the precision of the scalar, then put into that of the weights.
    """

    def __init__(self, features: int) -> None:
        super().__init__(
            FourierFeatures(features),
            nn.Linear(features, features),
            nn.SiLU(),
            nn.Linear(features, features),
            nn.SiLU(),
        )

    def forward(self, scalar: Tensor) -> Tensor:
        """Map ``(B,)`` to ``(B, features)``."""
        features, first, *rest = self
        hidden: Tensor = first(features(scalar).to(first.weight.dtype))
        for layer in rest:
            hidden = layer(hidden)
        return hidden
