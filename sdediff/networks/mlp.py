"""A residual perceptron for points and vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from sdediff.networks.embedding import Embedding
from sdediff.networks.levels import LevelHead
from sdediff.networks.zero import zeroed


class Block(nn.Module):
    """Norm, the embedding's scale and shift, two layers; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``(B, width)`` to the same."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        result: Tensor = x + self.layers(self.norm(x) * (1.0 + scale) + shift)
        return result


class MLP(nn.Module):
    """The perceptron; states of any shape are flattened and put back.

    Args:
        shape: of one item.
        width: of the hidden layers; even.
        blocks: number of residual blocks.
        levels: if given, the data have that many integer levels and the output goes through
            :class:`~sdediff.networks.levels.LevelHead`.
        low: value of the lowest level.
        high: value of the highest level.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 128,
        blocks: int = 3,
        levels: int | None = None,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        size = math.prod(shape)
        self.config = {
            "shape": list(shape),
            "width": width,
            "blocks": blocks,
            "levels": levels,
            "low": low,
            "high": high,
        }
        self.embedding = Embedding(width)
        self.entry = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.exit = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, size * (levels or 1))))
        self.head = None if levels is None else LevelHead(levels, low, high)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """States ``(B, *shape)`` and a scalar each ``(B,)`` to a tensor like the states."""
        embedding = self.embedding(conditioning)
        hidden = self.entry(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        output: Tensor = self.exit(hidden)
        return output.reshape(x.shape) if self.head is None else self.head(output, x, conditioning)
