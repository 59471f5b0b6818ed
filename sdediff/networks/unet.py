"""A U-Net for series, images and volumes (Ronneberger et al. 2015), of the family of DDPM++ and ADM.

Residual blocks scaled and shifted by the noise level (Ho et al. 2020; Dhariwal & Nichol 2021, adaptive group norm),
attention at small resolutions, and resampling by convolutions or inside residual blocks (Song et al. 2021, BigGAN's).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdediff.networks.blocks import CONVOLUTIONS, Attention, ResBlock, group_norm, half_size, resample
from sdediff.networks.embedding import ConditionEmbedding, Embedding
from sdediff.networks.sizes import sized
from sdediff.networks.zero import zeroed


class UNetSize(NamedTuple):
    """The parameters of the U-Net that make its size; see :class:`UNet`."""

    width: int
    multipliers: Sequence[int]
    blocks: int
    attention: int
    residual: bool


UNET_SIZES: dict[str, UNetSize] = {
    "tiny": UNetSize(32, (1, 2, 2), blocks=1, attention=0, residual=False),
    "small": UNetSize(64, (1, 2, 2), blocks=2, attention=64, residual=True),
    "medium": UNetSize(128, (1, 2, 2, 2), blocks=2, attention=256, residual=True),  # Ho et al. 2020 for CIFAR-10
    "large": UNetSize(128, (2, 2, 2), blocks=4, attention=256, residual=True),  # DDPM++ of Karras et al. 2022
}
"""Sizes by name."""


class UNet(nn.Module):
    """U-Net: residual blocks on either side, each joined to its mirror image by a concatenated skip.

    Maps are halved, rounded up, and put back to the size of the skip, so that any size will do. Whatever is left out
    is that of the named size.

    Args:
        shape: shape of an item, ``(C, L)``, ``(C, H, W)`` or ``(C, D, H, W)`` with sides of at least 4.
        size: a name of ``UNET_SIZES``.
        width: channels at full resolution.
        multipliers: channels of each resolution in units of ``width``.
        blocks: residual blocks a resolution, on either side.
        attention: the most positions of a map with attention after each block; at the bottom it always is.
        residual: whether maps are resampled inside residual blocks, with two more at the bottom; else by convolutions
            of stride 2 and copies of neighbours.
        dropout: probability of the dropout in residual blocks.
        classes: number of classes of the condition ``label``; label ``classes``, or none, is the null label.
        features: number of features of the condition ``vector``; a row with a NaN, or none, is the null vector.
        outputs: the number of tensors like the state that are returned, side by side along the channels.

    Raises:
        ValueError: for another shape, an unknown size, or a number that is not allowed.

    >>> network = sdediff.networks.UNet((3, 32, 32), size="small", classes=10)
    >>> network(torch.zeros(2, 3, 32, 32), torch.zeros(2), torch.tensor([3, 10])).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        size: str = "tiny",
        width: int | None = None,
        multipliers: Sequence[int] | None = None,
        blocks: int | None = None,
        attention: int | None = None,
        residual: bool | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        features: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        chosen = sized(
            UNET_SIZES,
            size,
            "U-Net",
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            residual=residual,
        )
        _check(shape, chosen, dropout, outputs)
        self.config = {
            "shape": list(shape),
            **chosen._asdict(),
            "multipliers": list(chosen.multipliers),
            "dropout": dropout,
            "classes": classes,
            "features": features,
            "outputs": outputs,
        }
        dims, embedding, self.blocks = len(shape) - 1, 4 * chosen.width, chosen.blocks
        convolution, levels = CONVOLUTIONS[dims], [multiplier * chosen.width for multiplier in chosen.multipliers]
        widths = [channels for channels in levels for _ in range(chosen.blocks)]  # of the blocks on the way down
        before, after = [chosen.width, *widths[:-1]], [*widths[1:], widths[-1]]

        def block(before: int, after: int) -> ResBlock:
            return ResBlock(before, after, embedding, dims=dims, dropout=dropout)

        def attentions() -> nn.ModuleList:
            sizes = [size for size in _sizes(shape, len(levels)) for _ in range(chosen.blocks)]
            return nn.ModuleList(
                Attention(channels, dims=dims) if math.prod(size) <= chosen.attention else nn.Identity()
                for channels, size in zip(widths, sizes, strict=True)
            )

        self.embedding = Embedding(embedding)
        self.position = nn.Parameter(torch.zeros(1, chosen.width, *shape[1:]))  # where a pixel is matters in scans
        self.entry = convolution(shape[0], chosen.width, 3, padding=1)
        self.down = nn.ModuleList(block(a, b) for a, b in zip(before, widths, strict=True))
        self.shrink = nn.ModuleList(
            block(c, c) if chosen.residual else convolution(c, c, 3, stride=2, padding=1) for c in levels[:-1]
        )
        self.middle = Attention(levels[-1], dims=dims)
        self.up = nn.ModuleList(block(a + c, c) for a, c in zip(after, widths, strict=True))
        self.exit = nn.Sequential(
            group_norm(levels[0]), nn.SiLU(), zeroed(convolution(levels[0], shape[0] * outputs, 3, padding=1))
        )
        self.condition = ConditionEmbedding(embedding, classes, features)
        self.bottom = nn.ModuleList(block(levels[-1], levels[-1]) for _ in range(2 * chosen.residual))
        self.grow = nn.ModuleList(block(c, c) for c in levels[1:] * chosen.residual)
        self.down_attention, self.up_attention = attentions(), attentions()

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
        hidden, skips = self.entry(x) + self.position, []
        for i, (block, attention) in enumerate(zip(self.down, self.down_attention, strict=True)):
            if i and i % self.blocks == 0:
                hidden = self._shrunk(hidden, embedding, i // self.blocks - 1)
            hidden = attention(block(hidden, embedding))
            skips.append(hidden)
        hidden = self.bottom[0](hidden, embedding) if self.bottom else hidden
        hidden = self.middle(hidden)
        hidden = self.bottom[1](hidden, embedding) if self.bottom else hidden
        for i in reversed(range(len(skips))):
            if i < len(skips) - 1 and (i + 1) % self.blocks == 0:
                hidden = self._grown(hidden, embedding, i // self.blocks, skips[i].shape[2:])
            hidden = self.up[i](torch.cat([hidden, skips[i]], dim=1), embedding)
            hidden = self.up_attention[i](hidden)
        output: Tensor = self.exit(hidden)
        return output

    def _shrunk(self, hidden: Tensor, embedding: Tensor, level: int) -> Tensor:
        """Halve maps that leave a level."""
        layer = self.shrink[level]
        result: Tensor = layer(hidden, embedding, half_size(hidden.shape[2:])) if self.grow else layer(hidden)
        return result

    def _grown(self, hidden: Tensor, embedding: Tensor, level: int, size: torch.Size) -> Tensor:
        """Bring maps to the size of a level above."""
        if not self.grow:
            return resample(hidden, size)
        grown: Tensor = self.grow[level](hidden, embedding, size)
        return grown


def _sizes(shape: Sequence[int], levels: int) -> Iterator[torch.Size]:
    """Yield the size of the maps of each level."""
    size = torch.Size(shape[1:])
    for _ in range(levels):
        yield size
        size = half_size(size)


def _check(shape: Sequence[int], size: UNetSize, dropout: float, outputs: int) -> None:
    """Refuse shapes and numbers of which no U-Net can be made."""
    if not 2 <= len(shape) <= 4 or shape[0] < 1 or min(shape[1:]) < 4:
        raise ValueError(
            "the U-Net needs series (C, L), images (C, H, W) or volumes (C, D, H, W) with sides of at least 4, "
            f"not shape {tuple(shape)}"
        )
    if not size.multipliers or min(size.width, size.blocks, outputs, *size.multipliers) < 1:
        raise ValueError(
            f"width, multipliers, blocks and outputs must be positive, not {size.width}, {list(size.multipliers)}, "
            f"{size.blocks} and {outputs}"
        )
    if size.attention < 0 or not 0.0 <= dropout < 1.0:
        raise ValueError(f"attention is at least 0 and dropout in [0, 1), not {size.attention} and {dropout:g}")
