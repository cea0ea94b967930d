"""Blocks that need not travel: those in the older version, and in the files here used last.

Files are only read, and nothing they hold is believed: a block is put where it fits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters.files.blocks import BlockMap, runs_in
from adapters.files.maps import MapStore
from adapters.files.scattered import Scattered
from adapters.p2p.asking import Locate

#: Other contents that are looked through, those used last.
MOST_CONTENTS = 32


@contextlib.contextmanager
def older_version(path: Path) -> Iterator[int | None]:
    """The file that stands at the entry's place now, opened; None if there is none. Blocks."""
    handle = -1
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield handle if handle >= 0 else None
    finally:
        if handle >= 0:
            os.close(handle)


def take_same(
    handle: int, scattered: Scattered, blocks: range, stopped: Callable[[], bool]
) -> list[int]:
    """Put those of some blocks in a row that an older version has at the same place; return which
    are lacking then. Blocks.
    """
    block = scattered.map.block_bytes
    size = min(os.fstat(handle).st_size, scattered.map.size_bytes, blocks.stop * block)
    for first, data in runs_in(handle, size, block, blocks.start):
        if stopped():
            break
        scattered.put(first, data)
    return [index for index in blocks if not scattered.holds(index, 1)]


def take_elsewhere(
    scattered: Scattered, maps: MapStore, locate: Locate, stopped: Callable[[], bool]
) -> int:
    """Put the blocks that other contents of this node have anywhere; return how many. Blocks."""
    lacking = _lacking(scattered)
    found = 0
    for checksum, other in maps.newest(MOST_CONTENTS):
        if not lacking or stopped():
            break
        path = locate(checksum)
        if path is not None and other.block_bytes == scattered.map.block_bytes:
            with contextlib.suppress(OSError):
                found += _take_from(path, other, scattered, lacking)
    return found


def _lacking(scattered: Scattered) -> dict[bytes, list[int]]:
    """Which blocks are lacking, by digest."""
    lacking: dict[bytes, list[int]] = {}
    for index, there in enumerate(scattered.have()):
        if not there:
            lacking.setdefault(scattered.map.digest(index), []).append(index)
    return lacking


def _take_from(
    path: Path, other: BlockMap, scattered: Scattered, lacking: dict[bytes, list[int]]
) -> int:
    found = 0
    for theirs in range(other.count):
        indices = lacking.get(other.digest(theirs))
        if not indices:
            continue
        offset, length = other.span(theirs)
        with path.open("rb", buffering=0) as file:
            data = memoryview(os.pread(file.fileno(), length, offset))
        for index in list(indices):
            if len(data) == scattered.map.span(index)[1] and not scattered.put(index, data):
                indices.remove(index)
                found += 1
        if not indices:
            del lacking[other.digest(theirs)]
    return found
