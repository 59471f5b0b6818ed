"""Diffusion transformer for series, images and volumes (Peebles & Xie 2023), with blocks that start as the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.networks.dropout import HashedDropout, check_dropout
from sdediff.networks.embedding import ConditionEmbedding, Embedding
from sdediff.networks.sizes import sized
from sdediff.networks.zero import zeroed


class DiTSize(NamedTuple):
    """The parameters of the transformer that make its size; see :class:`DiT`."""

    width: int
    depth: int
    heads: int


DIT_SIZES: dict[str, DiTSize] = {
    "tiny": DiTSize(128, depth=4, heads=4),
    "small": DiTSize(384, depth=12, heads=6),  # S, B and L of Peebles & Xie 2023, table 1
    "medium": DiTSize(768, depth=12, heads=12),
    "large": DiTSize(1024, depth=24, heads=16),
}
"""Sizes by name."""


class DiTBlock(nn.Module):
    """Transformer block with adaLN-zero: attention and perceptron, scaled, shifted and gated by the embedding.

    Args:
        width: features of a token.
        heads: heads of the attention, which divide the width.
        dropout: probability of the dropout after attention and perceptron.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, HashedDropout(dropout) if dropout > 0.0 else nn.Identity()
        self.first, self.second = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map tokens ``(B, T, width)`` to the same shape."""
        modulation = self.modulation(embedding).unsqueeze(1).chunk(6, dim=-1)
        scale, shift, gate, late_scale, late_shift, late_gate = modulation
        x = x + gate * self.dropout(self._attend(self.first(x) * (1.0 + scale) + shift))
        result: Tensor = x + late_gate * self.dropout(self.perceptron(self.second(x) * (1.0 + late_scale) + late_shift))
        return result

    def _attend(self, x: Tensor) -> Tensor:
        """Return self-attention over the tokens."""
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result: Tensor = self.out(mixed.reshape(x.shape))
        return result


class DiT(nn.Module):
    """Transformer on patches of the item, conditioned by adaptive layer norm.

    Whatever is left out is that of the named size.

    Args:
        shape: shape of an item, ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)`` with sides that the patch divides.
        size: a name of ``DIT_SIZES``.
        patch: side of a patch.
        width: features of a token; even.
        depth: number of blocks.
        heads: heads of the attention, which divide the width.
        dropout: probability of the dropout after attention and perceptron.
        classes: number of classes of the condition ``label``; label ``classes``, or none, is the null label.
        features: number of features of the condition ``vector``; a row with a NaN, or none, is the null vector.
        outputs: the number of tensors like the state that are returned, side by side along the channels.

    Raises:
        ValueError: for another shape, an unknown size, or a number that is not allowed.

    >>> network = sdediff.networks.DiT((1, 8, 8), classes=10)
    >>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 10])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        size: str = "tiny",
        patch: int = 2,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        features: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        chosen = sized(DIT_SIZES, size, "transformer", width=width, depth=depth, heads=heads)
        _check(shape, chosen, patch, dropout, outputs)
        self.config = {
            "shape": list(shape),
            "patch": patch,
            **chosen._asdict(),
            "dropout": dropout,
            "classes": classes,
            "features": features,
            "outputs": outputs,
        }
        self.patch, self.outputs, self.grid = patch, outputs, tuple(side // patch for side in shape[1:])
        entries = shape[0] * patch ** len(self.grid)
        self.embedding = Embedding(chosen.width)
        self.condition = ConditionEmbedding(chosen.width, classes, features)
        self.entry = nn.Linear(entries, chosen.width)
        self.position = nn.Parameter(torch.zeros(1, math.prod(self.grid), chosen.width))
        self.blocks = nn.ModuleList(DiTBlock(chosen.width, chosen.heads, dropout) for _ in range(chosen.depth))
        self.norm = nn.LayerNorm(chosen.width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(chosen.width, 2 * chosen.width))
        self.exit = zeroed(nn.Linear(chosen.width, entries * outputs))
        self.register_buffer("waves", _waves(self.grid, chosen.width), persistent=False)
        self.waves: Tensor

    def forward(
        self, x: Tensor, conditioning: Tensor, label: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """Map states ``(B, C, *sides)``, a scalar each ``(B,)`` and conditions to ``outputs`` tensors like the states.

        Args:
            x: the states.
            conditioning: a scalar each, of the noise level.
            label: integers ``(B,)`` of 0 to ``classes``, which is the null label.
            vector: features ``(B, features)``.
        """
        embedding = self.embedding(conditioning, self.condition(len(x), label, vector))
        hidden = self.entry(self._patches(x)) + self.waves.to(x.dtype) + self.position
        for block in self.blocks:
            hidden = block(hidden, embedding)
        scale, shift = self.modulation(embedding).unsqueeze(1).chunk(2, dim=-1)
        return self._maps(self.exit(self.norm(hidden) * (1.0 + scale) + shift))

    def _patches(self, x: Tensor) -> Tensor:
        """Return the patches of states as tokens ``(B, T, C * patch ** dims)``."""
        sides = [part for count in self.grid for part in (count, self.patch)]
        cut, dims = x.reshape(*x.shape[:2], *sides), len(self.grid)
        counts, inside = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
        return cut.permute(0, *counts, 1, *inside).reshape(len(x), math.prod(self.grid), -1)

    def _maps(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, T, outputs * C * patch ** dims)`` as maps: what :meth:`_patches` undoes."""
        dims = len(self.grid)
        cut = tokens.reshape(len(tokens), *self.grid, -1, *(self.patch,) * dims)
        sides = [axis for i in range(dims) for axis in (1 + i, 2 + dims + i)]
        return cut.permute(0, 1 + dims, *sides).reshape(len(tokens), -1, *(n * self.patch for n in self.grid))


def _waves(grid: Sequence[int], width: int) -> Tensor:
    """Return sines and cosines of the place of each token, ``(T, width)``, a share of the features for each side."""
    share = width // (2 * len(grid))
    rate = 1e4 ** -(torch.arange(share, dtype=torch.float32) / max(share, 1))
    places = torch.cartesian_prod(*(torch.arange(count, dtype=torch.float32) for count in grid))
    phase = (places.reshape(-1, len(grid), 1) * rate).flatten(1)
    return functional.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, width - 2 * share * len(grid)))


def _check(shape: Sequence[int], size: DiTSize, patch: int, dropout: float, outputs: int) -> None:
    """Refuse shapes and numbers of which no transformer can be made."""
    if not 2 <= len(shape) <= 4 or min(*shape, patch) < 1 or any(side % patch for side in shape[1:]):
        raise ValueError(
            "the transformer needs series (C, L), images (C, H, W) or volumes (C, D, H, W) with sides that the patch "
            f"divides, not shape {tuple(shape)} in patches of {patch}"
        )
    if min(size.width, size.depth, size.heads, outputs) < 1 or size.width % 2 or size.width % size.heads:
        raise ValueError(
            "width, depth, heads and outputs must be positive, the width even and a multiple of the heads, not "
            f"{size.width}, {size.depth}, {size.heads} and {outputs}"
        )
    check_dropout(dropout)
