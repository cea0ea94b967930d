"""The file that rsync writes: in a directory of its own, taken in by a landing while it grows."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath

from adapters.errors import PathEscapes
from adapters.files.landing import Landing, partial_name
from adapters.files.leftovers import PARTIAL_MAX_AGE_S
from adapters.files.partial import disk_errors
from adapters.files.places import same_disk_directory
from adapters.transport import Request
from adapters.workers import finish
from streams.identity import GAME_DATABASE_SUFFIXES

#: Where an older version has much in common with a newer one; archives and models have nothing.
SAVING_SUFFIXES = (*GAME_DATABASE_SUFFIXES, ".jsonl")


class Aside:
    """The file that rsync writes, in a directory of its own on the landing's disk.

    It is the landing's own file under a second name, to whose end rsync adds. Where there is an
    older version to go by, rsync wants to begin a file, which is copied to the landing: what is
    copied takes no room any more.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / "new"
        self.file = self.directory / name
        #: A directory with an older version under the same name.
        self.basis: Path | None = None
        self._forgotten = 0

    @classmethod
    def make(cls, directory: Path, name: str, landing: Landing) -> Aside:
        """Make the directory, empty. Blocks."""
        with disk_errors():
            sweep(directory)
            aside = cls(directory, name)
            aside.directory.mkdir(parents=True)
            saves = PurePosixPath(landing.entry.path).suffix.lower() in SAVING_SUFFIXES
            if saves and not landing.offset:
                aside._find_basis(directory / "old", landing.path)
        return aside

    async def hand_over(self, landing: Landing) -> None:
        """Let the landing take in what is new. Raises as `Landing.fill`."""
        if self.basis is None:
            await landing.follow()
            return
        while size_of(self.file) > landing.offset < landing.entry.size_bytes:
            await landing.fill(lambda view: self._take(view, landing.offset))

    def _take(self, view: memoryview, offset: int) -> int:
        with disk_errors(), self.file.open("r+b", buffering=0) as file:
            _make_hole(file.fileno(), self._forgotten, offset - self._forgotten)
            self._forgotten = offset
            return os.preadv(file.fileno(), [view], offset)

    def _find_basis(self, directory: Path, old: Path) -> None:
        if old.is_symlink() or not old.is_file():
            return
        directory.mkdir()
        with contextlib.suppress(OSError):
            os.link(old, directory / self.file.name)
            self.basis = directory


@contextlib.asynccontextmanager
async def set_aside(landing: Landing, request: Request, path: str) -> AsyncIterator[Aside]:
    name = path.rsplit("/", 1)[1]
    if name in ("", ".", ".."):
        raise PathEscapes(f"{path!r} names no file")
    parent = same_disk_directory(landing.root, landing.path, "rsync")
    directory = parent / partial_name(request.transfer, request.entry)
    try:
        aside = await finish(lambda: Aside.make(directory, name, landing))
        if aside.basis is not None:
            yield aside
            return
        async with landing.shared(aside.file):
            yield aside
    finally:
        await finish(lambda: shutil.rmtree(directory, ignore_errors=True))


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def sweep(directory: Path) -> None:
    """Remove a directory, and those beside it that a process which died has left."""
    shutil.rmtree(directory, ignore_errors=True)
    oldest = time.time() - PARTIAL_MAX_AGE_S
    for other in directory.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if other.stat().st_mtime < oldest:
                shutil.rmtree(other, ignore_errors=True)


def _make_hole(handle: int, offset: int, length: int) -> None:
    """Give back the room of these bytes; where that is not possible they stay."""
    if length > 0 and _fallocate is not None:
        _fallocate(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def _found_fallocate() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "fallocate", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function


_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_fallocate = _found_fallocate()
