"""SHA-256 of files: whole contents only, never a sample."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from adapters.memory import room

#: A thread gives up the interpreter for each block: small blocks starve beside a busy event loop.
BLOCK_BYTES = 4 << 20


class Stopped(Exception):
    """Someone asked to stop before the end."""


def checksum_of(
    path: Path,
    stopped: Callable[[], bool] = lambda: False,
    also: Callable[[memoryview], None] = lambda data: None,
) -> str:
    """``sha256:<hex>`` of a whole file. Blocks; belongs in a thread.

    `also` is shown all bytes in order, for whoever wants more of one reading. Raises `OSError` if
    it cannot be read, `Stopped` if `stopped` says so between two blocks.
    """
    with path.open("rb", buffering=0) as file:
        return named(feed(hashlib.sha256(), file, stopped=stopped, also=also))


def checksum_on_disk(
    path: Path,
    stopped: Callable[[], bool] = lambda: False,
    also: Callable[[memoryview], None] = lambda data: None,
) -> str:
    """As `checksum_of`, of what the disk holds rather than of what memory remembers of it.

    Pages that were not written yet stay in memory: they are newer than the disk.
    """
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return named(feed(hashlib.sha256(), file, stopped=stopped, also=also))


def feed(
    sha: hashlib._Hash,
    file: BinaryIO,
    stopped: Callable[[], bool] = lambda: False,
    also: Callable[[memoryview], None] = lambda data: None,
) -> hashlib._Hash:
    """`sha`, fed with all that `file` holds from where it stands, in flat memory."""
    # A block is zeroed when it is made, which takes longer than to digest a small file.
    size = os.fstat(file.fileno()).st_size
    block = room(min(BLOCK_BYTES, size + 1))
    while count := file.readinto(block):  # type: ignore[attr-defined]
        if stopped():
            raise Stopped
        sha.update(block[:count])
        also(block[:count])
    return sha


def named(sha: hashlib._Hash) -> str:
    """A digest as the wire writes it."""
    return f"sha256:{sha.hexdigest()}"


def hex_of(checksum: str) -> str:
    """The 64 hexadecimal digits of a checksum, fit for a file's name."""
    return checksum.removeprefix("sha256:")
