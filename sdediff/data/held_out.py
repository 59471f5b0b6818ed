"""The held-out items of a run, stored with it: a data set that has changed since would hold out training items.

The names of the classes stand beside them, so that a label can be named without reading the data.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from sdediff.data.arrays import members
from sdediff.data.dataset import Dataset
from sdediff.files import write

HELD_OUT = "held_out.npz"
"""Name of the file in the folder of a run."""


def save_held_out(data: Dataset, folder: Path) -> None:
    """Write which items are held out: the numbers of their rows, or the names of their files; and classes by name."""
    if data.held_out_ids is not None:
        buffer = io.BytesIO()
        arrays = {"ids": data.held_out_ids, **({"classes": np.array(data.classes)} if data.classes else {})}
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # arrays alone
        write(folder / HELD_OUT, buffer.getvalue())


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the classes ``0, 1, ...`` of a run's data; none where they have no names.

    Raises:
        ValueError: if the file is damaged.
    """
    stored = members(folder / HELD_OUT) if (folder / HELD_OUT).is_file() else {}
    return tuple(str(name) for name in stored["classes"]()) if "classes" in stored else ()


def check_held_out(data: Dataset, folder: Path) -> None:
    """Refuse data whose held-out items are not those of a run; a run that does not say which they are passes.

    Raises:
        ValueError: if they are others, or the file is damaged.
    """
    if data.held_out_ids is None or not (folder / HELD_OUT).is_file():
        return
    if not np.array_equal(members(folder / HELD_OUT)["ids"](), data.held_out_ids):
        raise ValueError(
            f"{data.info.name}: the data have changed since the run in {folder} held out a part of them: give the data "
            "of then, or other data by their path"
        )
