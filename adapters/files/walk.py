"""What lies under a data root: every file that may be data, seen but not read.

It never opens a file, never follows a directory symlink, and never takes what it could not look at
for something that is not there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Container
from pathlib import Path

import msgspec

from adapters.files.checks import is_database
from adapters.files.places import OWN_DIRECTORY
from adapters.files.sqlite import SIDE_FILES
from streams.identity import data_type_of, escapes

#: How long a ``.writing`` marker is believed.
WRITING_S = 300.0
WRITING_SUFFIX = ".writing"
#: What a disk keeps for itself in its highest directory; only root may read it.
_OF_THE_DISK = "lost+found"
_NO_DATA = (*SIDE_FILES, WRITING_SUFFIX, ".tmp", ".partial")


class Print(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a file looks like from outside; another one means that it must be read again."""

    size: int
    mtime_ns: int
    inode: int
    #: Changes even where somebody puts the old size and time back.
    ctime_ns: int = 0
    #: A database in WAL mode changes in its ``-wal`` first.
    wal_size: int = 0
    wal_mtime_ns: int = 0

    @property
    def mtime(self) -> float:
        """Seconds since 1970 of the last change."""
        return max(self.mtime_ns, self.wal_mtime_ns) / 1e9

    def same_file(self, other: os.stat_result) -> bool:
        """Whether a file on the disk still has this size, time and inode."""
        mine = (self.size, self.mtime_ns, self.inode)
        return mine == (other.st_size, other.st_mtime_ns, other.st_ino)


class Walk(msgspec.Struct):
    """What one walk saw. All paths are relative to the root, with ``/``."""

    files: dict[str, Print] = msgspec.field(default_factory=dict)
    #: Files that somebody says they are writing.
    writing: set[str] = msgspec.field(default_factory=set)
    problems: list[str] = msgspec.field(default_factory=list)
    #: Those of them that are about directories, by path: what is in one nobody knows.
    blind: dict[str, str] = msgspec.field(default_factory=dict)
    #: Directories on which another disk is mounted than the one above is on.
    disks: set[str] = msgspec.field(default_factory=set)
    #: Paths of which nothing can be said, and of all below them.
    unseen: set[str] = msgspec.field(default_factory=set)
    #: Suffixes the data plane has no word for, and how many files have them.
    unknown: Counter[str] = msgspec.field(default_factory=Counter)

    def was_unseen(self, local: str) -> bool:
        """Whether a file that is not in `files` may be there all the same."""
        return any(not one or local == one or local.startswith(one + "/") for one in self.unseen)


def walk(root: Path, now: float, disks: Container[str] = ()) -> Walk:
    """Look at everything under `root`, but for what lies where one of these disks is not mounted.
    Blocks; belongs in a thread.
    """
    seen = Walk()
    home = root.resolve()
    directories = [""]
    while directories:
        local = directories.pop()
        try:
            if local and is_disk(home / local):
                seen.disks.add(local)
            elif local in disks:
                seen.blind[local] = not_mounted(local)
                seen.unseen.add(local)
                continue
            with os.scandir(home / local) as found:
                for entry in found:
                    _look_at(entry, local, home, now, seen, directories)
        except OSError as error:
            seen.blind[local] = f"{shown(local) or '.'} cannot be read: {error.strerror}"
            seen.unseen.add(local)
    seen.problems += seen.blind.values()
    return seen


def is_disk(directory: Path) -> bool:
    """Whether another disk is mounted there than the one above is on. Raises `OSError`."""
    return directory.stat().st_dev != directory.parent.stat().st_dev


def not_mounted(local: str) -> str:
    """That a disk is not where it was, in words, and when that is believed."""
    name = shown(local)
    gone = f"what was on it counts as gone once there is no {name}"
    return f"{name} is not the disk it was: is it mounted? If it never will be, {gone}"


def print_of(path: str | Path) -> Print:
    """The print of a file, or of what a symlink leads to. Raises `OSError`."""
    found = os.stat(path)  # noqa: PTH116 - to make a path of it costs more than to look
    if not stat.S_ISREG(found.st_mode):
        # Who opens a pipe waits for its other end, for ever.
        raise FileNotFoundError(errno.ENOENT, "it is no file", str(path))
    wal_size = wal_mtime_ns = 0
    if is_database(str(path)):
        try:
            path = Path(path)
            real = Path(os.path.realpath(path)) if path.is_symlink() else path
            wal = real.with_name(real.name + "-wal").stat()
            wal_size, wal_mtime_ns = wal.st_size, wal.st_mtime_ns
        except OSError:
            pass
    return Print(
        size=found.st_size,
        mtime_ns=found.st_mtime_ns,
        inode=found.st_ino,
        ctime_ns=found.st_ctime_ns,
        wal_size=wal_size,
        wal_mtime_ns=wal_mtime_ns,
    )


def _look_at(
    entry: os.DirEntry[str],
    directory: str,
    home: Path,
    now: float,
    seen: Walk,
    directories: list[str],
) -> None:
    if entry.name.startswith(".") or entry.name == _OF_THE_DISK:
        return
    local = f"{directory}/{entry.name}" if directory else entry.name
    try:
        if entry.is_dir(follow_symlinks=False):
            directories.append(local)
        elif entry.name.endswith(WRITING_SUFFIX):
            # One from a time that has yet to come was written by a clock that was wrong.
            if abs(now - entry.stat().st_mtime) < WRITING_S:
                seen.writing.add(local.removesuffix(WRITING_SUFFIX))
        elif not entry.name.endswith(_NO_DATA) and (problem := _take(entry, local, home, seen)):
            seen.problems.append(problem)
            seen.unseen.add(local)
    except OSError as error:
        seen.problems.append(f"{shown(local)} cannot be read: {error.strerror}")
        seen.unseen.add(local)


def _take(entry: os.DirEntry[str], local: str, home: Path, seen: Walk) -> str | None:
    """Note one file; or say why it cannot be one."""
    if entry.is_symlink():
        if not Path(entry.path).exists():
            return f"{shown(local)} is a symlink to nothing"
        if not _stays_inside(Path(os.path.realpath(entry.path)), home):
            return f"{shown(local)} is a symlink that leads out of the data root"
        if entry.is_dir():
            # What it leads to is within the root and is walked there.
            return None
    if not stat.S_ISREG(entry.stat().st_mode):
        return None
    if data_type_of(local) is None:
        seen.unknown[Path(local).suffix.lower()] += 1
    elif escapes(local) or not _is_text(local):
        return f"{shown(local)} has a name that cannot be sent"
    else:
        seen.files[local] = print_of(entry.path)
    return None


def _stays_inside(real: Path, home: Path) -> bool:
    return real.is_relative_to(home) and OWN_DIRECTORY not in real.relative_to(home).parts


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """A name as it can be sent and stored, whatever its bytes are."""
    return name.encode(errors="backslashreplace").decode()
