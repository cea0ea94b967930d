"""Deletes one replica: the only way a file of the data root goes.

A file is first moved aside and looked at once more, so that one that was changed at the last moment
comes back under its name; a process that is killed in between puts it back when it starts again. It
must never remove what it has not just recognised, nor put a journal beside another database than
its own, which SQLite would play into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from adapters.files.durable import fsync_directories
from adapters.files.index import Row
from adapters.files.leftovers import own_directories
from adapters.files.places import LOCK, same_disk_directory
from adapters.files.sqlite import SIDE_FILES
from adapters.files.walk import WRITING_SUFFIX, Print, is_disk, print_of

TRASH = "trash"
#: A file of this node's own that changed within so many seconds is in use.
IDLE_S = 600.0
#: Ends the name of a directory whose files are to be deleted; those of others are put back.
_DOOMED = ".doomed"


class Kept(Exception):
    """The file stays; the text says why."""


def remove(root: Path, row: Row, *, now: float, idle_s: float = IDLE_S) -> int:
    """Delete the file of a row; bytes that became free. Blocks.

    Raises Kept, and then it is where it was.
    """
    file = root / row.local
    if file.is_symlink():
        raise Kept(f"{row.local} is a symlink")
    try:
        seen = print_of(file)
    except FileNotFoundError:
        return 0
    if _is_there(file.with_name(file.name + WRITING_SUFFIX)):
        raise Kept(f"{row.local} is being written")
    if not row.received and now - seen.mtime < idle_s:
        raise Kept(f"{row.local} was changed {now - seen.mtime:.0f} s ago: it is in use")
    if _look(seen) != _look(row.print):
        raise Kept(f"{row.local} is no longer what it was when it was last read")
    try:
        trash = same_disk_directory(root, file, TRASH)
        aside = trash / uuid.uuid4().hex
        (aside / Path(row.local).parent).mkdir(parents=True)
    except OSError as error:
        raise Kept(f"{row.local} can't be moved aside: {error}") from error
    try:
        _move(root, aside, row.local)
    except OSError as error:
        _end(root, trash)
        raise Kept(f"{row.local} can't be moved aside: {error}") from error
    except Kept:
        _end(root, trash)
        raise
    if _look(print_of(aside / row.local)) != _look(seen):
        _end(root, trash)
        raise Kept(f"{row.local} was changed at the last moment")
    doomed = aside.rename(aside.with_name(aside.name + _DOOMED))
    fsync_directories(file.parent, file.parent)
    return _delete(doomed)


def put_back(root: Path) -> None:
    """End what a killed process began: what was to be deleted goes, all else comes back. Blocks.

    Where another file has taken the place meanwhile, the old one stays aside.
    """
    for own in own_directories(root):
        if own.parent == root or _is_ours(own):
            _end(root, own / TRASH)


def _is_ours(own: Path) -> bool:
    """Whether files of this root are put aside there: it is the directory of a disk within, and no
    other agent works on it.
    """
    with contextlib.suppress(OSError):
        return is_disk(own.parent) and not (own / LOCK).exists()
    return False


def _end(root: Path, trash: Path) -> None:
    for aside in trash.glob("*"):
        if aside.name.endswith(_DOOMED):
            _delete(aside)
            continue
        _put_back(root, aside)
        _remove_empty(aside)


def _put_back(root: Path, aside: Path) -> None:
    """Give a file its name again with all that stood beside it, or leave all of it aside.

    The file itself gets its name last and leaves last: if it has its name, all is back. It also
    was moved last: what is aside without it still stands beside it, or went with its writer.
    """
    files = [path for path in aside.rglob("*") if path.is_file()]
    beside = [file for file in files if file.name.endswith(SIDE_FILES)]
    itself = [file for file in files if file not in beside]
    if not itself:
        for file in beside:
            file.unlink()
    if len(itself) != 1:
        return
    homes = {file: root / file.relative_to(aside) for file in (*beside, *itself)}
    if _is(itself[0], homes[itself[0]]) or _link_all(homes):
        for file in homes:
            file.unlink()


def _link_all(homes: Mapping[Path, Path]) -> bool:
    """Link each file to its home, in this order; none if one can't be, or its home is taken."""
    if homes[list(homes)[-1]].exists():
        return False
    linked: list[Path] = []
    try:
        for file, home in homes.items():
            if not _is(file, home):
                os.link(file, home)
                linked.append(file)
    except OSError:
        for file in linked:
            if _is(file, homes[file]):
                homes[file].unlink()
        return False
    return True


def _is(file: Path, home: Path) -> bool:
    """Whether both names are of one file: a killed process may have linked it already."""
    return home.exists() and home.samefile(file)


def _look(seen: Print) -> tuple[int, int, int, int]:
    # Not the whole print: moving a file changes its ctime, and one that was too fresh has none.
    return seen.size, seen.mtime_ns, seen.inode, seen.wal_size


def _move(root: Path, aside: Path, local: str) -> None:
    """Move a file aside, and what stands beside a database.

    Whenever it is killed, all of a database is in one of both places: its journals get a second
    name aside, then it moves, and only then do they lose their first. Raises Kept, or OSError.
    """
    beside = []
    for suffix in SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            try:
                os.link(root / (local + suffix), aside / (local + suffix))
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    # Then nothing of that name stands there.
                    continue
                raise Kept(f"{local}{suffix} can't be moved aside: {error}") from error
            beside.append(local + suffix)
    (root / local).rename(aside / local)
    for name in beside:
        # A writer that closed it meanwhile has removed them.
        (root / name).unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    """Whether something of this name is there; of a name too long for the disk nothing can be."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise
    return True


def _delete(doomed: Path) -> int:
    freed = 0
    for file in [path for path in doomed.rglob("*") if path.is_file()]:
        freed += file.stat().st_size
        file.unlink()
    _remove_empty(doomed)
    return freed


def _remove_empty(directory: Path) -> None:
    """Remove directories that hold no file; others stay."""
    below = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
    for path in [*below, directory]:
        with contextlib.suppress(OSError):
            path.rmdir()
