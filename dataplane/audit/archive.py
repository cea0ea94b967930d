"""The archive of the log: how it grows, how it is proven, and how a log comes back from it.

Segments are written before the manifest that names them, and none is ever changed or deleted. What
is missing or damaged is told by name; it is never passed over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import msgspec

from adapters.blobs import Blobs
from adapters.errors import EntryMissing, TransportError
from streams.jetstream import JetStreamLog
from streams.joined import JoinedLog
from streams.kept import ArchivedLog
from streams.log import LogError, LogState, NoLongerHeld, StoredLog
from streams.restoring import Restoring, durable_consumers, restore
from streams.segments import (
    MANIFEST_NAME,
    SEGMENT_BYTES,
    ArchiveDamaged,
    ArchiveManifest,
    ConsumerInfo,
    SegmentInfo,
    manifest_of,
    manifest_text,
    packed,
    unpacked,
)
from streams.stored import Stored


class ArchiveMismatch(LogError):
    """Log and archive are not of one history; going on would mix two."""


class Archived(msgspec.Struct, frozen=True):
    """What a run of the archive did."""

    where: str
    #: New messages, and the last one that the archive holds now.
    messages: int
    last_sequence: int
    segments: int
    #: Compressed, of what was written.
    bytes_written: int


class Proven(msgspec.Struct, frozen=True):
    """An archive that was read through and found whole."""

    where: str
    segments: int
    first_sequence: int
    last_sequence: int
    size_bytes: int
    text_bytes: int


async def manifest_at(blobs: Blobs) -> tuple[ArchiveManifest, str]:
    """What an archive holds, and the version of its manifest. Raises EntryMissing for none."""
    try:
        data, version = await blobs.get(MANIFEST_NAME)
    except EntryMissing:
        raise EntryMissing(f"{blobs.where} is no archive: it has no {MANIFEST_NAME}") from None
    return manifest_of(data, f"{blobs.where}/{MANIFEST_NAME}"), version


async def segment_at(blobs: Blobs, segment: SegmentInfo) -> bytes:
    """The bytes of a segment that the manifest names. Raises ArchiveDamaged if it is missing."""
    try:
        data, _ = await blobs.get(segment.name)
    except EntryMissing as error:
        raise ArchiveDamaged(
            f"{segment.name} is missing: sequences {segment.first} to {segment.last} ({error})"
        ) from None
    return data


async def archived(blobs: Blobs) -> ArchivedLog:
    """The log that an archive holds. Raises ArchiveDamaged, or EntryMissing if there is none."""
    manifest, _ = await manifest_at(blobs)
    return _log_of(blobs, manifest)


async def extend(
    blobs: Blobs, log: JetStreamLog, *, segment_bytes: int = SEGMENT_BYTES
) -> Archived:
    """Archive all that the log holds and the archive does not.

    Raises ArchiveMismatch where they are not of one history: the log was rolled back, is another
    one, or no longer holds what should come next. Of two that do it at once one is told, by
    `Overtaken`, and nothing is lost.
    """
    # Before the state: what was acknowledged is then in the archive for certain.
    consumers = tuple(await durable_consumers(log.connection))
    state = await log.state()
    try:
        manifest, version = await manifest_at(blobs)
    except EntryMissing:
        manifest, version = ArchiveManifest(state.origin), ""
    await _check_one_history(blobs, manifest, log, state)
    if manifest.last_sequence == state.last_sequence:
        return Archived(blobs.where, 0, state.last_sequence, len(manifest.segments), 0)
    before = manifest.last_sequence
    manifest, written = await _grow(blobs, manifest, log, state.last_sequence, segment_bytes)
    manifest = msgspec.structs.replace(manifest, consumers=consumers)
    await blobs.put(MANIFEST_NAME, manifest_text(manifest), replaces=version)
    new = manifest.last_sequence - max(before, manifest.first_sequence - 1)
    return Archived(blobs.where, new, manifest.last_sequence, len(manifest.segments), written)


async def prove(blobs: Blobs, progress: Callable[[SegmentInfo], None] = lambda _: None) -> Proven:
    """Read the whole archive: each segment is there, is its digest, and follows the one before.

    Raises ArchiveDamaged, naming the first that does not.
    """
    manifest, _ = await manifest_at(blobs)
    for segment in manifest.segments:
        unpacked(segment, await segment_at(blobs, segment), manifest.origin)
        progress(segment)
    return Proven(
        blobs.where,
        len(manifest.segments),
        manifest.first_sequence,
        manifest.last_sequence,
        sum(segment.size_bytes for segment in manifest.segments),
        sum(segment.text_bytes for segment in manifest.segments),
    )


def joined(log: StoredLog, blobs: Blobs) -> JoinedLog:
    """The live log, and what it holds no more from its archive, as one."""

    async def archive() -> StoredLog:
        try:
            return await archived(blobs)
        except (TransportError, OSError) as error:
            first = (await log.state()).first_sequence
            raise NoLongerHeld(
                f"the log begins at {first}; what comes before is in the archive, but {error}"
            ) from error

    return JoinedLog(log, archive)


async def compare(blobs: Blobs, log: StoredLog, first: int, last: int) -> None:
    """Hold the archive against the log, message by message: `first` to `last` are in both.

    Raises ArchiveMismatch with the first that is not, and ArchiveDamaged.
    """
    kept = await archived(blobs)
    ours, theirs = (each_message(one.messages(after=first - 1, until=last)) for one in (log, kept))
    async with aclosing(ours), aclosing(theirs):
        for sequence in range(first, last + 1):
            mine, archived_one = await anext(ours, None), await anext(theirs, None)
            if mine is None or mine.sequence != sequence or mine != archived_one:
                raise ArchiveMismatch(f"{blobs.where} does not hold message {sequence} as the log")


async def each_message(
    batches: AsyncGenerator[list[Stored], None],
) -> AsyncGenerator[Stored, None]:
    """One by one what comes in batches."""
    async with aclosing(batches):
        async for batch in batches:
            for message in batch:
                yield message


async def bring_back(
    blobs: Blobs,
    log: JetStreamLog,
    *,
    replicas: int = 1,
    bounded: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> LogState:
    """Restore the archived log onto an empty bus, consumers and all; the state of the log then.

    It can be called again after it was interrupted. Raises NotEmpty and ArchiveDamaged; of a
    damaged archive all that comes before the damage has been stored by then.
    """
    manifest, _ = await manifest_at(blobs)
    if not manifest.segments:
        raise ArchiveDamaged(f"{blobs.where}: there is nothing in it to restore")
    what = Restoring(
        manifest.origin,
        manifest.first_sequence,
        manifest.last_sequence,
        manifest.segments[-1].last_time_ns,
    )
    source = _log_of(blobs, manifest)
    await put_back(log, source, what, manifest.consumers, replicas, progress, bounded=bounded)
    return await log.state()


async def put_back(
    log: JetStreamLog,
    source: StoredLog,
    what: Restoring,
    consumers: tuple[ConsumerInfo, ...] = (),
    replicas: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    *,
    bounded: bool = False,
) -> None:
    """Store what a kept log holds on an empty bus; see `streams.restoring.restore`."""

    def behind(after: int) -> AsyncIterator[list[Stored]]:
        return source.messages(after=after, until=what.last)

    await restore(
        log.connection,
        what,
        behind,
        consumers,
        replicas=replicas,
        bounded=bounded,
        progress=progress,
    )
    await log.ensure_topology(replicas=replicas, bounded=bounded)


async def _check_one_history(
    blobs: Blobs, manifest: ArchiveManifest, log: StoredLog, state: LogState
) -> None:
    where, last = blobs.where, manifest.last_sequence
    if manifest.origin != state.origin:
        raise ArchiveMismatch(
            f"{where} is the archive of the log made {manifest.origin}, this is the one made "
            f"{state.origin}; give it another place"
        )
    if state.last_sequence < last:
        raise ArchiveMismatch(
            f"the log ends at {state.last_sequence}, but {where} holds it up to {last}: the log "
            "was rolled back; restore it from the archive, or give its new history another place"
        )
    if state.first_sequence > last + 1 and manifest.segments:
        raise ArchiveMismatch(
            f"the log begins at {state.first_sequence}, but {where} ends at {last}: what lies "
            "between was never archived"
        )
    if manifest.segments and state.first_sequence <= last:
        kept, live = await _log_of(blobs, manifest).get(last), await log.get(last)
        if kept is None or live is None or (kept.id, kept.time) != (live.id, live.time):
            raise ArchiveMismatch(
                f"the log holds another message at {last} than {where}: it was rolled back and "
                "written on"
            )


async def _grow(
    blobs: Blobs, manifest: ArchiveManifest, log: StoredLog, until: int, segment_bytes: int
) -> tuple[ArchiveManifest, int]:
    """The manifest with segments up to `until`, which are stored; and how many bytes those are."""
    segments, pending = list(manifest.segments), list[Stored]()
    after, size, written = manifest.last_sequence, 0, 0

    async def close() -> None:
        nonlocal pending, size, written
        held, previous = pending, segments[-1].digest if segments else ""
        # Small segments at the end are written anew as one, so that there are never many.
        while segments and segments[-1].text_bytes <= min(2 * size, segment_bytes // 2):
            small = segments.pop()
            data = await segment_at(blobs, small)
            held = unpacked(small, data, manifest.origin) + held
            size += small.text_bytes
            previous = small.previous
        info, data = packed(held, manifest.origin, previous)
        await blobs.put(info.name, data)
        segments.append(info)
        pending, size, written = [], 0, written + len(data)

    async with aclosing(log.messages(after=after, until=until)) as batches:
        async for batch in batches:
            for message in batch:
                pending.append(message)
                size += len(message.body) + 600
                if size >= segment_bytes:
                    await close()
    if pending:
        await close()
    return msgspec.structs.replace(manifest, segments=tuple(segments)), written


def _log_of(blobs: Blobs, manifest: ArchiveManifest) -> ArchivedLog:
    async def load(segment: SegmentInfo) -> bytes:
        return await segment_at(blobs, segment)

    return ArchivedLog(manifest, load)
