"""A directory that one process works on at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


class DirectoryInUse(Exception):
    """Another process of the data plane works on this directory."""


def hold(directory: Path) -> IO[str]:
    """Keep `directory` for this process until the result is closed, or the process ends.

    Raises DirectoryInUse, with the directory and who has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise DirectoryInUse(
            f"{directory} is in use by {holder}: end that first, or take another --state-dir"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()}")
    lock.flush()
    return lock
