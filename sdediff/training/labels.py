"""What the network is told of each item in training: its class or a vector, withheld from some of the items."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.networks.told import Told
from sdediff.noise import NoiseSource, Stage


def check_rows(told: Told, rows: Tensor | None, items: int) -> None:
    """Refuse conditions that are not one row an item, and labels that a network does not know.

    Raises:
        ValueError: in one line.
    """
    if rows is None:
        raise ValueError(f"a network of {told.classes} classes needs labels, and the data have none")
    if len(rows) != items:
        raise ValueError(f"the condition has {len(rows)} rows for {items} items: give one row an item")
    if told.classes is None or (rows.is_floating_point() and told.features is not None):
        return
    if rows.ndim != 1 or rows.is_floating_point():
        raise ValueError(f"class labels are whole numbers, one an item, not {tuple(rows.shape)} of {rows.dtype}")
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= told.classes:
        raise ValueError(
            f"a network of {told.classes} classes knows labels 0 .. {told.classes - 1}; came {low} to {high}"
        )


class Labels:
    """Conditions of the training items; a function of ``(seed, step)``, as the batches are.

    Args:
        rows: the condition of each item: labels, int64 ``(n,)``, or floats ``(n, ...)``.
        seed: seed of the choice of what is withheld.
        withheld: value of a row that is withheld; ``None`` where none are.
        dropout: share of the items whose row is withheld.
    """

    def __init__(self, rows: Tensor, seed: int, *, withheld: float | None = None, dropout: float = 0.0) -> None:
        self.rows, self.seed, self.withheld, self.dropout = rows, seed, withheld, dropout

    def __call__(self, step: int, items: NDArray[np.int64]) -> Tensor:
        """Return the conditions of the items of the whole batch of a step, ``(B, ...)``."""
        rows = self.rows[torch.from_numpy(items)]
        if self.withheld is None or self.dropout == 0.0:
            return rows
        draws = NoiseSource(self.seed, (len(items), *(1,) * (rows.ndim - 1))).uniform(step, Stage.BATCH_CONDITIONS)
        hidden = draws < self.dropout
        return rows.masked_fill(hidden, self.withheld)
