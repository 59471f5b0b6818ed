"""IDX files, as of MNIST and its kin, compressed or not, alone or as a folder of both parts with their labels.

A file is two zero bytes, a code of the number type, the number of axes, their lengths (big-endian, 32 bits), and the
numbers (LeCun, Cortes & Burges). Its name says what it is: ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte.gz``.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from sdediff.data.arrays import DEFLATE_RATIO, Array, Members, readable

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_PARTS = {"x_train": ("train",), "x_test": ("t10k", "test")}  # words of file names
_LABELS_OF = {"x_train": "y_train", "x_test": "y_test", "data": "labels"}


def is_idx(path: Path) -> bool:
    """Return whether a file begins as an IDX file does, compressed or not."""
    try:
        return path.is_file() and _head(path)[2] in _TYPES
    except (OSError, EOFError, ValueError):
        return False


def idx_members(path: Path) -> Members:
    """Return items and labels of a file, whose labels may lie beside it, or of a folder of files.

    Raises:
        ValueError: if the folder holds several files for one part; arrays raise it if their file is damaged.
    """
    if path.is_dir():
        files = {name: _one(idx_files(path), words, path) for name, words in _PARTS.items()}
        found = {name: file for name, file in files.items() if file is not None}
    else:
        found = {"data": path}
    members = {name: partial(_read, file) for name, file in found.items()}
    for name, file in found.items():
        labels = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
        if labels != file and is_idx(labels):
            members[_LABELS_OF[name]] = partial(_read, labels)
    return members


def idx_files(folder: Path) -> list[Path]:
    """Return the IDX files of images in a folder."""
    return sorted(file for file in folder.iterdir() if "images" in file.name and is_idx(file))


def _one(files: Iterable[Path], words: tuple[str, ...], folder: Path) -> Path | None:
    """Return the file whose name has one of the words; a compressed copy of another does not count."""
    named = [file for file in files if any(word in file.name for word in words)]
    plain = [file for file in named if file.suffix != ".gz" or file.with_suffix("") not in named]
    if len(plain) > 1:
        raise ValueError(f"{folder} holds several sets: name one of {', '.join(file.name for file in plain)}")
    return plain[0] if plain else None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(_GZIP):
        with gzip.open(path) as inner:
            head = inner.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[3] < 1:
        raise ValueError("no IDX file")
    return head


def _read(path: Path) -> Array:
    with readable(path):
        _, _, code, axes = _head(path)
        dtype, start = np.dtype(_TYPES[code]), 4 + 4 * axes
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = struct.unpack(f">{axes}I", file.read(start)[4:])
            promised, most = math.prod(shape) * dtype.itemsize, path.stat().st_size * (DEFLATE_RATIO if packed else 1)
            if promised > most:
                raise ValueError(
                    f"its header promises {dtype} {shape}, {promised:,} bytes, more than the file can hold"
                )
            if not packed:
                return np.memmap(path, dtype, "c", start, shape)  # writable for PyTorch; the file is not touched
            return np.frombuffer(bytearray(file.read(promised)), dtype).reshape(shape)
