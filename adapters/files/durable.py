"""Making names, growing files and many files durable, with as few calls to the disk as can be
trusted.

One call flushes a whole file system. It is only made where the kernel is known to tell afterwards
what it lost: elsewhere every file must be flushed by itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from adapters.workers import DISK

#: So much is flushed at a time while more comes.
FLUSH_BYTES = 32 << 20
#: Less than this costs more to be flushed twice than is won by beginning early.
REST_BYTES = 8 << 20
#: Of others, some (network, FUSE, overlays) say all is well when not all of it is.
_HONEST = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs"})
#: Older kernels forget what a file system lost before they are asked.
_OLDEST_KERNEL = (5, 8)
_MOUNTS = Path("/proc/self/mountinfo")
#: The system counts seconds in 64 bits.
_NO_CLOCK_S = 2.0**63


def set_mtime(handle: int, mtime: float) -> None:
    """Give a file its time, if there is one. What no clock can show is left out: the time of a file
    is no reason to do without its bytes. Blocks.
    """
    if 0 < mtime < _NO_CLOCK_S:
        time_ns = int(mtime * 1e9)
        os.utime(handle, ns=(time_ns, time_ns))


class Flushing:
    """Flushes one file while more is written to it, so that little is left in the end.

    One thread at a time. A disk says only once that it lost something: all of these raise it as
    `OSError`, but `settle`.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._unflushed = 0
        self._last: Future[None] | None = None

    def wrote(self, nbytes: int) -> None:
        """So much more was written; begin to flush if it is much."""
        self._unflushed += nbytes
        if self._unflushed >= FLUSH_BYTES and (self._last is None or self._last.done()):
            self.wait()
            self.rest()

    def rest(self) -> None:
        """No more is written for now: begin to flush what was, unless it is little."""
        if self._unflushed >= REST_BYTES:
            self._unflushed = 0
            self._last = DISK.submit(self._flush, self._last)

    def wait(self) -> None:
        """Wait until all is flushed that was begun to be. Blocks, also in a thread of `DISK`: what
        was submitted there before has begun by now.
        """
        if self._last is not None:
            self._last.result()

    def settle(self) -> None:
        """As `wait`, whatever came of it."""
        if self._last is not None:
            self._last.exception()

    def _flush(self, former: Future[None] | None) -> None:
        if former is not None:
            former.result()
        os.fdatasync(self._handle)


class Disk:
    """The file system that a directory lies on, open so that what it loses from now on is told."""

    def __init__(self, directory: Path) -> None:
        """Raises `OSError`."""
        #: Of the directory.
        self.handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Whether `sync` may be asked instead of flushing file by file.
        self.can_sync = _is_honest(os.fstat(self.handle).st_dev)

    def sync(self) -> None:
        """Flush all that was written there, by whomever. Blocks. Raises `OSError`."""
        if _libc.syncfs(self.handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def close(self) -> None:
        """Let go of it. May be called twice."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


def fsync_directories(lowest: Path, highest: Path) -> None:
    """Make names in `lowest` and in all directories above it, up to `highest`, durable."""
    fsync_above([lowest / "any"], highest)


def fsync_above(paths: Iterable[Path], highest: Path) -> None:
    """Make the names of `paths` durable, and those of directories above, up to those in `highest`.

    Each directory is flushed once.
    """
    done: set[Path] = set()
    for path in paths:
        for directory in path.parents:
            if directory in done:
                break
            done.add(directory)
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            if directory == highest:
                break


_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def _is_honest(device: int) -> bool:
    if sys.platform != "linux" or not hasattr(_libc, "syncfs"):
        return False
    kernel = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if kernel is None or tuple(map(int, kernel.groups())) < _OLDEST_KERNEL:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = {
        line.partition(" - ")[2].split(" ", 1)[0]
        for line in _MOUNTS.read_text(errors="replace").splitlines()
        if line.split(" ", 3)[2] == number
    }
    return bool(kinds) and kinds <= _HONEST
