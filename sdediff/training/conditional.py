"""Configurations of conditional training: how many classes or features the network is to know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sdediff.config import Config
from sdediff.data import Dataset
from sdediff.foreign import OwnNetwork
from sdediff.networks import NETWORKS, default_network
from sdediff.numerics import choose


def conditional_config(config: Config, own: OwnNetwork | None, data: Dataset) -> Config:
    """Return the configuration with the number of classes or features of the condition, where the network takes it.

    Raises:
        ValueError: if the data have no labels, or a network of the library takes no such condition.
    """
    parts = [rows for rows in (data.train_labels, data.held_out_labels) if rows is not None]
    if not parts:
        raise ValueError(f"the data {data.info.name!r} have no labels to tell the network")
    floats = parts[0].is_floating_point()
    name, count = ("features", parts[0].shape[-1]) if floats else ("classes", 1 + max(int(p.max()) for p in parts))
    if name in config.network.parameters or isinstance(own, nn.Module):
        return config
    known = default_network(data.info.shape) if config.network.name == "auto" else config.network.name
    make: Callable[..., nn.Module] = choose(NETWORKS, known, "network") if own is None else own
    taken: Mapping[str, Any] = inspect.signature(make).parameters
    if name in taken:
        return config.updated({f"network.{name}": count})
    if own is None:
        raise ValueError(f"the network {known!r} takes no {name}, which this condition needs")
    return config
