"""Atomic replacement of files: a reader sees the old content or the new, even after a crash of the writer.

The content is written to a temporary file in the same folder, synchronised to disk and moved into place, and then the
folder is synchronised too. The name of a temporary file holds its host and process, so that the next writer in the
folder can remove the files of killed ones.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_HOST = re.sub(r"\W", "-", platform.node())[:40] or "-"
_TEMPORARY = re.compile(r"\..*\.(?P<host>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{8}\.unfinished", re.DOTALL)
_DAY = 86_400.0  # seconds after which another host's file is abandoned: whether its writer is alive is unknown here
_writing: set[str] = set()
"""Names that this process is writing to; others with its number are of an earlier process of the same number."""


def write(path: str | Path, content: bytes) -> None:
    """Replace a file in one step: it holds the old content or the new, whatever happens in between."""
    replace(path, lambda file: _write_bytes(file, content))


def replace(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Write a temporary file in the same folder and move it into place.

    A link is kept, and its target replaced. Devices and pipes are written to directly.

    Args:
        path: path of the file.
        fill: function that writes the file whose path it is given.

    Raises:
        OSError: if the file cannot be written; the previous content is then unchanged.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            fill(target)
            return
        with _temporary_file(target) as temporary:
            fill(temporary)
            _sync(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        named = error.filename is not None and not _TEMPORARY.fullmatch(Path(str(error.filename)).name)
        if error.strerror is not None and not named:
            error.filename, error.filename2 = str(path), None  # not the temporary file's name
        raise


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers are no longer alive."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and not _may_be_alive(entry, match["host"], int(match["process"])):
                Path(entry.path).unlink(missing_ok=True)


def _may_be_alive(entry: os.DirEntry[str], host: str, process: int) -> bool:
    """Return whether the writer of a temporary file may be alive."""
    if host != _HOST:
        return time.time() - entry.stat().st_mtime < _DAY
    if process == os.getpid():
        return entry.name in _writing
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process of another user
        return True
    return True


@contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """Create an empty file in the folder of another and remove it in the end, unless it was moved."""
    remove_abandoned(target.parent)
    temporary = target.with_name(f".{target.name[:30]}.{_HOST}.{os.getpid()}.{os.urandom(4).hex()}.unfinished")
    _writing.add(temporary.name)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # restricted by the user's mask
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _writing.discard(temporary.name)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Synchronise a folder's entries to disk, on systems that support it."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that is writable, but not readable
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(handle)


def json_value(value: Any) -> Any:
    """Convert to JSON values: paths to text, infinite numbers and NaN to null."""
    if isinstance(value, Mapping):
        return {key: json_value(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
