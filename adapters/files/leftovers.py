"""What the data plane itself leaves on a node's disks, and when it may be swept up.

A partial file is what a transfer has so far, and a file in quarantine is what somebody may want to
look into. Neither is data: both are kept for a while, and what nobody will need only as long as it
takes little of the room that data could have. A partial that is being written is never touched, and
what rotted goes by its age alone: it may be the last there is of it. One file that can't be looked
at or removed is told of, and keeps no other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path

import msgspec

from adapters.files.places import OWN_DIRECTORY
from adapters.files.rot import ROTTEN_SUFFIX
from adapters.files.scattered import NOTES_SUFFIX, notes_of
from streams.values import is_token

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


#: Told what could not be looked at or removed, and why.
Stuck = Callable[[Path, OSError], None]


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


def _overlook(path: Path, error: OSError) -> None:
    """Nobody wants to hear of it."""


def idle_transfers(own: Path, now: float | None = None, stuck: Stuck = _overlook) -> set[str]:
    """Transfers that have left something in an own directory and are not at it now. Blocks.

    Not what others have left there, whatever they call it.
    """
    idle_since = _now(now) - IDLE_S
    return {
        left.transfer
        for left in _lying_in(own / "partial", stuck)
        if left.touched < idle_since
        and is_token(left.transfer)
        and not left.transfer.startswith(GROUP_PREFIX)
    }


def sweep_partials(
    own: Path,
    ended: Container[str] = (),
    now: float | None = None,
    stuck: Stuck = _overlook,
) -> list[Path]:
    """Remove partial files of an own directory that nobody has touched for a day, and those of
    transfers that have `ended` if together they take much of what is free. Blocks.

    Returns what it removed.
    """
    now = _now(now)
    aged, spent = [], []
    for left in _lying_in(own / "partial", stuck):
        of_a_group = left.transfer.startswith(GROUP_PREFIX)
        if left.touched < now - (GROUP_MAX_AGE_S if of_a_group else PARTIAL_MAX_AGE_S):
            aged.append(left)
        elif left.transfer in ended and left.touched < now - IDLE_S:
            spent.append(left)
    return _removed(aged + _too_much(spent, own), _remove_unless_locked, stuck)


def sweep_quarantine(
    own: Path, full_from: float, now: float | None = None, stuck: Stuck = _overlook
) -> list[Path]:
    """Remove what has been in quarantine for a month; of what has been there for a day, what came
    first if together it takes much of what is free. Blocks.

    On a disk of which `full_from` is used, a share, what came only now goes for room as well: but
    never what rotted, of which there may be no other copy. Returns what it removed.
    """
    now, full = _now(now), _is_full(own, full_from)
    aged, spent = [], []
    for left in _lying_in(own / "quarantine", stuck):
        if left.touched < now - QUARANTINE_MAX_AGE_S:
            aged.append(left)
        elif left.path.suffix != ROTTEN_SUFFIX:
            spent += [left] if full or left.touched < now - QUARANTINE_MIN_AGE_S else []
    return _removed(aged + _too_much(spent, own), Path.unlink, stuck)


def tidy(root: Path) -> None:
    """Remove the own directory of `root` if nothing is in it but partial files of no byte that
    nobody is at: then `root` is a place that files were brought to, and no node's. Blocks.
    """
    own = root / OWN_DIRECTORY
    partials = own / "partial"
    # Whoever has something there, or comes just now, keeps it.
    with contextlib.suppress(OSError):
        if list(own.iterdir()) == [partials]:
            for path in partials.iterdir():
                if not path.stat().st_size:
                    _remove_unless_locked(path)
            partials.rmdir()
            own.rmdir()


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _lying_in(directory: Path, stuck: Stuck) -> Iterator[Leftover]:
    for path in _named_in(directory, stuck):
        try:
            stat = path.lstat()
            if path.name.endswith(NOTES_SUFFIX) and path.with_suffix("").exists():
                # They go with what they are of.
                continue
        except FileNotFoundError:
            # It has landed meanwhile.
            continue
        except OSError as error:
            stuck(path, error)
            continue
        # A file's own time may be its entry's, and lie in the future where its producer's clock is
        # wrong; the time of its last change of any kind is ours.
        yield Leftover(path, stat.st_blocks * 512, stat.st_ctime)


def _named_in(directory: Path, stuck: Stuck) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        stuck(directory, error)
        return []


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


def _removed(gone: list[Leftover], remove: Callable[[Path], None], stuck: Stuck) -> list[Path]:
    """Remove them; which of them that was possible for."""
    removed: list[Path] = []
    for left in gone:
        try:
            remove(left.path)
            removed.append(left.path)
        except (FileNotFoundError, BlockingIOError):
            # It has landed meanwhile, or somebody is at it.
            continue
        except OSError as error:
            stuck(left.path, error)
    return removed


def _remove_unless_locked(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        notes_of(path).unlink(missing_ok=True)
    finally:
        os.close(handle)
