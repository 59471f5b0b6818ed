"""Data sets: items of data with their labels, and their split into training and held-out parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.conditions import Condition
from sdediff.data.layout import describe_items
from sdediff.data.storage import take
from sdediff.data.units import has_units
from sdediff.types import DataInfo, brief

HELD_OUT_SHARE = 0.2

Ids = NDArray[np.generic]
"""Numbers of rows, or names of files."""


class Items(NamedTuple):
    """Items of data as a file has them.

    Attributes:
        x: items ``(n, *shape)``; integer levels, or float32 for continuous data.
        labels: the class of each, int64 ``(n,)``, where the file has labels.
        classes: names of the classes ``0, 1, ...``, where they have names.
        ids: what each item is in its source, ``(n,)``: the number of its row, from 0 on, or the name of its file.
        columns: names of the columns of rows, where they have names.
        notes: lines on what was inferred about the items.
    """

    x: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    ids: Ids | None = None
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Show shapes and means."""
        return brief(self)

    def part(self, index: Tensor) -> Items:
        """Return the items of an index ``(k,)``, with their labels and what they are in their source."""
        labels = None if self.labels is None else self.labels[index]
        ids = None if self.ids is None else self.ids[index.numpy()]
        return self._replace(x=take(self.x, index), labels=labels, ids=ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data split into a training part and a held-out part.

    Attributes:
        train: training items ``(n, *shape)``; integer levels as in the file, or float32 in units of the data.
        held_out: held-out items, likewise.
        info: shape, levels, range, name and units.
        train_labels: the class of each item of ``train``, int64 ``(n,)``, where the source has labels.
        held_out_labels: the class of each item of ``held_out``, likewise.
        classes: names of the classes ``0, 1, ...``, where they have names.
        train_ids: what each item of ``train`` is in its source, ``(n,)``: the number of its row in a file, from 0 on,
            or the name of its file in a folder; ``None`` where nobody says.
        held_out_ids: what each item of ``held_out`` is, likewise.
        columns: names of the columns of rows, where they have names.
        notes: lines on what was inferred about the items, such as what kind of data they are.
        train_condition: what a network is told of each item of ``train``, one row an item, where it is no label.
        held_out_condition: what it is told of each item of ``held_out``, likewise.
    """

    train: Tensor
    held_out: Tensor
    info: DataInfo
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    train_ids: Ids | None = None
    held_out_ids: Ids | None = None
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    train_condition: Condition | None = None
    held_out_condition: Condition | None = None

    def __str__(self) -> str:
        """Return one line, for example ``256 images 1x8x8, grey, 17 levels; 64 held out; 10 classes``."""
        parts = [describe_items(self.train, self.info), f"{len(self.held_out):,} held out"]
        if self.train_labels is not None:
            names = f" ({', '.join(self.classes)})" * bool(self.classes)
            parts.append(f"{len(self.classes) or 1 + int(self.train_labels.max())} classes{names}")
        if has_units(self.info):
            parts.append("columns standardised inside")
        return "; ".join(parts)

    __repr__ = brief


def divide(items: Items, name: str, seed: int, share: float = HELD_OUT_SHARE) -> tuple[Items, Items]:
    """Return training items and held-out ones: a random ``share``, at least one; ``seed`` chooses which.

    Items that are not called anything are called by their numbers.

    Raises:
        ValueError: if there are fewer than two items.
    """
    if len(items.x) < 2:
        raise ValueError(f"{name or 'the data'}: a hold-out needs at least 2 items, not {len(items.x)}")
    if items.ids is None:
        items = items._replace(ids=np.arange(len(items.x)))
    order = torch.randperm(len(items.x), generator=torch.Generator().manual_seed(seed))
    count = max(1, round(share * len(items.x)))
    return items.part(order[count:]), items.part(order[:count])


def split(items: Items, info: DataInfo, seed: int, share: float = HELD_OUT_SHARE) -> Dataset:
    """Hold a random ``share`` of the items out, see :func:`divide`."""
    return join(*divide(items, info.name, seed, share), info)


def join(train: Items, held_out: Items, info: DataInfo) -> Dataset:
    """Return two parts as one data set."""
    return Dataset(
        train.x,
        held_out.x,
        info,
        train.labels,
        held_out.labels,
        train.classes,
        train.ids,
        held_out.ids,
        train.columns,
        train.notes,
    )
