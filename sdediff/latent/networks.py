"""Encoders and decoders: linear maps, a residual perceptron, a residual convolutional network for images.

``CODERS`` lists the pairs; each is built from the shape of an item and of its codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from sdediff.networks.blocks import group_norm
from sdediff.networks.zero import zeroed


class _Residual(nn.Module):
    """Layers whose output is added to their input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, ...)`` to the same shape."""
        result: Tensor = x + self.layers(x)
        return result


def _dense(width: int, dropout: float) -> nn.Module:
    return _Residual(
        nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width),
        nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Linear(width, width)),
    )  # fmt: skip


def _perceptron(entries: int, width: int, blocks: int, exits: int, dropout: float) -> nn.Sequential:
    body = [_dense(width, dropout) for _ in range(blocks)]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(entries, width), *body, nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, exits)
    )


class LinearEncoder(nn.Module):
    """Linear map from data to codes, with which a VAE is probabilistic principal component analysis.

    Args:
        shape: shape of an item.
        code: shape of its codes.
        outputs: number of tensors like the codes: 2 for the mean and the log-variance of a VAE.
    """

    def __init__(self, shape: Sequence[int], code: Sequence[int], *, outputs: int = 2) -> None:
        super().__init__()
        self.config = {"shape": list(shape), "code": list(code), "outputs": outputs}
        self.exit = (outputs * code[0], *code[1:])
        self.layer = nn.Linear(math.prod(shape), math.prod(self.exit))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *shape)`` to ``(B, outputs * C, ...)`` of codes ``(C, ...)``."""
        result: Tensor = self.layer(x.flatten(1))
        return result.reshape(len(x), *self.exit)


class LinearDecoder(LinearEncoder):
    """Linear map from codes to the outputs of an observation."""

    def __init__(self, shape: Sequence[int], code: Sequence[int], *, outputs: int = 1) -> None:
        super().__init__(code, shape, outputs=outputs)
        self.config |= {"shape": list(shape), "code": list(code)}


class MLPEncoder(nn.Module):
    """Residual perceptron from data of any shape to codes.

    Args:
        shape: shape of an item.
        code: shape of its codes.
        outputs: number of tensors like the codes: 2 for the mean and the log-variance of a VAE.
        width: width of the hidden layers.
        blocks: number of residual blocks.
        dropout: probability of the dropout.
    """

    def __init__(
        self,
        shape: Sequence[int],
        code: Sequence[int],
        *,
        outputs: int = 2,
        width: int = 256,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {
            "shape": list(shape), "code": list(code), "outputs": outputs,
            "width": width, "blocks": blocks, "dropout": dropout,
        }  # fmt: skip
        self.exit = (outputs * code[0], *code[1:])
        self.layers = _perceptron(math.prod(shape), width, blocks, math.prod(self.exit), dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, *shape)`` to ``(B, outputs * C, ...)`` of codes ``(C, ...)``."""
        result: Tensor = self.layers(x)
        return result.reshape(len(x), *self.exit)


class MLPDecoder(MLPEncoder):
    """Residual perceptron from codes to the outputs of an observation; the same network with the ends exchanged."""

    def __init__(
        self,
        shape: Sequence[int],
        code: Sequence[int],
        *,
        outputs: int = 1,
        width: int = 256,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(code, shape, outputs=outputs, width=width, blocks=blocks, dropout=dropout)
        self.config |= {"shape": list(shape), "code": list(code)}


def _convolutional(channels: int, dropout: float) -> nn.Module:
    return _Residual(
        group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        group_norm(channels), nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Conv2d(channels, channels, 3, padding=1)),
    )  # fmt: skip


class _Maps(NamedTuple):
    """Sizes of the maps of a convolutional coder: ``channels[k]`` channels of ``sides[k]`` pixels."""

    channels: list[int]
    sides: list[tuple[int, int]]


def _maps(shape: Sequence[int], width: int, halvings: int, patch: int) -> _Maps:
    """Return the sizes of the maps.

    Raises:
        ValueError: for items that are no images, or are halved too often.
    """
    if len(shape) != 3:
        raise ValueError(f"the convolutional coder is for images (C, H, W), not items {tuple(shape)}")
    if patch < 1 or shape[1] % patch or shape[2] % patch:
        raise ValueError(f"images {tuple(shape)} cannot be cut into patches of {patch} x {patch}")
    sides = [(shape[1] // patch, shape[2] // patch)]
    if halvings < 0 or min(sides[0]) >> halvings < 1:
        raise ValueError(f"maps of {sides[0]} pixels cannot be halved {halvings} times")
    for _ in range(halvings):
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
    return _Maps([width * min(1 << level, 4) for level in range(halvings + 1)], sides)


class ConvEncoder(nn.Module):
    """Residual convolutional network from images to codes, each level at half the size of the one before.

    Codes ``(k,)`` are a linear map of the last level; codes ``(C, h, w)`` of its size are a convolution of it.

    Args:
        shape: shape of an image, ``(C, H, W)``.
        code: shape of its codes.
        outputs: number of tensors like the codes.
        width: channels of the first level; the others have twice, then four times as many.
        blocks: residual blocks a level.
        halvings: number of halvings of the size.
        patch: side of the patches that are the pixels of the first level: 2 for a quarter of the cost.
        dropout: probability of the dropout.

    Raises:
        ValueError: for items that are no images, or codes of another size than the last level.
    """

    def __init__(
        self,
        shape: Sequence[int],
        code: Sequence[int],
        *,
        outputs: int = 2,
        width: int = 32,
        blocks: int = 1,
        halvings: int = 2,
        patch: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {
            "shape": list(shape), "code": list(code), "outputs": outputs,
            "width": width, "blocks": blocks, "halvings": halvings, "patch": patch, "dropout": dropout,
        }  # fmt: skip
        channels, sides = maps = _maps(shape, width, halvings, patch)
        layers: list[nn.Module] = [
            nn.Conv2d(shape[0], channels[0], 3, padding=1)
            if patch == 1
            else nn.Conv2d(shape[0], channels[0], patch, patch)
        ]
        for level, count in enumerate(channels):
            if level:
                layers.append(nn.Conv2d(channels[level - 1], count, 3, stride=2, padding=1))
            layers += [_convolutional(count, dropout) for _ in range(blocks)]
        layers += [group_norm(channels[-1]), nn.SiLU()]
        self.exit = (outputs * code[0], *code[1:])
        if len(code) == 1:
            layers += [nn.Flatten(), nn.Linear(channels[-1] * math.prod(sides[-1]), self.exit[0])]
        else:
            _check_code(code, maps)
            layers.append(nn.Conv2d(channels[-1], self.exit[0], 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, *shape)`` to ``(B, outputs * C, ...)`` of codes ``(C, ...)``."""
        result: Tensor = self.layers(x)
        return result


class ConvDecoder(nn.Module):
    """Residual convolutional network from codes to the outputs of an observation: the encoder's levels backwards."""

    def __init__(
        self,
        shape: Sequence[int],
        code: Sequence[int],
        *,
        outputs: int = 1,
        width: int = 32,
        blocks: int = 1,
        halvings: int = 2,
        patch: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {
            "shape": list(shape), "code": list(code), "outputs": outputs,
            "width": width, "blocks": blocks, "halvings": halvings, "patch": patch, "dropout": dropout,
        }  # fmt: skip
        channels, sides = maps = _maps(shape, width, halvings, patch)
        layers: list[nn.Module] = []
        if len(code) == 1:
            layers += [
                nn.Linear(code[0], channels[-1] * math.prod(sides[-1])),
                nn.Unflatten(1, (channels[-1], *sides[-1])),
            ]
        else:
            _check_code(code, maps)
            layers.append(nn.Conv2d(code[0], channels[-1], 1))
        for level in reversed(range(len(channels))):
            layers += [_convolutional(channels[level], dropout) for _ in range(blocks)]
            if level:
                layers += [
                    nn.Upsample(size=sides[level - 1]),
                    nn.Conv2d(channels[level], channels[level - 1], 3, padding=1),
                ]
        exits = outputs * shape[0] * patch**2
        layers += [group_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], exits, 3, padding=1)]
        layers.append(nn.PixelShuffle(patch))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map codes ``(B, C, ...)`` to ``(B, outputs * C, H, W)``."""
        result: Tensor = self.layers(z)
        return result


def _check_code(code: Sequence[int], maps: _Maps) -> None:
    if tuple(code[1:]) != maps.sides[-1]:
        raise ValueError(f"codes {tuple(code)} are not of the size of the last level, {maps.sides[-1]}")


class Coder(NamedTuple):
    """A pair of classes of networks."""

    encoder: type[nn.Module]
    decoder: type[nn.Module]


CODERS: dict[str, Coder] = {
    "linear": Coder(LinearEncoder, LinearDecoder),
    "mlp": Coder(MLPEncoder, MLPDecoder),
    "conv": Coder(ConvEncoder, ConvDecoder),
}
"""Pairs of encoder and decoder by name."""


def default_coder(shape: Sequence[int]) -> str:
    """Return the name of the pair for items of a shape: the convolutional one for images of 16 pixels and more."""
    return "conv" if len(shape) == 3 and min(shape[1:]) >= 16 else "mlp"
