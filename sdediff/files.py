"""Files that a reader sees whole or not at all, whatever happens to their writer.

A file is written beside its place, forced to the disk and moved into the place, and then the folder is forced to the
disk too: after a crash the place holds the old content or the new. The name beside the place says which process writes
there, so that the next writer in the folder can remove what a killed one left.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOST = re.sub(r"\W", "-", platform.node())[:40] or "-"
_BESIDE = re.compile(r"\..*\.(?P<host>[\w-]+)\.(?P<process>\d+)\.[0-9a-f]{8}\.unfinished", re.DOTALL)
_DAY = 86_400.0  # seconds after which another machine's file is given up: whether its writer lives cannot be seen here
_writing: set[str] = set()
"""Names that this process is writing to. Others with its number are of an earlier process of the same number."""


def write(path: str | Path, content: bytes) -> None:
    """Replace a file in one step: it holds the old content or the new, whatever happens in between."""
    replace(path, lambda beside: _fill(beside, content))


def replace(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Fill a file beside the place and move it there.

    A link stays: what it points to is replaced. Devices and pipes are written to as they are.

    Args:
        path: of the file.
        fill: writes the file whose path it is given.

    Raises:
        OSError: if the file cannot be written; the place is then as it was.
    """
    place = Path(os.path.realpath(path))
    try:
        if place.exists() and not place.is_file():
            fill(place)
            return
        with _beside(place) as beside:
            fill(beside)
            _to_disk(beside)
            if place.exists():
                shutil.copymode(place, beside)
            beside.replace(place)
        _folder_to_disk(place.parent)
    except OSError as error:
        named = error.filename is not None and not _BESIDE.fullmatch(Path(str(error.filename)).name)
        if error.strerror is not None and not named:
            error.filename, error.filename2 = str(path), None  # the name that the user knows
        raise


def remove_left(folder: Path) -> None:
    """Remove what writers left in a folder that were killed; of writers that may be alive, nothing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _BESIDE.fullmatch(entry.name)
            if found is not None and not _may_live(entry, found["host"], int(found["process"])):
                Path(entry.path).unlink(missing_ok=True)


def _may_live(entry: os.DirEntry[str], host: str, process: int) -> bool:
    """Whether a file's writer may still be at work."""
    if host != _HOST:
        return time.time() - entry.stat().st_mtime < _DAY
    if process == os.getpid():
        return entry.name in _writing
    if os.name == "nt":  # where asking for a process ends it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and another user's
        return True
    return True


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A new file in the folder of another, gone in the end unless it was moved."""
    remove_left(place.parent)
    beside = place.with_name(f".{place.name[:30]}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.unfinished")
    _writing.add(beside.name)
    try:
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the user's mask takes away
        yield beside
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        _writing.discard(beside.name)


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Force a folder's names to the disk, on systems that can."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(handle)
