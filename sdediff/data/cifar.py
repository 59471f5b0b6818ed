"""CIFAR-10 in its binary version: records of a label and 3 x 32 x 32 bytes (Krizhevsky 2009).

The version for Python is a pickle, which can execute anything, and is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from sdediff.data.arrays import Array, Members, readable

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_TRAIN, _TEST, _NAMES = "data_batch_*.bin", "test_batch.bin", "batches.meta.txt"


def is_cifar(folder: Path) -> bool:
    """Return whether a folder holds CIFAR-10's batches.

    Raises:
        ValueError: if they are pickles.
    """
    if any(folder.glob(_TRAIN)):
        return True
    if (folder / "data_batch_1").is_file():
        raise ValueError(
            f"{folder} holds pickles, which could execute anything: take the binary version of CIFAR-10 "
            f"(cifar-10-binary.tar.gz, {_TRAIN})"
        )
    return False


def cifar_members(folder: Path) -> tuple[Members, tuple[str, ...]]:
    """Return images and labels of both parts, and the names of the classes.

    Raises:
        ValueError: if a file is no whole number of records, when it is read.
    """
    train = sorted(folder.glob(_TRAIN))
    parts = {"train": train, **({"test": [folder / _TEST]} if (folder / _TEST).is_file() else {})}
    members = {}
    for part, files in parts.items():
        members[f"x_{part}"] = partial(_images, files)
        members[f"y_{part}"] = partial(_labels, files)
    names = folder / _NAMES
    return members, tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else ()


def _records(file: Path) -> Array:
    with readable(file):
        size = file.stat().st_size
        if size == 0 or size % _RECORD:
            raise ValueError(f"{size:,} bytes are no whole number of records of {_RECORD:,}")
        return np.memmap(file, np.uint8, "r").reshape(-1, _RECORD)


def _images(files: list[Path]) -> Array:
    return np.concatenate([_records(file)[:, 1:] for file in files]).reshape(-1, *_SHAPE)


def _labels(files: list[Path]) -> Array:
    return np.concatenate([_records(file)[:, 0] for file in files])
