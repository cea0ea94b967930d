"""Words of other processes that are no facts: decoded to what they should be, or one error.

A decoder has many ways to fail on bytes that somebody else made: no JSON, no text, too deep, not of
the type. Who listens must survive them all.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")
_FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Unreadable(ValueError):
    """These bytes are not what was expected of whoever said them."""


def from_json(body: bytes, kind: type[T]) -> T:
    """JSON as a `kind`. Raises `Unreadable`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except _FAILURES as error:
        raise Unreadable(f"no {kind.__name__}: {error}") from error


def from_msgpack(body: bytes, kind: type[T]) -> T:
    """MessagePack as a `kind`. Raises `Unreadable`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except _FAILURES as error:
        raise Unreadable(f"no {kind.__name__}: {error}") from error
