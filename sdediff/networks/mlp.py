"""A residual perceptron for points and vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from sdediff.networks.dropout import activation, check_dropout
from sdediff.networks.embedding import ConditionEmbedding, Embedding
from sdediff.networks.sizes import sized
from sdediff.networks.zero import zeroed


class MLPSize(NamedTuple):
    """The parameters of the perceptron that make its size; see :class:`MLP`."""

    width: int
    blocks: int


MLP_SIZES: dict[str, MLPSize] = {
    "tiny": MLPSize(128, blocks=3),
    "small": MLPSize(256, blocks=4),
    "medium": MLPSize(512, blocks=6),
    "large": MLPSize(1024, blocks=8),
}
"""Sizes by name."""


class Block(nn.Module):
    """Residual block: norm, the embedding's scale and shift, two layers; the identity at the start."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.layers = nn.Sequential(nn.Linear(width, width), activation(dropout), zeroed(nn.Linear(width, width)))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(B, width)`` to ``(B, width)``."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        result: Tensor = x + self.layers(self.norm(x) * (1.0 + scale) + shift)
        return result


class MLP(nn.Module):
    """Residual perceptron; states of any shape are flattened and put back.

    Whatever is left out is that of the named size.

    Args:
        shape: shape of one item.
        size: a name of ``MLP_SIZES``.
        width: width of the hidden layers; even.
        blocks: number of residual blocks.
        dropout: probability of the dropout in residual blocks.
        classes: number of classes of the condition ``label``; label ``classes``, or none, is the null label.
        features: number of features of the condition ``vector``; a row with a NaN, or none, is the null vector.
        outputs: the number of tensors like the state that are returned, side by side along the channels.

    Raises:
        ValueError: for an unknown size, or a number that is not allowed.

    >>> sdediff.networks.MLP((2,), size="small", features=3).config["width"]
    256
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        size: str = "tiny",
        width: int | None = None,
        blocks: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        features: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        chosen = sized(MLP_SIZES, size, "perceptron", width=width, blocks=blocks)
        numbers, self.outputs = math.prod(shape), outputs
        if len(shape) < 1 or min(*shape, chosen.width, outputs) < 1 or chosen.blocks < 0:
            raise ValueError(
                f"shape, width and outputs must be positive, not {tuple(shape)}, {chosen.width} and {outputs}; "
                f"the number of blocks is at least 0, not {chosen.blocks}"
            )
        check_dropout(dropout)
        self.config = {
            "shape": list(shape),
            **chosen._asdict(),
            "dropout": dropout,
            "classes": classes,
            "features": features,
            "outputs": outputs,
        }
        self.embedding = Embedding(chosen.width)
        self.entry = nn.Linear(numbers, chosen.width)
        self.blocks = nn.ModuleList(Block(chosen.width, dropout) for _ in range(chosen.blocks))
        self.exit = nn.Sequential(
            nn.LayerNorm(chosen.width), nn.SiLU(), zeroed(nn.Linear(chosen.width, numbers * outputs))
        )
        self.condition = ConditionEmbedding(chosen.width, classes, features)

    def forward(
        self, x: Tensor, conditioning: Tensor, label: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """Map states ``(B, *shape)``, a scalar each ``(B,)`` and conditions to ``outputs`` tensors like the states.

        Args:
            x: the states.
            conditioning: a scalar each, of the noise level.
            label: integers ``(B,)`` of 0 to ``classes``, which is the null label.
            vector: features ``(B, features)``.
        """
        embedding = self.embedding(conditioning, self.condition(len(x), label, vector))
        hidden = self.entry(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        output: Tensor = self.exit(hidden)
        return output.reshape(x.shape[0], self.outputs * x.shape[1], *x.shape[2:])
