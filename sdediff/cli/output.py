"""Output files of commands: named and checked before the work, written in one step after it."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdediff.extras import require
from sdediff.files import write


def plan(out: Path | None, folder: Path, name: str, suffixes: Sequence[str], *, force: bool = False) -> dict[str, Path]:
    """Return the paths of a command's files by suffix.

    Args:
        out: the user's choice: a folder that exists, or a file whose suffix, if it has one, is replaced by each of
            ``suffixes``; ``None`` for the default.
        folder: folder of the files by default.
        name: name of the files in a folder. Without ``force`` a number is added until the name is free.
        suffixes: suffixes of the files.
        force: replace files that exist.

    Raises:
        ValueError: if ``out`` has the suffix of another kind of file, or a picture is among them and matplotlib or
            Pillow is not installed.
        FileExistsError: if a file that was named exists, without ``force``.
        OSError: if the folder cannot be made or written to.
    """
    if not {".png", ".pdf", ".svg"}.isdisjoint(suffixes):
        require("plots")
    if out is None or out.is_dir():
        folder = folder if out is None else out
        stem, number = folder / name, 1
        while not force and any(path.exists() for path in _with_suffixes(stem, suffixes).values()):
            number += 1
            stem = folder / f"{name}-{number}"
    elif out.suffix not in suffixes and out.suffix[1:].isalpha():
        raise ValueError(f"--out must end in {' or '.join(suffixes)} (or in nothing), not {out.suffix!r}: {out}")
    else:
        stem = out.with_suffix("") if out.suffix in suffixes else out
    paths = _with_suffixes(stem, suffixes)
    taken = [str(path) for path in paths.values() if path.exists()]
    if taken and not force:
        raise FileExistsError(f"{' and '.join(taken)} exist{'s' if len(taken) == 1 else ''}; --force replaces")
    for folder in {stem.parent: None, **{path.resolve().parent: None for path in paths.values() if path.is_symlink()}}:
        _check_writable(folder)
    return paths


def _check_writable(folder: Path) -> None:
    """Create a folder if missing, and refuse a read-only one before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}") from None


def _with_suffixes(stem: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    return {suffix: stem.with_name(stem.name + suffix) for suffix in suffixes}


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as a compressed ``.npz``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write(path, buffer.getvalue())


def write_csv(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write columns of one length; single values are repeated."""
    rows = max(np.size(array) for array in arrays.values())
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(arrays)
    writer.writerows(zip(*(np.broadcast_to(array, rows) for array in arrays.values()), strict=True))
    write(path, buffer.getvalue().encode())
