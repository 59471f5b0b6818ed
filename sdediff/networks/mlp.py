"""A residual perceptron for points and vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from sdediff.networks.embedding import Embedding
from sdediff.networks.zero import zeroed


class Block(nn.Module):
    """Residual block: norm, the embedding's scale and shift, two layers; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), zeroed(nn.Linear(width, width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        result: Tensor = x + self.layers(self.norm(x) * (1.0 + scale) + shift)
        return result


class MLP(nn.Module):
    """Residual perceptron; states of any shape are flattened and put back.

    Args:
        shape: shape of one item.
        width: width of the hidden layers; even.
        blocks: number of residual blocks.
        outputs: the number of tensors like the state that are returned, side by side along the channels.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 128,
        blocks: int = 3,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        size, self.outputs = math.prod(shape), outputs
        if len(shape) < 1 or min(*shape, width, outputs) < 1 or blocks < 0:
            raise ValueError(
                f"shape, width and outputs must be positive, not {tuple(shape)}, {width} and {outputs}; "
                f"the number of blocks is at least 0, not {blocks}"
            )
        self.config = {
            "shape": list(shape),
            "width": width,
            "blocks": blocks,
            "outputs": outputs,
        }
        self.embedding = Embedding(width)
        self.entry = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.exit = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zeroed(nn.Linear(width, size * outputs)))

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Map states ``(B, *shape)`` and a scalar each ``(B,)`` to ``outputs`` tensors like the states."""
        embedding = self.embedding(conditioning)
        hidden = self.entry(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        output: Tensor = self.exit(hidden)
        return output.reshape(x.shape[0], self.outputs * x.shape[1], *x.shape[2:])
