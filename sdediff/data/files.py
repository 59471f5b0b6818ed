"""Data from files: NumPy arrays and folders of images, checked before training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sdediff.data.arrays import Array, Members, members
from sdediff.data.dataset import Dataset, Items, join, split
from sdediff.data.entries import as_items, as_labels, info_of
from sdediff.data.images import read_folder
from sdediff.data.layout import AUTO, arrange
from sdediff.data.remarks import warn

LABELS = {"x_train": "y_train", "x_test": "y_test"}
"""Names of arrays of items, with the names of their labels; the labels of all other arrays are ``labels``."""

WRITTEN = ("samples", "levels", "latents")
"""Names of arrays that the commands write, whose axes are in order."""

_LABELS = "labels"


def load_file(path: Path, seed: int = 0, layout: str = AUTO) -> Dataset:
    """Read a ``.npy``, a ``.npz`` or a folder of images of one size, and split it into training and held-out parts.

    An ``.npz`` is read as ``x_train`` and, if present, ``x_test`` (else a fifth is held out), or as ``data`` or its
    only array; class labels as ``y_train`` and ``y_test``, or ``labels``. Arrays are ``(n, *item)``. Integers are
    levels ``0 .. K - 1`` (bytes always 256), placed on [-1, 1]; floats are taken as they are.

    Args:
        path: the file or folder.
        seed: seed of the hold-out.
        layout: layout of an item's axes, a name of :data:`~sdediff.data.layout.LAYOUTS`.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    name = path.stem or str(path)
    source = _source(path, layout)
    if not {"x_train", "x_test"} <= set(source.arrays):
        items = _read_items(source, ("x_train", "data"))
        return split(items, info_of(name, items.x), seed)
    train, held_out = (_read_items(source, (part,)) for part in ("x_train", "x_test"))
    if held_out.x.shape[1:] != train.x.shape[1:] or held_out.x.dtype != train.x.dtype:
        raise ValueError(
            f"{path}: x_train and x_test differ in kind: {tuple(train.x.shape)} {train.x.dtype}, "
            f"{tuple(held_out.x.shape)} {held_out.x.dtype}"
        )
    return join(train, held_out, info_of(name, train.x, held_out.x))


def load_items(
    path: Path,
    names: Sequence[str] = ("x_test", "data"),
    layout: str | None = AUTO,
    shape: Sequence[int] | None = None,
) -> Items:
    """Read all items of a file or folder, unsplit and in their order.

    Args:
        path: the file or folder.
        names: names of the arrays of an ``.npz`` to read, in order of preference; else its only one.
        layout: layout of an item's axes; ``None`` for arrays whose axes are in order.
        shape: shape of an item whose axes are in order, if known: an array of that shape stays as it is.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
        ValueError: if it cannot be read or used, in one line.
    """
    return _read_items(_source(path, layout), names, None if shape is None else tuple(shape))


class _Source(NamedTuple):
    """The arrays at a path by name, the layout of their items (``None``: axes in order), and names of classes."""

    path: Path
    arrays: Members
    layout: str | None
    classes: tuple[str, ...] = ()


def _source(path: Path, layout: str | None) -> _Source:
    if path.is_dir():
        folder = read_folder(path)
        found = {"data": folder.images} | ({} if folder.labels is None else {_LABELS: folder.labels})
        return _Source(path, {name: partial(_same, array) for name, array in found.items()}, None, folder.classes)
    if not path.is_file():
        raise FileNotFoundError(f"no data at {path}")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"{path}: data files are .npy, .npz or a folder of images")
    return _Source(path, members(path), layout)


def _same(array: Array) -> Array:
    return array


def _read_items(source: _Source, names: Sequence[str], shape: tuple[int, ...] | None = None) -> Items:
    """Read the first of the named arrays, or the only one, with its labels."""
    found = [name for name in source.arrays if name not in (*LABELS.values(), _LABELS)]
    name = next((name for name in names if name in found), found[0] if len(found) == 1 else None)
    if name is None:
        others = ", ".join(source.arrays) or "none"
        raise ValueError(f"{source.path} must hold one array, or {' or '.join(names)}; it holds {others}")
    x, ordered = as_items(source.arrays[name](), str(source.path)), source.layout is None or name in WRITTEN
    if not (ordered or (source.layout == AUTO and x.shape[1:] == shape)):
        x = arrange(x, str(source.layout), str(source.path)).contiguous()
    return Items(x, _labels(source, LABELS.get(name, _LABELS), len(x)), source.classes)


def _labels(source: _Source, name: str, count: int) -> Tensor | None:
    """Read labels, if there are any; leave out arrays that are no labels, with a warning."""
    if name not in source.arrays:
        return None
    try:
        return as_labels(source.arrays[name](), count, f"{source.path}, {name}")
    except ValueError as error:
        warn(f"{error}; they are left out")
        return None
