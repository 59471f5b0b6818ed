"""What a network can be told of each item: its class or a vector, and what stands for none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdediff.conditions import Condition, ConditionLike
from sdediff.networks.levels import Levelled


class Told(NamedTuple):
    """Conditions that a network takes.

    Attributes:
        classes: number of classes, its parameter ``classes``; that number is the label of a class that is withheld.
        features: number of features of a vector, its parameter ``features``; NaN stands for a vector that is withheld.

    >>> Told.by(sdediff.networks.MLP((2,), classes=3)).null(sdediff.conditions.Condition.of(1)).positional
    (tensor([3]),)
    """

    classes: int | None = None
    features: int | None = None

    @classmethod
    def by(cls, network: object) -> Told:
        """Return what a network can be told, by the parameters it was built from."""
        inner = network.network if isinstance(network, Levelled) else network
        config = vars(inner).get("config") if isinstance(inner, nn.Module) else None
        found = [config.get(name) if isinstance(config, Mapping) else None for name in cls._fields]
        return cls(*(value if isinstance(value, int) else None for value in found))

    def condition(self, rows: Tensor) -> ConditionLike:
        """Return rows ``(B, ...)`` as the network's argument: ``vector`` by its name, everything else as the first."""
        return {"vector": rows} if self.features is not None and rows.is_floating_point() else rows

    def withheld(self, rows: Tensor) -> float | None:
        """Return the value of a row that is withheld, ``None`` if the network has none."""
        if rows.is_floating_point():
            return None if self.features is None else math.nan
        return self.classes

    def null(self, condition: Condition) -> Condition:
        """Return the condition that stands for none, one row for all items, in place of another.

        Raises:
            ValueError: for a tensor that the network has no such value for.
        """

        def row(value: Tensor) -> Tensor:
            withheld = self.withheld(value)
            if withheld is None:
                kind = "vectors" if value.is_floating_point() else "labels"
                raise ValueError(f"the network knows no null condition for {kind}: guidance needs null=...")
            return torch.full_like(value[:1], withheld)

        return condition.map(row)

    def check(self, condition: Condition) -> None:
        """Refuse labels that the network does not know, where they are on the CPU: elsewhere it would wait for them.

        Raises:
            ValueError: naming the labels that it knows.
        """
        label = condition.named.get("label", condition.positional[0] if condition.positional else None)
        if self.classes is None or label is None or label.is_floating_point() or label.device.type != "cpu":
            return
        low, high = (int(end) for end in label.aminmax()) if label.numel() else (0, 0)
        if low < 0 or high > self.classes:
            came = f"{low}" if low == high else f"{low} to {high}"
            raise ValueError(f"labels are 0 to {self.classes - 1}, or {self.classes} for none; came {came}")
