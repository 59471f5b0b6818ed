"""The held-out items of a run, stored with it: a data set that has changed since would hold out training items.

A fingerprint of the data stands beside them, and the names of the classes, so that a label can be named without reading
the data.
"""

from __future__ import annotations

import hashlib
import io
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from sdediff.data.arrays import members
from sdediff.data.dataset import Dataset
from sdediff.files import write

HELD_OUT = "held_out.npz"
"""Name of the file in the folder of a run."""

_MOST = 4096
"""Items of which a fingerprint is taken, at equal distances: sets larger than memory are not read as a whole."""


def save_held_out(data: Dataset, folder: Path) -> None:
    """Write which items are held out: the numbers of their rows, or the names of their files; and classes by name."""
    arrays = {"fingerprint": np.array(fingerprint(data))}
    arrays |= {} if data.held_out_ids is None else {"ids": data.held_out_ids}
    arrays |= {"classes": np.array(data.classes)} if data.classes else {}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # arrays alone
    write(folder / HELD_OUT, buffer.getvalue())


def fingerprint(data: Dataset) -> str:
    """Return the SHA-256 of items, labels and conditions, up to 4,096 of each part."""
    digest = hashlib.sha256()
    told = [each.tensors() for each in (data.train_condition, data.held_out_condition) if each is not None]
    for rows in (data.train, data.held_out, data.train_labels, data.held_out_labels, *chain(*told)):
        if rows is not None:
            some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _MOST), dtype=torch.float64).long()]
            digest.update(f"{rows.dtype} {tuple(rows.shape)}".encode())
            digest.update(some.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes ``0, 1, ...`` of a run's data; none where they have no names.

    Raises:
        ValueError: if the file is damaged.
    """
    stored = members(folder / HELD_OUT) if (folder / HELD_OUT).is_file() else {}
    return tuple(str(name) for name in stored["classes"]()) if "classes" in stored else ()


def check_held_out(data: Dataset, folder: Path) -> None:
    """Refuse data that are not those of a run, or hold out other items; a run that does not say which they are passes.

    Raises:
        ValueError: if they are others, or the file is damaged.
    """
    stored = members(folder / HELD_OUT) if (folder / HELD_OUT).is_file() else {}
    same = "fingerprint" not in stored or str(stored["fingerprint"]()) == fingerprint(data)  # older runs have none
    if "ids" in stored and data.held_out_ids is not None:
        same = same and np.array_equal(stored["ids"](), data.held_out_ids)
    if not same:
        raise ValueError(
            f"{data.info.name}: the data have changed since the run in {folder} held out a part of them: give the data "
            "of then, or other data by their path"
        )
