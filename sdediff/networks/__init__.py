"""Networks ``(x, conditioning) -> tensor like x``. ``NETWORKS`` is the list: a new one is one file and one line.

An entry is called with the ``shape`` of an item and the parameters of the configuration. One with a parameter
``outputs`` can return several tensors like the state, side by side along the channels; on data of few levels it is
asked for one a level, and the exact layer is put on top (:class:`Levelled`). A dict ``config`` says which parameters
build a network again; :func:`sdediff.config.build` gives it to those that have none. The library's own come in sizes by
name (``SIZES``) and take a label and a vector of each item as conditions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from sdediff.networks.dit import DIT_SIZES, DiT
from sdediff.networks.levels import LevelHead, Levelled
from sdediff.networks.mlp import MLP, MLP_SIZES
from sdediff.networks.unet import UNET_SIZES, UNet
from sdediff.networks.zero import initialise

NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "unet": UNet, "dit": DiT}

SIZES: dict[str, Mapping[str, NamedTuple]] = {"mlp": MLP_SIZES, "unet": UNET_SIZES, "dit": DIT_SIZES}
"""Sizes of the networks that come in sizes, as values of their parameter ``size``."""


def parameter_count(name: str, size: str, shape: Sequence[int]) -> int:
    """Return the number of weights of a network of ``SIZES`` for items of a shape; nothing is allocated.

    >>> sdediff.networks.parameter_count("unet", "tiny", (1, 8, 8))
    610721
    """
    with torch.device("meta"):
        network = NETWORKS[name](tuple(shape), size=size)
    return sum(parameter.numel() for parameter in network.parameters())


def described(network: nn.Module, parameters: Mapping[str, Any]) -> nn.Module:
    """Return the network with the parameters that it was built from as ``config``, if it has none."""
    if not hasattr(network, "config"):
        network.config = dict(parameters)  # type: ignore[assignment]
    return network


def default_network(shape: Sequence[int]) -> str:
    """Return the name of the default network of a shape: the U-Net for series, images and volumes, else the MLP."""
    return "unet" if 2 <= len(shape) <= 4 and min(shape[1:]) >= 4 else "mlp"


__all__ = [
    "MLP",
    "NETWORKS",
    "SIZES",
    "DiT",
    "LevelHead",
    "Levelled",
    "UNet",
    "default_network",
    "described",
    "initialise",
    "parameter_count",
]
