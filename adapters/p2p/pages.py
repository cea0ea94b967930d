"""Deltas: the pages in which a block at the target differs from the block it is to become.

Who lacks a block sends the digests of its own old pages, and gets those that differ. What comes is
not believed: a block put together from old and new pages is checked as any other is.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import IO, cast

import msgspec
import zstandard

from adapters.errors import Refused
from adapters.files.blocks import (
    LEAF_BYTES,
    LEAF_DIGEST_BYTES,
    BlockMap,
    block_bytes_of,
    leaf_digests,
)

_INDEX = struct.Struct("<I")
#: The most that one question may be answered with.
MOST_BYTES = 8 << 20
#: Pages of databases shrink to a third at little cost.
_LEVEL = 1


class MalformedPages(Refused):
    """What came as a question for pages, or as its answer, is none."""


class Old(msgspec.Struct, frozen=True):
    """A block that is lacking, and the digests of the pages that stand in its place."""

    index: int
    leaves: bytes


def most_blocks(block_bytes: int) -> int:
    """How many blocks may be asked about at once."""
    return max(1, MOST_BYTES // block_bytes)


def encode_question(olds: Sequence[Old]) -> bytes:
    """As it is sent."""
    return b"".join(_INDEX.pack(old.index) + old.leaves for old in olds)


def decode_question(body: bytes, size_bytes: int) -> list[Old]:
    """What is asked of a content of this size. Raises `MalformedPages`."""
    block = block_bytes_of(size_bytes)
    olds: list[Old] = []
    at = 0
    while at < len(body):
        if len(body) < at + _INDEX.size or len(olds) == most_blocks(block):
            raise MalformedPages("no question for pages, or too long a one")
        (index,) = _INDEX.unpack_from(body, at)
        length = min(block, size_bytes - index * block)
        if length <= 0:
            raise MalformedPages(f"there is no block {index}")
        at += _INDEX.size
        end = at + _leaf_count(length) * LEAF_DIGEST_BYTES
        if end > len(body):
            raise MalformedPages("a question for pages that ends early")
        olds.append(Old(index, body[at:end]))
        at = end
    return olds


def answer(olds: Sequence[Old], read: Callable[[int], bytes | None], compress: bool) -> bytes:
    """The pages of blocks that differ; `read` gives a block, None if it is not here. Blocks."""
    parts: list[bytes] = []
    for old in olds:
        data = read(old.index)
        if data is None:
            parts.append(b"\0")
            continue
        differing = _differing(old.leaves, leaf_digests(data))
        mask = sum(1 << leaf for leaf in differing)
        parts.append(b"\1" + mask.to_bytes(-(-_leaf_count(len(data)) // 8), "little"))
        parts += [data[leaf * LEAF_BYTES : (leaf + 1) * LEAF_BYTES] for leaf in differing]
    whole = b"".join(parts)
    return zstandard.ZstdCompressor(level=_LEVEL).compress(whole) if compress else whole


def decode_answer(
    read: Callable[[int], bytes], olds: Sequence[Old], block_map: BlockMap
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """For each block that the peer has: its index, and its differing pages by number.

    `read` gives the next so many bytes, fewer at the end. Raises `MalformedPages`.
    """

    def exactly(count: int) -> bytes:
        data = read(count)
        if len(data) != count:
            raise MalformedPages("an answer that ends early")
        return data

    for old in olds:
        if exactly(1) == b"\0":
            continue
        _, length = block_map.span(old.index)
        leaves = _leaf_count(length)
        mask = int.from_bytes(exactly(-(-leaves // 8)), "little")
        yield (
            old.index,
            {
                leaf: exactly(min(LEAF_BYTES, length - leaf * LEAF_BYTES))
                for leaf in range(leaves)
                if mask >> leaf & 1
            },
        )


def unpacked(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """`read` through decompression, in memory bounded by what is asked for."""

    class Source(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            return read(size)

    source = cast(IO[bytes], Source())
    stream = zstandard.ZstdDecompressor(max_window_size=MOST_BYTES).stream_reader(source)

    def exactly(count: int) -> bytes:
        try:
            parts = []
            while count and (data := stream.read(count)):
                parts.append(data)
                count -= len(data)
            return b"".join(parts)
        except zstandard.ZstdError as error:
            raise MalformedPages(f"an answer that is not compressed as it says: {error}") from error

    return exactly


def patched(block: bytearray, pages: dict[int, bytes]) -> bytearray:
    """An old block with its new pages in place."""
    for leaf, page in pages.items():
        block[leaf * LEAF_BYTES : leaf * LEAF_BYTES + len(page)] = page
    return block


def _leaf_count(length: int) -> int:
    return -(-length // LEAF_BYTES)


def _differing(old: bytes, new: bytes) -> list[int]:
    step = LEAF_DIGEST_BYTES
    return [
        at // step for at in range(0, len(new), step) if old[at : at + step] != new[at : at + step]
    ]
