"""Data sets of Hugging Face ``datasets``: folders that it saved, and sets by name (``pip install 'sdediff[hub]'``).

A folder is read from the disk alone. A name, ``hf:mnist`` or ``hf:owner/name``, is fetched by the package into its own
cache, because the user said so. A set of images is its column of images with its class labels; any other is a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdediff.data.arrays import Array, Members, readable
from sdediff.data.columns import Table
from sdediff.data.storage import empty
from sdediff.extras import extra

PREFIX = "hf:"

_PARTS = {"x_train": ("train",), "x_test": ("test", "validation")}
_LABELS_OF = {"x_train": "y_train", "x_test": "y_test"}


class Hub(NamedTuple):
    """Arrays or tables of both parts by name, and the names of the classes."""

    arrays: Members
    tables: Mapping[str, Callable[[], Table]]
    classes: tuple[str, ...]


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` saved a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_hub(source: str | Path, size: int | None) -> Hub:
    """Read a saved folder, or fetch a set by name.

    Args:
        source: the folder, or a name that begins with ``hf:``.
        size: side to which images are resized and cropped.

    Raises:
        ValueError: if it cannot be read, or ``datasets`` is not installed.
    """
    with extra("hub", f"{source}: reading it needs"):
        import datasets  # slow to import, and used nowhere else
    with readable(Path(source)):
        if isinstance(source, str):
            found = datasets.load_dataset(*source.removeprefix(PREFIX).split(":", 1))
        else:
            found = datasets.load_from_disk(str(source))
    splits = found if isinstance(found, dict) else {"train": found}
    parts = {
        part: next(splits[name] for name in names if name in splits)
        for part, names in _PARTS.items()
        if any(name in splits for name in names)
    }
    if not parts:
        raise ValueError(f"{source}: it has no split train, test or validation but {', '.join(splits)}")
    features = next(iter(parts.values())).features
    image = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None:
        return Hub({}, {part: partial(_table, rows) for part, rows in parts.items()}, ())
    arrays = {part: partial(_images, rows, image, size, str(source)) for part, rows in parts.items()}
    if label is None:
        return Hub(arrays, {}, ())
    labels = {_LABELS_OF[part]: partial(_column, rows, label) for part, rows in parts.items()}
    return Hub({**arrays, **labels}, {}, tuple(features[label].names))


def _column(rows: Any, name: str) -> Array:
    return np.asarray(rows.with_format("numpy")[name][:])


def _table(rows: Any) -> Table:
    return {name: _column(rows, name) for name in rows.column_names}


def _images(rows: Any, column: str, size: int | None, where: str) -> Array:
    """Decode a column of images, in two passes: sizes and kinds, then pixels."""
    from sdediff.data.images import (  # which needs Pillow
        KINDS,
        common_kind,
        header_of,
        no_bombs,
        pixels_of,
        warn_of_conversions,
    )

    with readable(Path(where)), no_bombs():
        headers = [header_of(row[column]) for row in rows]
        shapes = {header.shape for header in headers}
        if size is None and len(shapes) > 1:
            raise ValueError("its images have several sizes; data.size (--size 64) resizes and crops them")
        kind = common_kind({header.kind: f"image {i}" for i, header in enumerate(headers)}, size)
        shape = (size, size) if size is not None else shapes.pop()
        images = empty((len(headers), 3 if kind == "colour" else 1, *shape), KINDS[kind].dtype)
        conversions = []
        for i, row in enumerate(rows):
            images[i], applied = pixels_of(row[column], kind, size)
            conversions.append(applied)
    warn_of_conversions(where, len(headers), conversions)
    return images
