"""Networks ``(x, conditioning) -> tensor like x``. ``NETWORKS`` is the list: a new one is one file and one line.

An entry is called with the ``shape`` of an item and the parameters of the configuration. One with a parameter
``outputs`` can return several tensors like the state, side by side along the channels; on data of few levels it is
asked for one a level, and the exact layer is put on top (:class:`Levelled`). A dict ``config`` says which parameters
build a network again; :func:`sdediff.config.build` gives it to those that have none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sdediff.networks.levels import LevelHead, Levelled
from sdediff.networks.mlp import MLP
from sdediff.networks.unet import UNet
from sdediff.networks.zero import initialise

NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": MLP, "unet": UNet}


def described(network: nn.Module, parameters: Mapping[str, Any]) -> nn.Module:
    """Return the network with the parameters that it was built from as ``config``, if it has none."""
    if not hasattr(network, "config"):
        network.config = dict(parameters)  # type: ignore[assignment]
    return network


def default_network(shape: Sequence[int]) -> str:
    """Return the name of the default network for items of a shape: the U-Net for images, else the perceptron."""
    return "unet" if len(shape) == 3 and min(shape[1:]) >= 4 else "mlp"


__all__ = ["MLP", "NETWORKS", "LevelHead", "Levelled", "UNet", "default_network", "described", "initialise"]
