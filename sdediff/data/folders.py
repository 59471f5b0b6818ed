"""Folders of images, one class a subfolder, decoded by several threads into one array.

Headers are read first, so that sizes and kinds are known before the array is made; beyond a gigabyte it lies in a
temporary file (:mod:`sdediff.data.storage`). Files whose names begin with a dot are ignored. A folder of folders is
read as one class a folder, in the order of their names.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdediff.data.arrays import Array
from sdediff.data.images import KINDS, Header, common_kind, decode, no_bombs, read_header, warn_of_conversions
from sdediff.data.reading import SKIP
from sdediff.data.remarks import listed, warn
from sdediff.data.storage import empty

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

_THREADS = 16  # at most


class Folder(NamedTuple):
    """Images ``(n, C, H, W)``, the class of each, if the folder has classes, and the names of classes and files."""

    images: Array
    labels: Array | None
    classes: tuple[str, ...]
    files: Array


def read_folder(folder: Path, size: int | None = None, damaged: str = "refuse") -> Folder:
    """Read the images of a folder or, if it has none, those of its subfolders, one class a subfolder.

    Args:
        folder: the folder.
        size: side to which images are resized and cropped; ``None`` for images of one size.
        damaged: what becomes of damaged images, a name of :data:`~sdediff.data.reading.DAMAGED`.

    Raises:
        ValueError: if there are none, one is damaged, or they differ in size or kind; in one line.
    """
    groups = {"": _images_in(folder)}
    if not groups[""]:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        groups = {path.name: files for path in inner if (files := _images_in(path))}
    files = [file for group in groups.values() for file in group]
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images, kept = _decoded(files, folder, size, skip=damaged == SKIP)
    names = np.array([file.relative_to(folder).as_posix() for file in files])[kept]
    if "" in groups:
        return Folder(images, None, (), names)
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])
    return Folder(images, labels[kept], tuple(groups), names)


def _images_in(folder: Path) -> list[Path]:
    found = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return sorted(file for file in found if not file.name.startswith("."))


def _decoded(files: Sequence[Path], folder: Path, size: int | None, *, skip: bool) -> tuple[Array, Array]:
    """Return all images in one array, channels first, and which files they are; warn once of each lossy conversion."""
    with no_bombs(), ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        headers = list(threads.map(partial(_header, skip=skip), files))
        known = {file: header for file, header in zip(files, headers, strict=True) if isinstance(header, Header)}
        if not known:
            raise ValueError(f"{folder}: all {len(files):,} images are damaged: {headers[0]}")
        kind = _common_kind(known, size)
        shape = next(iter(known.values())).shape if size is None else (size, size)
        channels = 3 if kind == "colour" else 1
        images = empty((len(known), channels, *shape), KINDS[kind].dtype)

        def fill(row: int, file: Path) -> tuple[str, ...] | ValueError:
            try:
                images[row], conversions = decode(file, kind, size)
            except ValueError as error:
                return _damage(error, skip=skip)
            return conversions

        found = list(threads.map(fill, range(len(known)), known))
    results = dict(zip(known, found, strict=True))
    whole = np.array([isinstance(results.get(file), tuple) for file in files])
    warn_of_conversions(str(folder), len(files), [each for each in results.values() if isinstance(each, tuple)])
    if not whole.all():
        lost = [str(file.relative_to(folder)) for file, good in zip(files, whole, strict=True) if not good]
        warn(f"{folder}: {len(lost):,} of {len(files):,} images are damaged and left out: {listed(lost)}")
    if not whole.any():
        raise ValueError(f"{folder}: all {len(files):,} images are damaged")
    rows = np.array([isinstance(each, tuple) for each in found])
    return images if rows.all() else images[rows], whole


def _header(file: Path, *, skip: bool) -> Header | ValueError:
    try:
        return read_header(file)
    except ValueError as error:
        return _damage(error, skip=skip)


def _damage(error: ValueError, *, skip: bool) -> ValueError:
    if not skip:
        raise ValueError(f"{error}; data.damaged=skip leaves such images out") from None
    return error


def _common_kind(headers: dict[Path, Header], size: int | None) -> str:
    """Return the kind that holds all images without loss.

    Raises:
        ValueError: if their kinds do not go together or, without ``size``, their sizes differ.
    """
    first = next(iter(headers))
    for file, header in headers.items():
        came, expected = header.shape, headers[first].shape
        if size is None and came != expected:
            raise ValueError(
                f"all images must have one size: {file} has {came[1]} x {came[0]} pixels, {first} has "
                f"{expected[1]} x {expected[0]}; data.size (--size 64) resizes and crops them"
            )
    return common_kind({header.kind: file for file, header in headers.items()}, size)
