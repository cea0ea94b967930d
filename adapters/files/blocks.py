"""Block maps: a digest for each block of a content, so that its bytes may come in any order and
from anywhere.

A map only finds differences: whether the whole is what it should be is decided by the SHA-256 of
its entry, at landing, and by nothing here. So a map may come from a stranger: a wrong one costs
time. Its shape follows from the content's size alone, which bounds what a stranger can send.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import msgspec
import xxhash

from adapters.errors import Refused
from adapters.memory import room

#: Pages of a database, the unit of a delta: second level, never kept, digested when asked for.
LEAF_BYTES = 4 << 10
#: The unit of verification, unless there would be too many of them.
BLOCK_BYTES = 64 << 10
MOST_BLOCKS = 1 << 17
DIGEST_BYTES = 16
LEAF_DIGEST_BYTES = 8
#: What is asked of a peer at once: small enough to spread, large enough to be worth a request.
SMALLEST_PIECE_BYTES, LARGEST_PIECE_BYTES = 256 << 10, 1 << 20
PIECES = 128

_HEADER = struct.Struct("<4sIQ")
_MAGIC = b"dpb1"
_READ_BYTES = 1 << 20


class MalformedMap(Refused):
    """What a peer sent as a block map is none of this content."""


class BlockMap(msgspec.Struct, frozen=True):
    """The digests of a content's blocks, one after the other."""

    size_bytes: int
    block_bytes: int
    digests: bytes

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.digests) // DIGEST_BYTES

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a block, in bytes."""
        offset = index * self.block_bytes
        return offset, min(self.block_bytes, self.size_bytes - offset)

    def digest(self, index: int) -> bytes:
        """The digest of a block."""
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def fits(self, index: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these bytes are that block."""
        return block_digest(data) == self.digest(index)

    def encode(self) -> bytes:
        """As it is kept and sent."""
        return _HEADER.pack(_MAGIC, self.block_bytes, self.size_bytes) + self.digests

    @classmethod
    def parse(cls, data: bytes) -> BlockMap:
        """A map that says itself of how large a content it is. Raises `MalformedMap`."""
        if len(data) < _HEADER.size:
            raise MalformedMap("too short for a block map")
        return cls.decode(data, _HEADER.unpack_from(data)[2])

    @classmethod
    def decode(cls, data: bytes, size_bytes: int) -> BlockMap:
        """A map of a content of this size. Raises `MalformedMap` if it is none."""
        if len(data) != encoded_bytes(size_bytes):
            raise MalformedMap(f"{len(data)} bytes are no block map of {size_bytes}")
        magic, block, size = _HEADER.unpack_from(data)
        if (magic, block, size) != (_MAGIC, block_bytes_of(size_bytes), size_bytes):
            raise MalformedMap(f"a block map of another kind, or not of {size_bytes} bytes")
        return cls(size_bytes, block, data[_HEADER.size :])


def block_bytes_of(size_bytes: int) -> int:
    """How large the blocks of a content of this size are: everywhere the same."""
    block = BLOCK_BYTES
    while size_bytes > block * MOST_BLOCKS:
        block *= 2
    return block


def block_count_of(size_bytes: int) -> int:
    """How many blocks a content of this size has."""
    return -(-size_bytes // block_bytes_of(size_bytes))


def piece_blocks_of(size_bytes: int) -> int:
    """How many blocks are asked for at once where a content of this size is spread."""
    wanted = min(max(size_bytes // PIECES, SMALLEST_PIECE_BYTES), LARGEST_PIECE_BYTES)
    return max(1, wanted // block_bytes_of(size_bytes))


def encoded_bytes(size_bytes: int) -> int:
    """How long the map of a content of this size is."""
    return _HEADER.size + DIGEST_BYTES * block_count_of(size_bytes)


def block_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The digest of a block: quick, and good against everything but intent."""
    return xxhash.xxh3_128_digest(data)


def leaf_digests(data: bytes | bytearray | memoryview) -> bytes:
    """The digests of a block's pages, one after the other."""
    view = memoryview(data)
    return b"".join(
        xxhash.xxh3_64_digest(view[at : at + LEAF_BYTES]) for at in range(0, len(view), LEAF_BYTES)
    )


class Mapping:
    """Makes the map of a content that somebody reads anyway, from its beginning on."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes_of(size_bytes)
        self._digests = bytearray()
        self._seen_bytes = 0

    def add(self, data: memoryview) -> None:
        """The next bytes: whole blocks, but for the last ones."""
        if self._seen_bytes % self._block_bytes == 0:
            for at in range(0, len(data), self._block_bytes):
                self._digests += block_digest(data[at : at + self._block_bytes])
        self._seen_bytes += len(data)

    def made(self) -> BlockMap | None:
        """The map; None if other bytes came than were expected."""
        whole = len(self._digests) == DIGEST_BYTES * block_count_of(self._size_bytes)
        if self._seen_bytes != self._size_bytes or not whole:
            return None
        return BlockMap(self._size_bytes, self._block_bytes, bytes(self._digests))


def map_of(handle: int, size_bytes: int) -> BlockMap:
    """The map of an open file's first `size_bytes`. Blocks; belongs in a thread.

    Raises `OSError`, also where the file is shorter.
    """
    block = block_bytes_of(size_bytes)
    digests = bytearray()
    for _, data in blocks_in(handle, size_bytes, block):
        digests += block_digest(data)
    if len(digests) != encoded_bytes(size_bytes) - _HEADER.size:
        raise OSError(f"the file ended before its {size_bytes} bytes")
    return BlockMap(size_bytes, block, bytes(digests))


def blocks_in(handle: int, size_bytes: int, block_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """The blocks of an open file up to `size_bytes`, by index, until it ends. Blocks.

    What is given is used again for the next ones.
    """
    for first, data in runs_in(handle, size_bytes, block_bytes):
        for index, at in enumerate(range(0, len(data), block_bytes), first):
            yield index, data[at : at + block_bytes]


def runs_in(
    handle: int, size_bytes: int, block_bytes: int, first: int = 0
) -> Iterator[tuple[int, memoryview]]:
    """As `blocks_in` from block `first` on, some in a row at a time, by the index of the first."""
    offset = first * block_bytes
    at_once = max(1, _READ_BYTES // block_bytes) * block_bytes
    buffer = room(max(1, min(at_once, size_bytes - offset)))
    while offset < size_bytes:
        count = _read_all(handle, buffer[: size_bytes - offset], offset)
        if count:
            yield offset // block_bytes, buffer[:count]
        if count < len(buffer):
            return
        offset += count


def _read_all(handle: int, view: memoryview, offset: int) -> int:
    """Fill `view` from there, or less of it where the file ends; return how much."""
    done = 0
    while done < len(view):
        count = os.preadv(handle, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done
