"""What a fold is, and how its keys and rows are written.

A fold is total: it takes every fact as it happened, holds no rule and asks no clock. Its identity
is (name, version): change what it writes and raise the version, then it is rebuilt.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import msgspec

from projections.store import Writer
from streams.codec import Recorded
from streams.events import Event

R = TypeVar("R")
#: Folds one fact of one type: the transaction, the event, and the fact it came in.
Handler = Callable[[Writer, Any, Recorded], None]


class View(Protocol):
    """A fold of the log into tables of its own."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def tables(self) -> tuple[str, ...]: ...

    @property
    def folds(self) -> Mapping[type[Event], Handler]:
        """What folds a fact of each type; the others mean nothing to this view.

        Called once per sequence, in order. It may read the tables of views that stand before it
        in `fold.VIEWS`.
        """


class Row(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True, gc=False):
    """Base of rows: stored as MessagePack arrays, so field order is part of a view's version.

    As `streams.values.Value`, they are nothing that the garbage collector need look at.
    """


def unpacker(cls: type[R]) -> msgspec.msgpack.Decoder[R]:
    """A decoder for rows of a class; make it once."""
    return msgspec.msgpack.Decoder(cls)


def number(value: int) -> bytes:
    """A sequence as a key part that sorts."""
    return value.to_bytes(8, "big")


def moment(seconds: float) -> bytes:
    """A time since 1970 as a key part that sorts."""
    # Big-endian bytes of a positive double sort as the number does.
    return struct.pack(">d", max(0.0, seconds))


def text_key(*parts: str) -> bytes:
    """Names as a key; each ends with a zero byte, so a prefix never matches half a name."""
    return "\x00".join(parts).encode() + b"\x00"


@lru_cache(1 << 14)
def digest_key(*parts: str) -> bytes:
    """16 bytes that stand for a text of any length, such as a path.

    Remembered, because the facts of one chain all speak of the same few.
    """
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).digest()
