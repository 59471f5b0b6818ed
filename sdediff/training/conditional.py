"""Configurations of conditional training: how many classes or features the network is to know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

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
    if data.train_condition is None and data.train_labels is None:
        raise ValueError(
            f"the data {data.info.name!r} have no labels to tell the network: images have a folder a "
            "class, of a table data.label=COLUMN is the class"
        )
    if isinstance(own, nn.Module):
        return config
    counts: dict[str, int] = {}
    for rows in _tensors(data):
        name, count = ("features", rows.shape[-1]) if rows.is_floating_point() else ("classes", 1 + int(rows.max()))
        counts[name] = max(count, counts.get(name, 0))
    counts = {name: count for name, count in counts.items() if name not in config.network.parameters}
    known = default_network(data.info.shape) if config.network.name == "auto" else config.network.name
    make: Callable[..., nn.Module] = choose(NETWORKS, known, "network") if own is None else own
    taken: Mapping[str, Any] = inspect.signature(make).parameters
    missing = counts.keys() - taken.keys()
    if data.train_condition is not None:
        missing |= data.train_condition.named.keys() - {"label", "vector"}
    if missing and own is None:
        raise ValueError(f"the network {known!r} takes no {', '.join(sorted(missing))}, which this condition needs")
    return config.updated({f"network.{name}": count for name, count in counts.items() if name in taken})


def _tensors(data: Dataset) -> Iterator[Tensor]:
    """Yield everything that the network is told of training and of held-out items."""
    for labels, condition in (
        (data.train_labels, data.train_condition),
        (data.held_out_labels, data.held_out_condition),
    ):
        yield from condition.tensors() if condition is not None else [] if labels is None else [labels]
