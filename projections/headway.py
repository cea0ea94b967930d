"""Whether an attempt that failed has made headway: brought a real share of its file, and kept it.

It is no failure of the way, nor one of the attempts that are counted: the next one goes on from
there. Pure, and a part of the folds: nothing here may be configured.
"""

from __future__ import annotations

from collections.abc import Sequence

from streams.values import TransportResult

#: So much is headway, or a hundredth of the file if that is less.
SHARE_BYTES = 1 << 20
SHARES = 100
#: Of what moves more often than so, headway is no more: whoever says that it came does not keep it.
#: A relay moves it twice.
MOST_TIMES = 3
#: Failures after which nothing is kept of what came.
NOTHING_KEPT = frozenset({"DigestMismatch", "CheckFailed"})


def is_headway(moved: int, size_bytes: int) -> bool:
    """Whether so many bytes are a real share of a file of this size."""
    return moved >= max(1, min(SHARE_BYTES, -(-size_bytes // SHARES)))


def made_headway(result: TransportResult, size_bytes: int) -> bool:
    """Whether one try over one transport failed, but brought the file on."""
    kept = not result.success and result.error_class not in NOTHING_KEPT
    return kept and is_headway(result.bytes_transferred, size_bytes)


def kept_bytes(results: Sequence[TransportResult]) -> int:
    """Bytes that the tries of an attempt moved and that the next attempt finds there."""
    kept = 0
    for result in results:
        kept = 0 if result.error_class in NOTHING_KEPT else kept + result.bytes_transferred
    return kept
