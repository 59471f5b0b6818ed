"""Files whole or not at all: failures leave the old one, links stay, and only the dead leave nothing behind."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdediff.files import remove_abandoned, replace, write

HALF_WAY = """
import os, signal, sys, time
from pathlib import Path
from sdediff.files import replace

def fill(beside):
    beside.write_bytes(b"half")
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()

replace(Path(sys.argv[1]), fill)
"""

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_way(path: Path, then: str) -> subprocess.Popen[str]:
    """Another process that is writing; it dies, or waits for a line."""
    command = [sys.executable, "-c", HALF_WAY, str(path), then]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    for failure in (OSError("disk full"), KeyboardInterrupt()):

        def broken(handle: int, failure: BaseException = failure) -> None:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            with pytest.raises(type(failure)):
                write(path, b"new, and longer")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["file"]


def test_the_file_then_the_folder_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name points to it, the name after."""
    path, seen, fsync = tmp_path / "file", [], os.fsync

    def watch(handle: int) -> None:
        seen.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write(path, b"content")
    assert seen == [(False, False), (True, True)]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Into whatever file of the folder; a living writer's stays and is finished, and so does what is not ours."""
    (tmp_path / ".hidden").touch()
    (tmp_path / ".x.unfinished").touch()
    write(tmp_path / "a", b"old")
    dead, living = half_way(tmp_path / "a", "die"), half_way(tmp_path / "b", "wait")
    dead.communicate()
    left = {name for name in names(tmp_path) if name.startswith((".a.", ".b."))}
    assert len(left) == 2
    assert (tmp_path / "a").read_bytes() == b"old"
    write(tmp_path / "c", b"new")
    assert {name for name in left if (tmp_path / name).exists()} == {name for name in left if name.startswith(".b.")}
    living.communicate("go on\n")
    assert living.returncode == 0
    assert (tmp_path / "b").read_bytes() == b"half"
    assert names(tmp_path) == [".hidden", ".x.unfinished", "a", "b", "c"]


def test_whose_life_cannot_be_seen_is_given_a_day(tmp_path: Path) -> None:
    """Another machine's file, and one of an earlier process that had this one's number."""
    (tmp_path / "a").touch()
    seen: list[str] = []
    replace(tmp_path / "a", lambda beside: seen.append(beside.name))
    host = seen[0].rsplit(".", 4)[1]
    foreign, earlier = (tmp_path / seen[0].replace(host, name) for name in ("elsewhere", host))
    foreign.touch()
    earlier.touch()
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [foreign.name, "a"]
    old = time.time() - 100_000.0
    os.utime(foreign, (old, old))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["a"]
    assert platform.node() == "" or host[0] == platform.node()[0]


def test_a_write_within_a_write_removes_nothing(tmp_path: Path) -> None:
    def fill(beside: Path) -> None:
        beside.write_bytes(b"outer")
        write(tmp_path / "inner", b"inner")

    replace(tmp_path / "outer", fill)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == {"inner": b"inner", "outer": b"outer"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["elsewhere", "link"]
    assert names(tmp_path / "elsewhere") == ["file"]


@needs_full
def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null", b"content")
    with pytest.raises(OSError, match="No space") as failure:
        write(tmp_path / "full", b"content")
    assert failure.value.filename == str(tmp_path / "full")
    assert names(tmp_path) == ["full", "null"]
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_new_file_goes_by_the_users_mask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o600)
    write(tmp_path / "new", b"again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "no" / "file", "No such file"), (tmp_path, "directory")):
        with pytest.raises(OSError, match=reason) as failure:
            write(place, b"")
        assert failure.value.filename == str(place)
