"""A directory that one process works on at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from adapters.files.places import LOCK


class DirectoryInUse(Exception):
    """Another process of the data plane works on this directory."""


def hold(directory: Path) -> IO[str]:
    """Keep `directory` for this process until the result is closed, or the process ends.

    Raises DirectoryInUse, with the directory and who has it.
    """
    lock = _opened(directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise DirectoryInUse(
            f"{directory} is in use by {holder}: end that first, or take another directory"
        ) from None
    with contextlib.suppress(OSError):
        # Only a word to whoever comes: a disk that is full or can't be written keeps nobody out.
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()}".encode())
    return lock


def _opened(directory: Path) -> IO[str]:
    """The file of the lock; where it can't be written, it may still be there to be locked."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return (directory / LOCK).open("a+")
    except OSError:
        with contextlib.suppress(OSError):
            return (directory / LOCK).open()
        raise
