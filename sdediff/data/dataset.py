"""What every source of data returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.types import DataInfo

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data split once into a part to learn from and a part to judge by.

    Attributes:
        train: ``(n, *shape)``; integer levels, or float32 for continuous data.
        held_out: the same for the rest.
        info: shape, levels, range and name.
        train_labels: ``(n,)`` class indices where there are any.
        held_out_labels: the same for the rest.
    """

    train: Tensor
    held_out: Tensor
    info: DataInfo
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None


def split(data: Tensor, info: DataInfo, seed: int, share: float = HELD_OUT_SHARE) -> Dataset:
    """Hold a random ``share`` of the items out, at least one; ``seed`` chooses which.

    Raises:
        ValueError: if there are fewer than two items.
    """
    if len(data) < 2:
        raise ValueError(f"{info.name or 'the data'}: a hold-out needs at least 2 items, not {len(data)}")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    count = max(1, round(share * len(data)))
    return Dataset(train=data[order[count:]], held_out=data[order[:count]], info=info)
