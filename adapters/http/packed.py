"""Contents that shrink on their way: packed as they are sent, each answer by itself.

What is packed is for who asks, and may be refused: digests and offsets are always of the plain
bytes. Nothing here decides what a link is worth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import zstandard

from adapters.errors import Interrupted
from adapters.files.checks import is_database
from adapters.http.peer import Peer
from adapters.p2p.pages import MalformedPages, unpacked

PACKED = "zstd"
#: On a faster link, packing costs more than it saves.
PACKED_BELOW_BYTES_S = 50e6
#: Databases and text shrink to a third or less at little cost; archives and models not at all.
_SHRINKING = {".jsonl", ".json", ".csv", ".txt", ".log"}
_LEVEL = 1
_PIECE_BYTES = 1 << 20


def shrinks(path: str) -> bool:
    """Whether contents of this name are worth packing."""
    return is_database(path) or PurePosixPath(path).suffix.lower() in _SHRINKING


def pack(handle: int, first: int, count: int) -> Iterator[bytes]:
    """A range of a file, packed, in pieces. Blocks; each piece belongs in a thread.

    A file that has become shorter ends too early, without the end of what is packed.
    """
    packer = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
    at, end = first, first + count
    while at < end:
        data = os.pread(handle, min(_PIECE_BYTES, end - at), at)
        if not data:
            return
        at += len(data)
        yield packer.compress(data)
    yield packer.flush()


class Unpacking:
    """The body of an answer, plain again, in memory bounded by what is asked for. Blocks."""

    def __init__(self, peer: Peer, *, packed: bool) -> None:
        self._peer = peer
        self._plain = unpacked(self._read) if packed else self._read
        self._came = 0

    def next(self, most: int) -> tuple[bytes, int]:
        """The next bytes, and how many came over the wire for them. Raises `Interrupted`."""
        before = self._came
        try:
            data = self._plain(most)
        except MalformedPages as error:
            raise Interrupted(f"{self._peer.node}: {error}") from error
        if not data:
            raise Interrupted(f"{self._peer.node} ended {self._peer.about} early")
        return data, self._came - before

    def _read(self, count: int) -> bytes:
        data = self._peer.read(count)
        self._came += len(data)
        return data
