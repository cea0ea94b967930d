"""What ends an attempt to move bytes: the class says what to do next.

An error speaks of this attempt only; whether there is another is decided outside.
"""

from __future__ import annotations


class TransportError(Exception):
    """Base of all that ends an attempt. The class says what to do next."""

    #: Whether the same attempt, made again later, may succeed.
    retryable = True
    #: Whether another transport to the same source may succeed now.
    try_next_transport = True


def told_as(kind: type[BaseException]) -> str:
    """The name by which others are told of an error: that of the nearest class here, for what comes
    next is decided by these alone. What is none of them keeps its own.
    """
    for known in kind.__mro__:
        if known.__module__ == __name__ and known is not TransportError:
            return known.__name__
    return kind.__name__


class Unreachable(TransportError):
    """Nobody answers there: refused, no route, name not found. Another transport may work."""


class Refused(TransportError):
    """The source answered and will not give it: token, permission, protocol."""


class EntryMissing(TransportError):
    """The source does not hold this content any more. Another source may."""

    try_next_transport = False


class Stalled(TransportError):
    """No byte came for too long; what has come is kept, the next attempt goes on from there."""


class Interrupted(TransportError):
    """The connection broke off; what has come is kept."""


class Overtaken(Interrupted):
    """Somebody else has written this meanwhile; look again."""


class TimedOut(TransportError):
    """The attempt took longer than it was given; what has come is kept."""


class DigestMismatch(TransportError):
    """All bytes came and they are not the entry's. Nothing is kept."""


class CheckFailed(TransportError):
    """The bytes are the entry's, but they are no sound file of their type. It is quarantined."""

    retryable = False
    try_next_transport = False


class DiskFull(TransportError):
    """The target has no room for the entry and its reserve."""

    try_next_transport = False


class PathEscapes(TransportError):
    """The entry's path would leave the data directory."""

    retryable = False
    try_next_transport = False


class Superseded(TransportError):
    """The target holds a later version of this path; an older one may not replace it."""

    retryable = False
    try_next_transport = False


class Regression(TransportError):
    """The entry is much smaller than the training set it would replace: likely a broken export."""

    retryable = False
    try_next_transport = False


class NeverReplaced(TransportError):
    """What stands at the entry's path may only be merged into, or is no file."""

    retryable = False
    try_next_transport = False


class InUse(TransportError):
    """Another attempt at the same transfer still writes; its bytes and ours must not mix."""

    try_next_transport = False


class DiskFailed(TransportError):
    """The target's disk would not take the bytes: read-only, no permission, defective."""

    try_next_transport = False


class Unforeseen(TransportError):
    """Something that nobody thought of ended the attempt; the node's own log says where."""
