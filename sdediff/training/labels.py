"""What the network is told of each item in training: its class or a vector, withheld from some of the items."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.conditions import Condition
from sdediff.networks.told import Told
from sdediff.noise import NoiseSource, Stage


def conditions_of(told: Told, labels: Tensor | None, condition: Condition | None, items: int) -> Condition:
    """Return the condition of items, from their labels where it is not given.

    Raises:
        ValueError: for another number of rows, or labels that a network does not know; in one line.
    """
    for rows in [labels] if condition is None else condition.tensors():
        check_rows(told, rows, items)
    return Condition.of(told.condition(torch.as_tensor(labels))) if condition is None else condition


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
        rows: the condition, one row an item.
        told: what the network can be told, and what stands for none. Tensors without such a value are never withheld.
        seed: seed of the choice of what is withheld.
        dropout: share of the items whose condition is withheld.
    """

    def __init__(self, rows: Condition, told: Told, seed: int, dropout: float = 0.0) -> None:
        self.rows, self.told, self.seed, self.dropout = rows, told, seed, dropout

    def __call__(self, step: int, items: NDArray[np.int64]) -> Condition:
        """Return the conditions of the items of the whole batch of a step."""
        rows = self.rows.rows(items)
        if self.dropout == 0.0 or all(self.told.withheld(value) is None for value in rows.tensors()):
            return rows
        hidden = NoiseSource(self.seed, (len(items), 1)).uniform(step, Stage.BATCH_CONDITIONS)[:, 0] < self.dropout

        def withheld(value: Tensor) -> Tensor:
            null = self.told.withheld(value)
            return value if null is None else value.masked_fill(hidden.reshape(-1, *(1,) * (value.ndim - 1)), null)

        return rows.map(withheld)
