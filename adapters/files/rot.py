"""Reads a file again, and sets it aside if its bytes are others now though nobody wrote it anew.

A file with another size, time or inode is not damaged: somebody wrote it, and the next scan says
what it is now; but for a copy of another node's file, which nobody here may write. It must never
move a file of this node's own.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import msgspec

from adapters.files.digest import checksum_on_disk
from adapters.files.durable import fsync_directories
from adapters.files.index import Row, State
from adapters.files.places import same_disk_directory
from adapters.files.walk import Print, print_of

#: Ends the name, in quarantine, of what was sound when it came.
ROTTEN_SUFFIX = ".rotten"
#: How a disk says that it can't give back what it was given.
_DAMAGED = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}


class Rot(msgspec.Struct, frozen=True):
    """A file whose bytes changed though its size, times and inode did not."""

    local: str
    reason: str
    #: Whether the file was moved to quarantine.
    set_aside: bool = False
    #: The file as it was before it was read.
    seen: Print | None = None


def reread(
    root: Path,
    row: Row,
    stopped: Callable[[], bool],
    rest: Callable[[int], None] = lambda nbytes: None,
) -> Rot | None:
    """Whether the bytes of a row's file are no longer what they were. Blocks.

    `rest` is called with the size of each block that was read, and may block, too.

    None if they are, or if that can't be said: it is gone, or was changed by somebody, or this
    process has no handles, memory or permission to look just now.
    Raises `adapters.files.digest.Stopped`.
    """
    file = root / row.local
    seen: Print | None = None
    try:
        seen = print_of(file)
        if not _as_it_was(file, row):
            return None
        found = checksum_on_disk(file, stopped, lambda data: rest(len(data)))
        if found == row.entry.checksum or not _as_it_was(file, row):
            return None
    except OSError as error:
        if error.errno not in _DAMAGED:
            return None
        return Rot(row.local, f"it can't be read: {error}", seen=seen)
    return Rot(row.local, f"its bytes are {found} now, and it was not received anew", seen=seen)


def _as_it_was(file: Path, row: Row) -> bool:
    """Whether nobody has put another file there, as far as size, time and inode tell."""
    return row.state is State.SPOILED or row.print.same_file(file.stat())


def set_aside(root: Path, row: Row, rot: Rot) -> Path | None:
    """Move a received file to quarantine; where it is then. Durable on return. Blocks.

    None, and it stays, if it is no longer the file that was read.
    """
    file = root / row.local
    try:
        if rot.seen is None or not rot.seen.same_file(file.stat()):
            return None
    except FileNotFoundError:
        return None
    directory = same_disk_directory(root, file, "quarantine")
    name = row.entry.checksum.removeprefix("sha256:") + ROTTEN_SUFFIX
    aside = file.replace(directory / name)
    fsync_directories(file.parent, file.parent)
    return aside
