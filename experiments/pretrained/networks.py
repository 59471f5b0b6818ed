"""Two small networks of MNIST, as their checkpoints name their parameters: what a user of the library brings along.

The parameters are those of the CNN of yichizhang98's ``ddpm-mnist`` and of the U-Net of franfee's ``DDPM-mnist``, both
under the MIT licence; the code is written anew.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 28


class Layer(nn.Module):
    """A wide convolution, normalised over all of its output."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(channels, out, 7, padding=3), nn.LayerNorm((out, SIDE, SIDE)), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CNN(nn.Module):
    """Five convolutions; ``(x, t)`` with t of shape ``(B,)`` in [0, 1]."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 32, 16)) -> None:
        super().__init__()
        layers = [Layer(*pair) for pair in zip((1, *widths), widths, strict=False)]
        self.blocks = nn.ModuleList([*layers, nn.Conv2d(widths[-1], 1, 3, padding=1)])
        sizes, embedding = (32, 128, 128, 128, widths[0]), list[nn.Module]()
        for pair in pairwise(sizes):
            embedding += [nn.Linear(*pair), nn.GELU()]
        self.time_embed = nn.Sequential(*embedding[:-1])
        self.register_buffer("frequencies", torch.zeros(16))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        embedded = self.time_embed(torch.cat([phase.sin(), phase.cos() - 1.0], dim=1))
        x = self.blocks[0](x) + embedded[:, :, None, None]
        for block in self.blocks[1:]:
            x = block(x)
        return x


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int, out: int, side: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((channels, side, side))
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.residual_conv = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv1(self.ln(x)))
        return F.relu(self.conv2(inner) + self.residual_conv(x))


class Table(nn.Module):
    """One vector a timestep: it knows integers alone."""

    def __init__(self, steps: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(steps, width)

    def forward(self, t: Tensor) -> Tensor:
        return self.embedding(t)


class UNet(nn.Module):
    """Three scales and a middle; ``(x, t)`` with integers t of shape ``(B,)``, the label 0 for the first instant."""

    def __init__(self, steps: int = 1000, widths: tuple[int, ...] = (10, 20, 40, 80), embedding: int = 128) -> None:
        super().__init__()
        *scales, middle = widths
        sides = [SIDE >> scale for scale in range(len(widths))]
        self.pe, self.pe_mid = Table(steps, embedding), nn.Linear(embedding, scales[-1])
        self.encoders, self.pe_linears_en, self.downs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.decoders, self.pe_linears_de, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = 1
        for width, side in zip(scales, sides, strict=False):
            hidden = nn.Linear(embedding, before)
            self.pe_linears_en.append(nn.Sequential(hidden, nn.ReLU(), nn.Linear(before, before)))
            self.encoders.append(self._blocks(before, width, side))
            self.downs.append(nn.Conv2d(width, width, 2, 2))
            before = width
        self.mid = self._blocks(before, middle, sides[-1])
        before = middle
        for width, side in zip(scales[::-1], sides[-2::-1], strict=True):
            self.pe_linears_de.append(nn.Linear(embedding, before))
            self.ups.append(nn.ConvTranspose2d(before, width, 2, 2))
            self.decoders.append(self._blocks(2 * width, width, side))
            before = width
        self.conv_out = nn.Conv2d(before, 1, 3, 1, 1)

    @staticmethod
    def _blocks(channels: int, out: int, side: int) -> nn.Sequential:
        return nn.Sequential(Block(channels, out, side), Block(out, out, side))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedded, kept = self.pe(t), []
        for linear, encoder, down in zip(self.pe_linears_en, self.encoders, self.downs, strict=True):
            x = encoder(x + linear(embedded)[:, :, None, None])
            kept.append(x)
            x = down(x)
        x = self.mid(x + self.pe_mid(embedded)[:, :, None, None])
        for linear, decoder, up in zip(self.pe_linears_de, self.decoders, self.ups, strict=True):
            skip, x = kept.pop(), up(x)
            before, after = (skip.shape[2] - x.shape[2]) // 2, -(-(skip.shape[2] - x.shape[2]) // 2)
            x = F.pad(x, (before, after, before, after))
            x = decoder(torch.cat([skip, x], dim=1) + linear(embedded)[:, :, None, None])
        return self.conv_out(x)
