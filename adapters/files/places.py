"""Where files of a data root may lie, and how much room is promised there.

No path may lead out of the root, in words or through a symlink.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from adapters.errors import DiskFull, PathEscapes
from streams.identity import escapes

#: The data plane's own directory within a data root; nothing in it is data.
OWN_DIRECTORY = ".dataplane"
#: In the own directory of a data root: held by the agent that works on it.
LOCK = "lock"
#: Kept free beyond a file's own size.
RESERVE = 0.1

_promises: dict[object, tuple[int, int]] = {}
_promises_lock = threading.Lock()


def confined(root: Path, local: str) -> Path:
    """The absolute path of `local` under `root`. Raises `PathEscapes` if it would lead out.

    Directories on the way may be symlinks as long as they stay within the root; a symlink at the
    end is fine, for landing replaces it and never follows it.
    """
    return Confinement(root).path(local)


class Confinement:
    """`confined` for many paths of one moment: where a directory leads is looked at once."""

    def __init__(self, root: Path) -> None:
        self._home = root.resolve()
        self._directories: dict[str, Path] = {}

    def path(self, local: str) -> Path:
        """As `confined`."""
        return self.directory(local) / local.rpartition("/")[2]

    def directory(self, local: str) -> Path:
        """Where the file of `confined` lies."""
        if escapes(local):
            raise PathEscapes(f"{local!r} is no clean relative path")
        if local.split("/", 1)[0] == OWN_DIRECTORY:
            raise PathEscapes(f"{local!r} belongs to the data plane itself")
        above = local.rpartition("/")[0]
        found = self._directories.get(above)
        if found is None:
            try:
                found = (self._home / above).resolve()
            except RuntimeError as error:
                # So `pathlib` says it, up to Python 3.12.
                raise PathEscapes(f"{local!r} leads in a circle of symlinks") from error
            own = found.is_relative_to(self._home / OWN_DIRECTORY)
            if own or not found.is_relative_to(self._home):
                raise PathEscapes(f"{local!r} leads out of the data root through a symlink")
            self._directories[above] = found
        return found


def same_disk_directory(root: Path, target: Path, name: str) -> Path:
    """An own directory called `name`, made if needed, on the disk that `target` will lie on.

    It is the root's, unless another disk is mounted on the way to `target`.
    """
    home = root.resolve()
    chain = [p for p in (target.parent, *target.parent.parents) if p.is_relative_to(home)]
    existing = [p for p in chain if p.is_dir()] or [home]
    device = existing[0].stat().st_dev
    highest = [p for p in existing if p.stat().st_dev == device][-1]
    directory = highest / OWN_DIRECTORY / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class Reservation:
    """Room on a disk promised to one file, until it is released. Counts within this process."""

    def __init__(self, directory: Path, size_bytes: int, have_bytes: int = 0) -> None:
        """Promise `size_bytes` and a reserve, of which `have_bytes` are there already.

        Raises `DiskFull` if what is free does not cover this and all other promises.
        """
        device = directory.stat().st_dev
        needed = size_bytes - have_bytes + int(size_bytes * RESERVE)
        with _promises_lock:
            promised = sum(left for where, left in _promises.values() if where == device)
            free = shutil.disk_usage(directory).free - promised
            if needed > free:
                raise DiskFull(
                    f"{needed} bytes needed, {max(free, 0)} free and not promised to others"
                )
            _promises[self] = (device, needed)

    def used(self, nbytes: int) -> None:
        """So many bytes of it were written, and are now missing from what is free."""
        with _promises_lock:
            if self in _promises:
                device, left = _promises[self]
                _promises[self] = (device, max(0, left - nbytes))

    def release(self) -> None:
        """Give back what was not used. Harmless when done twice."""
        with _promises_lock:
            _promises.pop(self, None)
