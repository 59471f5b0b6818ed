"""Features by a TorchScript network in a file, as Inception-v3 for FID.

A TorchScript file is a program. It is run by torch's own interpreter and cannot call Python, but its operations can
read files and fill the memory: load only what you trust. Nothing is loaded that the user did not name.

Two kinds are known by the arguments of their ``forward``. With ``return_features``, as NVIDIA's conversion of the
network of 2015, it gets ``uint8`` images of their own size. Any other is the bare network: it gets floats on
``pixels``, resized as TensorFlow did for that network (bilinear, pixel k of 299 at ``k W / 299``). Grey images are
three times the same. Features are ``(B, D)`` or ``(B, D, 1, 1)``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff.numerics import flatten
from sdediff.quality.features import FeatureFunction

SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")
"""Suffixes of files of networks."""


@dataclass(frozen=True)
class Scripted:
    """A TorchScript network of features.

    Attributes:
        path: the file.
        pixels: values of black and white that a bare network takes.
        size: width and height that a bare network takes.
    """

    path: Path
    pixels: tuple[float, float] = (-1.0, 1.0)
    size: int = 299

    def load(self, to_bytes: Callable[[Tensor], Tensor], device: torch.device) -> FeatureFunction:
        """Load the network.

        Args:
            to_bytes: function from items ``(B, *shape)`` to ``uint8`` of 0 .. 255.
            device: device that it runs on.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no TorchScript.
        """
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the format of the published networks, old as it is
            try:
                network: Any = torch.jit.load(str(self.path), map_location=device)  # type: ignore[no-untyped-call]
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{self.path} is no TorchScript file: {str(error).splitlines()[0]}") from None
        network.eval()
        whole = any(argument.name == "return_features" for argument in network.forward.schema.arguments)
        (low, high), options = self.pixels, {"return_features": True} if whole else {}

        def features(x: Tensor) -> Tensor:
            images = coloured(to_bytes(x))
            inputs = images if whole else resized(images * ((high - low) / 255.0) + low, self.size)
            result = network(inputs, **options)
            if not isinstance(result, Tensor):
                raise ValueError(f"{self.path} must return one tensor of features, not a {type(result).__name__}")
            return flatten(result)

        return features


def coloured(x: Tensor) -> Tensor:
    """Return images ``(B, 3, H, W)`` of images ``(B, C, H, W)`` with one or three channels.

    Raises:
        ValueError: for items that are no such images.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"a network's features are of grey or RGB images, not of items of shape {tuple(x.shape[1:])}")
    return x.expand(-1, 3, -1, -1)


def resized(x: Tensor, size: int) -> Tensor:
    """Resize images ``(B, C, H, W)`` to a square: pixel k is the linear interpolation at ``k W / size``."""
    for axis in (2, 3):
        at = torch.arange(size, device=x.device) * (x.shape[axis] / size)
        first = at.floor().long()
        second = (first + 1).clamp_max(x.shape[axis] - 1)
        weight = (at - first).to(x).reshape([-1 if dim == axis else 1 for dim in range(4)])
        x = torch.lerp(x.index_select(axis, first), x.index_select(axis, second), weight)
    return x
