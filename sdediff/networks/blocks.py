"""Blocks of the U-Net for series, images and volumes: residual convolutions, attention, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.networks.dropout import activation
from sdediff.networks.zero import zeroed

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""Convolutions by the number of dimensions besides the channels."""
_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_HEADS, _HEAD_WIDTH = 4, 64


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a normalisation by the most of 8, 4, 2 or 1 groups that divide the channels."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def half_size(size: torch.Size) -> torch.Size:
    """Return half the size in every dimension, rounded up."""
    return torch.Size((side + 1) // 2 for side in size)


def resample(x: Tensor, size: torch.Size | None) -> Tensor:
    """Return maps ``(B, C, *sides)`` at another size: means of neighbours for half of it, copies for a larger one."""
    sides = x.shape[2:]
    if size is None or sides == size:
        return x
    if math.prod(size) > math.prod(sides):
        return functional.interpolate(x, size=size)
    kernel = tuple(1 if old == new else 2 for old, new in zip(sides, size, strict=True))
    return _POOLS[len(size)](x, kernel, ceil_mode=True, count_include_pad=False)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice, scaled and shifted between; the identity at the start.

    Args:
        before: channels of the input.
        after: channels of the output.
        embedding: features of the noise level and the condition.
        dims: dimensions besides the channels, 1, 2 or 3.
        dropout: probability by which an entry is dropped before the second convolution.
    """

    def __init__(self, before: int, after: int, embedding: int, *, dims: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.first = nn.Sequential(group_norm(before), nn.SiLU(), convolution(before, after, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * after)
        self.norm = group_norm(after)
        self.second = nn.Sequential(activation(dropout), zeroed(convolution(after, after, 3, padding=1)))
        self.skip = nn.Identity() if before == after else convolution(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        """Map ``(B, before, *sides)`` to ``(B, after, *sides)``, or to ``(B, after, *size)`` by resampling inside."""
        norm, silu, convolution = self.first
        modulation: Tensor = self.modulation(embedding)
        scale, shift = modulation.reshape(*modulation.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        hidden = self.norm(convolution(resample(silu(norm(x)), size))) * (1.0 + scale) + shift
        result: Tensor = self.skip(resample(x, size)) + self.second(hidden)
        return result


class Attention(nn.Module):
    """Self-attention over the positions, added to its input: 4 heads, of at most 64 channels.

    Args:
        channels: channels of the maps.
        dims: dimensions besides the channels, 1, 2 or 3.
    """

    def __init__(self, channels: int, *, dims: int = 2) -> None:
        super().__init__()
        heads = max(_HEADS, channels // _HEAD_WIDTH)
        self.heads = heads if channels % heads == 0 else 1
        self.norm = group_norm(channels)
        self.qkv = CONVOLUTIONS[dims](channels, 3 * channels, 1)
        self.out = zeroed(CONVOLUTIONS[dims](channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, *sides)`` to the same shape."""
        qkv: Tensor = self.qkv(self.norm(x))
        positions = math.prod(x.shape[2:])
        q, k, v = qkv.reshape(x.shape[0], 3, self.heads, -1, positions).transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.out(mixed.transpose(-1, -2).reshape(x.shape))
        return result
