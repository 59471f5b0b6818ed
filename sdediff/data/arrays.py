"""NumPy files, read lazily and safely.

A header of a few bytes can promise petabytes, and an array of objects is a pickle, which executes. So the header of an
array is read first, and its size is checked against that of the file. A ``.npy`` is then memory-mapped; each array of
an ``.npz`` is read when it is first used.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Array = NDArray[np.generic]
Members = Mapping[str, Callable[[], Array]]
"""The arrays of a file by name, each read when it is called."""

_SUFFIX = ".npy"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
DEFLATE_RATIO = 1032
"""The most bytes that deflate makes of one."""


def members(path: Path) -> Members:
    """Return the arrays of a ``.npy`` (under the name ``data``) or an ``.npz``.

    Raises:
        ValueError: if the file is damaged; its arrays raise the same when they are read, and for objects.
    """
    with readable(path):
        with path.open("rb") as file:
            archive = file.read(4) in _ZIP
        if not archive:
            return {"data": partial(_mapped, path)}
        with zipfile.ZipFile(path) as opened:
            names = [name for name in opened.namelist() if name.endswith(_SUFFIX)]
        return {name.removesuffix(_SUFFIX): partial(_member, path, name) for name in names}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert any exception of a reader on a damaged file into one line that names the file."""
    try:
        yield
    except Exception as error:  # decoders raise nearly anything on damaged bytes, from KeyError to SyntaxError
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None


def _mapped(path: Path) -> Array:
    with readable(path):
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
        array: Array = np.load(path, mmap_mode="c", allow_pickle=False)  # writable for PyTorch; the file is not touched
        return array


def _member(path: Path, name: str) -> Array:
    with readable(path), zipfile.ZipFile(path) as archive:
        size = archive.getinfo(name).file_size
        if size > DEFLATE_RATIO * path.stat().st_size:
            raise ValueError(f"{name} claims {size:,} bytes, more than the file can hold")
        with archive.open(name) as file:
            _check_header(file, size)
        with archive.open(name) as file:
            array: Array = npy.read_array(file, allow_pickle=False)
            return array


def _check_header(file: IO[bytes], size: int) -> None:
    """Refuse pickled objects, and shapes of more than ``size`` bytes."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown version {version} of the format")
    read: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0  # 3.0 differs in names
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could execute anything: save arrays of numbers")
    promised, available = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or promised > available:
        raise ValueError(f"its header promises {dtype} {shape}, {promised:,} bytes; the file holds {available:,}")
