"""A told story as messages and as an archive in memory, for tests of what reads a kept log."""

from __future__ import annotations

from collections.abc import Sequence

from streams.codec import STREAM, Fact, Recorded, encode
from streams.kept import ArchivedLog
from streams.segments import ArchiveManifest, SegmentInfo, packed
from streams.stored import Stored
from tests.spec import CREATED


def stored(facts: Sequence[Recorded]) -> list[Stored]:
    """The messages that these facts were; what could not be understood comes as some garbage."""
    return [_message(fact) for fact in facts]


def _message(fact: Recorded) -> Stored:
    time_ns = round(fact.time * 1e9)
    if fact.event is None or fact.id.startswith(STREAM):
        return Stored(fact.sequence, time_ns, fact.subject, {}, b"\xff")
    chain = "" if fact.subject.startswith("dp.chain.") else fact.chain
    said = Fact(fact.event, fact.subject, fact.id, chain, fact.cause, "somebody")
    headers, body = encode(said, fact.time)
    return Stored(fact.sequence, time_ns, fact.subject, headers, body)


class MemoryBlobs:
    """Blobs in a dictionary; see `adapters.blobs.Blobs`."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.where = "memory"

    async def load(self, segment: SegmentInfo) -> bytes:
        """The bytes of a segment."""
        return self.held[segment.name]


def archive(messages: Sequence[Stored], *, per_segment: int = 7) -> tuple[ArchivedLog, MemoryBlobs]:
    """An archive of these messages, cut into small segments."""
    blobs, segments, previous = MemoryBlobs(), [], ""
    for at in range(0, len(messages), per_segment):
        info, data = packed(messages[at : at + per_segment], CREATED, previous)
        blobs.held[info.name] = data
        segments.append(info)
        previous = info.digest
    return ArchivedLog(ArchiveManifest(CREATED, tuple(segments)), blobs.load), blobs
