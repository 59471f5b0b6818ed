"""What the network is told of each item in training: class labels, some of them withheld, or other conditions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdediff.networks import Levelled

_STREAM = 3
"""The stream of the withheld labels; those of :mod:`~sdediff.training.batches` are lower."""


def class_count(network: object) -> int | None:
    """Return how many classes a network knows: the parameter ``classes`` it was built with, ``None`` without.

    The label of an item whose class is withheld is that number.
    """
    inner = network.network if isinstance(network, Levelled) else network
    config = vars(inner).get("config") if isinstance(inner, nn.Module) else None
    count = config.get("classes") if isinstance(config, Mapping) else None
    return count if isinstance(count, int) else None


class Labels:
    """Conditions of the training items; a function of ``(seed, step)``, as the batches are.

    Args:
        rows: the condition of each item: labels, int64 ``(n,)``, or floats ``(n, ...)``.
        seed: seed of the choice of withheld labels.
        withheld: label of an item whose class is withheld; ``None`` where none are.
        dropout: share of the items whose class is withheld.
    """

    def __init__(self, rows: Tensor, seed: int, *, withheld: int | None = None, dropout: float = 0.0) -> None:
        self.rows, self.seed, self.withheld, self.dropout = rows, seed, withheld, dropout

    def __call__(self, step: int, items: NDArray[np.int64]) -> Tensor:
        """Return the conditions of the items of the whole batch of a step, ``(B, ...)``."""
        rows = self.rows[torch.from_numpy(items)]
        if self.withheld is None or self.dropout == 0.0:
            return rows
        draws = np.random.default_rng((self.seed % (1 << 64), _STREAM, step)).random(len(items))
        return torch.where(torch.from_numpy(draws) < self.dropout, self.withheld, rows)


def check_labels(rows: Tensor | None, items: int, classes: int | None) -> None:
    """Refuse conditions that are not one row an item, and labels that the network does not know.

    Raises:
        ValueError: in one line.
    """
    if rows is None:
        raise ValueError(f"a network of {classes} classes needs labels, and the data have none")
    if len(rows) != items:
        raise ValueError(f"the condition has {len(rows)} rows for {items} items: give one row an item")
    if classes is None:
        return
    if rows.ndim != 1 or rows.is_floating_point():
        raise ValueError(f"class labels are whole numbers, one an item, not {tuple(rows.shape)} of {rows.dtype}")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= classes:
        raise ValueError(f"a network of {classes} classes knows labels 0 .. {classes - 1}; came {low} to {high}")
