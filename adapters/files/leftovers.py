"""What the data plane itself leaves on a node's disks, and when it may be swept up.

A partial file is what a transfer has so far, and a file in quarantine is what somebody may want to
look into. Neither is data: both are kept for a while, and what nobody will need only as long as it
takes little of the room that data could have. A partial that is being written is never touched, and
what rotted goes by its age alone: it may be the last there is of it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from adapters.files.places import OWN_DIRECTORY
from adapters.files.rot import ROTTEN_SUFFIX
from adapters.files.scattered import NOTES_SUFFIX, notes_of

PARTIAL_MAX_AGE_S = 24 * 3600.0
QUARANTINE_MAX_AGE_S = 30 * 24 * 3600.0
#: For so long somebody can look into it, unless the disk is full.
QUARANTINE_MIN_AGE_S = 24 * 3600.0
#: Who has not written to a partial for so long has stopped.
IDLE_S = 60.0
#: Files of a group are not gone on with by the next attempt, which gathers a group of its own.
GROUP_MAX_AGE_S = 3600.0
GROUP_PREFIX = "group-"
#: What nobody will need is kept while it takes no more than this share of what is free.
KEPT_SHARE = 0.1


class Leftover(msgspec.Struct, frozen=True):
    """A file that is no data, and when somebody last did anything with it."""

    path: Path
    #: Of the disk, holes left out.
    size_bytes: int
    touched: float

    @property
    def transfer(self) -> str:
        """Whose partial file it is."""
        return self.path.name.split(".", 1)[0]


def own_directories(root: Path) -> list[Path]:
    """The data plane's own directories: one for each disk under `root`. Walks it all; blocks."""
    found = []
    for directory, directories, _ in os.walk(root):
        if OWN_DIRECTORY in directories:
            directories.remove(OWN_DIRECTORY)
            found.append(Path(directory) / OWN_DIRECTORY)
    return found


def idle_transfers(own: Path, now: float | None = None) -> set[str]:
    """Transfers that have left something in an own directory and are not at it now. Blocks."""
    idle_since = _now(now) - IDLE_S
    return {
        left.transfer
        for left in _lying_in(own / "partial")
        if left.touched < idle_since and not left.transfer.startswith(GROUP_PREFIX)
    }


def sweep_partials(own: Path, ended: Container[str] = (), now: float | None = None) -> list[Path]:
    """Remove partial files of an own directory that nobody has touched for a day, and those of
    transfers that have `ended` if together they take much of what is free. Blocks.

    Returns what it removed.
    """
    now = _now(now)
    aged, spent = [], []
    for left in _lying_in(own / "partial"):
        of_a_group = left.transfer.startswith(GROUP_PREFIX)
        if left.touched < now - (GROUP_MAX_AGE_S if of_a_group else PARTIAL_MAX_AGE_S):
            aged.append(left)
        elif left.transfer in ended and left.touched < now - IDLE_S:
            spent.append(left)
    return [left.path for left in aged + _too_much(spent, own) if _removed_unless_locked(left)]


def sweep_quarantine(own: Path, full_from: float, now: float | None = None) -> list[Path]:
    """Remove what has been in quarantine for a month; of what has been there for a day, what came
    first if together it takes much of what is free. Blocks.

    On a disk of which `full_from` is used, a share, what came only now goes for room as well: but
    never what rotted, of which there may be no other copy. Returns what it removed.
    """
    now, full = _now(now), _is_full(own, full_from)
    aged, spent = [], []
    for left in _lying_in(own / "quarantine"):
        if left.touched < now - QUARANTINE_MAX_AGE_S:
            aged.append(left)
        elif left.path.suffix != ROTTEN_SUFFIX:
            spent += [left] if full or left.touched < now - QUARANTINE_MIN_AGE_S else []
    gone = aged + _too_much(spent, own)
    for left in gone:
        left.path.unlink(missing_ok=True)
    return [left.path for left in gone]


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _lying_in(directory: Path) -> Iterator[Leftover]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        # What lands meanwhile is no longer here; notes go with what they are of.
        with suppress(FileNotFoundError):
            stat = path.stat()
            # A file's own time may be its entry's; the time of its last change of any kind is ours.
            touched = max(stat.st_ctime, stat.st_mtime)
            if not path.name.endswith(NOTES_SUFFIX) or not path.with_suffix("").exists():
                yield Leftover(path, stat.st_blocks * 512, touched)


def _too_much(lying: list[Leftover], own: Path) -> list[Leftover]:
    """The oldest of them, so that what stays takes no more than its share of what is free."""
    if not lying:
        return []
    lying = sorted(lying, key=lambda left: left.touched)
    taken, free = sum(left.size_bytes for left in lying), shutil.disk_usage(own).free
    gone: list[Leftover] = []
    for left in lying:
        if taken <= KEPT_SHARE * free:
            break
        gone.append(left)
        taken, free = taken - left.size_bytes, free + left.size_bytes
    return gone


def _is_full(own: Path, full_from: float) -> bool:
    usage = shutil.disk_usage(own)
    return usage.used >= full_from * (usage.used + usage.free)


def _removed_unless_locked(left: Leftover) -> bool:
    try:
        handle = os.open(left.path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.path.unlink()
        notes_of(left.path).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
