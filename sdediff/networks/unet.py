"""A small U-Net for images of any size from 4 x 4 (Ronneberger et al. 2015; residual blocks as in Ho et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.networks.embedding import Embedding
from sdediff.networks.zero import zeroed


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice, scaled and shifted between; the identity at the start."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * after)
        self.norm = _norm(after)
        self.second = nn.Sequential(nn.SiLU(), zeroed(nn.Conv2d(after, after, 3, padding=1)))
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map ``(B, before, H, W)`` to ``(B, after, H, W)``."""
        modulation: Tensor = self.modulation(embedding)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(x)) * (1.0 + scale) + shift
        result: Tensor = self.skip(x) + self.second(hidden)
        return result


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads if channels % heads == 0 else 1
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H, W)``."""
        qkv: Tensor = self.qkv(self.norm(x))
        q, k, v = qkv.reshape(x.shape[0], 3, self.heads, -1, x.shape[2] * x.shape[3]).transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.out(mixed.transpose(-1, -2).reshape(x.shape))
        return result


class UNet(nn.Module):
    """U-Net: one residual block a resolution on either side, attention at the bottom.

    Downsampling is by convolutions of stride 2, upsampling by nearest neighbours to the size of the skip, so that any
    size will do; skips are concatenated.

    Args:
        shape: shape of an image, ``(C, H, W)`` with sides of at least 4.
        width: channels at full resolution.
        multipliers: channels of each resolution in units of ``width``.
        outputs: the number of tensors like the state that are returned, side by side along the channels.

    Raises:
        ValueError: if the shape is not that of an image, or a number of channels is not positive.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 4:
            raise ValueError(f"the U-Net needs images (C, H, W) with sides of at least 4, not shape {tuple(shape)}")
        if not multipliers or min(width, outputs, *multipliers) < 1:
            raise ValueError(
                f"width, multipliers and outputs must be positive, not {width}, {list(multipliers)} and {outputs}"
            )
        self.config = {
            "shape": list(shape),
            "width": width,
            "multipliers": list(multipliers),
            "outputs": outputs,
        }
        features, widths = 4 * width, [multiplier * width for multiplier in multipliers]
        before, after = [width, *widths[:-1]], [*widths[1:], widths[-1]]
        self.embedding = Embedding(features)
        self.position = nn.Parameter(torch.zeros(1, width, *shape[1:]))  # where a pixel is matters in aligned scans
        self.entry = nn.Conv2d(shape[0], width, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(a, b, features) for a, b in zip(before, widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in widths[:-1])
        self.middle = Attention(widths[-1])
        self.up = nn.ModuleList(ResBlock(a + c, c, features) for a, c in zip(after, widths, strict=True))
        self.exit = nn.Sequential(
            _norm(widths[0]), nn.SiLU(), zeroed(nn.Conv2d(widths[0], shape[0] * outputs, 3, padding=1))
        )

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` and a scalar each ``(B,)`` to ``outputs`` tensors like the images."""
        embedding = self.embedding(conditioning)
        hidden, skips = self.entry(x) + self.position, []
        for depth, block in enumerate(self.down):
            hidden = block(self.shrink[depth - 1](hidden) if depth else hidden, embedding)
            skips.append(hidden)
        hidden = self.middle(hidden)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            if hidden.shape[-2:] != skip.shape[-2:]:
                hidden = functional.interpolate(hidden, size=skip.shape[-2:])
            hidden = block(torch.cat([hidden, skip], dim=1), embedding)
        output: Tensor = self.exit(hidden)
        return output
