"""What nodes that fetch the same content tell each other: which pieces each of them has.

It goes over whatever carries words that nobody keeps. What is lost is told again; what makes no
sense is ignored.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from adapters.files.blocks import BlockMap, piece_blocks_of
from adapters.files.digest import hex_of
from streams.foreign import Unreadable, from_msgpack

SUBJECT = "dp.have."
_LONGEST = 1 << 20


class Gossip(Protocol):
    """Words for whoever listens now."""

    def tell(self, subject: str, body: bytes) -> None:
        """Say something. Never waits, never fails; it may be lost."""

    def listen(self, subject: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """What is told under a subject from now on."""


class Having(msgspec.Struct, frozen=True, array_like=True):
    """What one node has of one content."""

    node: str
    #: Where it serves it.
    url: str
    whole: bool = False
    #: A bit for each piece, the lowest first; empty if `whole`.
    pieces: bytes = b""

    def encode(self) -> bytes:
        """As it is told."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, body: bytes) -> Having | None:
        """What was told; None if it makes no sense."""
        if len(body) > _LONGEST:
            return None
        try:
            return from_msgpack(body, cls)
        except Unreadable:
            return None


def subject_of(checksum: str) -> str:
    """Where it is told who has what of a content."""
    return SUBJECT + hex_of(checksum)[:16]


def pieces_in(block_map: BlockMap, have: bytes) -> bytes:
    """The pieces of which all blocks are there, a bit each; `have` is a byte for each block."""
    step = piece_blocks_of(block_map.size_bytes)
    pieces = bytearray(-(-len(have) // (8 * step)))
    for number, first in enumerate(range(0, len(have), step)):
        if 0 not in have[first : first + step]:
            pieces[number >> 3] |= 1 << (number & 7)
    return bytes(pieces)


def bits_in(pieces: bytes, count: int) -> int:
    """The pieces that a peer says it has, of `count`: a bit each, the lowest first."""
    return int.from_bytes(pieces[: -(-count // 8)], "little") & ((1 << count) - 1)
