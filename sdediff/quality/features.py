"""Features of items, in which samples and data are compared: spaces of the library's own, and a network by its file.

``FEATURES`` is the table of the library's. An entry is a function of the data, items ``(m, *shape)`` as floats, that
returns a map from items to features ``(B, D)``; its docstring says what the features are.

- ``values``: for rows. Every column is brought to mean 0 and deviation 1 of the data; items with channels are by
  channel, so that no pixel that is nearly constant outweighs all others.
- ``convolutions``: for series, images and volumes. A network of fixed random weights, as Naeem et al. (2020) recommend
  where Inception's are of another world: three convolutions of 3 pixels with 16, 32 and 64 filters, each followed by
  a rectifier and an average over 2 pixels; the features are the 112 means of the filters' answers over the item. Their
  scale has no meaning of its own. Weights are the same in every version: figures of one kind of data can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sdediff.numerics import flatten
from sdediff.quality.resampling import Stream, generator

FILTERS = (16, 32, 64)
"""Numbers of filters of the layers of ``convolutions``."""

FeatureFunction = Callable[[Tensor], Tensor]
"""Function from items ``(B, *shape)`` to features ``(B, D)``."""


def values(data: Tensor) -> FeatureFunction:
    """Return the values themselves, in deviations of the data by column, or by channel."""
    scale = _Scale.of(data)
    return lambda x: flatten(scale(x))


def convolutions(data: Tensor) -> FeatureFunction:
    """Return means of the answers of random convolutions, 16 + 32 + 64 of fixed seed."""
    scale, layers, axes = _Scale.of(data), _layers(data.shape[1], data.ndim - 2), data.ndim - 2

    def answers(x: Tensor) -> Tensor:
        x, found = scale(x), []
        for layer in layers:
            x = _CONVOLUTIONS[axes](_padded(x, axes), layer.to(x)).relu()
            found.append(x.flatten(2).mean(dim=2))
            x = _POOLS[axes](x, [min(2, size) for size in x.shape[2:]], ceil_mode=True)
        return torch.cat(found, dim=1)

    return answers


FEATURES: dict[str, Callable[[Tensor], FeatureFunction]] = {"values": values, "convolutions": convolutions}
"""Feature spaces by name."""

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def default_features(shape: tuple[int, ...]) -> str:
    """Return the name of the features for items of a shape: convolutions where they have channels and 1 to 3 axes."""
    return "convolutions" if 2 <= len(shape) <= 4 else "values"


class _Scale(NamedTuple):
    """Mean and deviation of the data, by column of rows and else by channel, in float64, of shape ``(C, 1, ...)``."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(data: Tensor) -> _Scale:
        """Measure those of data ``(m, *shape)``; what is constant has the deviation 1."""
        others = [0, *range(2, data.ndim)]
        deviation, mean = torch.std_mean(data.double(), dim=others, keepdim=True)
        return _Scale(mean[0], torch.where(deviation > 0.0, deviation, 1.0)[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Return items in deviations from the mean."""
        return (x - self.mean.to(x)) / self.deviation.to(x)


def _layers(channels: int, axes: int) -> list[Tensor]:
    """Draw the weights of the layers, of variance 2 / inputs (He et al. 2015)."""
    layers, rng = [], generator(0, Stream.FILTERS, channels, axes)
    for filters in FILTERS:
        weights = rng.standard_normal((filters, channels, *(3,) * axes))
        layers.append(torch.from_numpy(weights * math.sqrt(2.0 / (channels * 3**axes))).float())
        channels = filters
    return layers


def _padded(x: Tensor, axes: int) -> Tensor:
    """Repeat the border, so that it is no edge."""
    return functional.pad(x, (1, 1) * axes, mode="replicate")
