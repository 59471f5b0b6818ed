"""What lies at a path: NumPy and IDX files, tables, folders of images, CIFAR-10's batches, saved data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdediff.data import tables
from sdediff.data.arrays import Array, Members, members
from sdediff.data.cifar import cifar_members, is_cifar
from sdediff.data.columns import Table
from sdediff.data.dataset import Ids
from sdediff.data.huggingface import PREFIX, is_saved, read_hub
from sdediff.data.idx import idx_files, idx_members, is_idx
from sdediff.data.reading import Reading

LABELS = {"x_train": "y_train", "x_test": "y_test"}
"""Names of arrays of items, with the names of their labels; the labels of all other arrays are ``labels``."""

OTHER_LABELS, TEST = "labels", "test_mask"
"""Names of the labels of other arrays, and of the mask of the items that are held out."""

_PICKLE = b"\x80"


class Source(NamedTuple):
    """Arrays and tables at a path by name, read when they are used.

    Attributes:
        path: the path, for messages.
        arrays: arrays of items, of labels, and a mask of the items that are held out.
        ordered: whether the axes of arrays are in order.
        classes: names of classes.
        tables: tables of named columns.
        files: name of the file of each item.
        pictures: whether items are decoded from image files, which can be resized.
    """

    path: Path
    arrays: Members
    ordered: bool = False
    classes: tuple[str, ...] = ()
    tables: Mapping[str, Callable[[], Table]] = {}
    files: Ids | None = None
    pictures: bool = False


def open_source(path: Path, reading: Reading) -> Source:
    """Return what lies at a path.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is of no kind that can be read, damaged, or its reader is not installed; in one line.
    """
    source = _open(path, reading)
    if reading.size is not None and not source.pictures:
        raise ValueError(f"{path}: data.size (--size) is of image files; arrays and tables are taken as they are")
    return source


def _open(path: Path, reading: Reading) -> Source:
    if str(path).startswith(PREFIX):
        return _hub(str(path), path, reading)
    if path.is_dir():
        return _folder(path, reading)
    if not path.is_file():
        raise FileNotFoundError(f"no data at {path}")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return Source(path, members(path))
    if suffix in tables.SUFFIXES:
        return Source(path, {}, tables={"data": partial(tables.read_table, path)})
    if is_idx(path):
        return Source(path, idx_members(path))
    with path.open("rb") as file:
        if file.read(1) == _PICKLE:
            raise ValueError(f"{path} is a pickle, which could execute anything: save its arrays by numpy.savez")
    raise ValueError(
        f"{path}: data are .npy, .npz, .csv, .tsv, .parquet and IDX files, folders of images, of IDX files, of "
        f"CIFAR-10's binary batches, or saved by datasets"
    )


def _folder(path: Path, reading: Reading) -> Source:
    if is_saved(path):
        return _hub(path, path, reading)
    if is_cifar(path):
        arrays, classes = cifar_members(path)
        return Source(path, arrays, ordered=True, classes=classes)
    if idx_files(path):
        return Source(path, idx_members(path))
    from sdediff.data.folders import read_folder  # which needs Pillow

    folder = read_folder(path, reading.size, reading.damaged)
    found = {"data": folder.images} | ({} if folder.labels is None else {OTHER_LABELS: folder.labels})
    arrays = {name: partial(_same, array) for name, array in found.items()}
    return Source(path, arrays, ordered=True, classes=folder.classes, files=folder.files, pictures=True)


def _hub(source: str | Path, path: Path, reading: Reading) -> Source:
    hub = read_hub(source, reading.size)
    return Source(path, hub.arrays, ordered=True, classes=hub.classes, tables=hub.tables, pictures=not hub.tables)


def _same(array: Array) -> Array:
    return array
