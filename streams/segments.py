"""Segments of an archived log: compressed lines, each segment naming the digest of the one before.

A segment is Zstandard over text (``zstdcat`` shows it): a line about itself, then one line for each
message. Its digest is that of the text, so the chain of digests does not depend on a compressor.
What is wrong with an archive is told with the name of the segment; nothing is passed over. Pure:
where the bytes are kept is not known here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import msgspec
import zstandard

from streams.log import LogError
from streams.stored import Stored, from_line, to_line

FORMAT = "dataplane-log"
VERSION = 1
MANIFEST_NAME = "manifest.json"
#: A segment is closed at this much text. A message may be 1 MB, so none is much larger.
SEGMENT_BYTES = 8 << 20
#: More text than this is no segment of ours, whatever a small file claims to hold.
MOST_BYTES = 64 << 20
#: What the first segment of a log names as the digest before it.
BEGINNING = ""
_LEVEL = 9


class ArchiveDamaged(LogError):
    """An archive does not hold what it says; the text names the segment."""


class _Head(msgspec.Struct, frozen=True):
    format: str
    version: int
    origin: str
    first: int
    last: int
    previous: str


class SegmentInfo(msgspec.Struct, frozen=True):
    """What the manifest says of a segment."""

    name: str
    first: int
    last: int
    #: Nanoseconds since 1970, of its first and last message.
    first_time_ns: int
    last_time_ns: int
    #: ``sha256:<hex>`` of its text, and that of the segment before.
    digest: str
    previous: str
    #: Compressed, as it is stored; and its text.
    size_bytes: int
    text_bytes: int


class ConsumerInfo(msgspec.Struct, frozen=True):
    """A durable consumer of the log: all up to `acknowledged` had been dealt with."""

    name: str
    acknowledged: int
    #: As JetStream describes it.
    config: dict[str, Any]
    #: How many messages it had still to deal with.
    waiting: int = 0


class ArchiveManifest(msgspec.Struct, frozen=True):
    """What an archive holds: segments without a gap, in order."""

    #: The log it is of; see `LogState.origin`.
    origin: str
    segments: tuple[SegmentInfo, ...] = ()
    consumers: tuple[ConsumerInfo, ...] = ()
    version: int = VERSION
    #: Of the text of all this without it, so that whatever is added here raises the version; ""
    #: in manifests of older releases, and in memory.
    digest: str = ""

    @property
    def first_sequence(self) -> int:
        """Of its first message; 1 if it has none."""
        return self.segments[0].first if self.segments else 1

    @property
    def last_sequence(self) -> int:
        """Of its last message; 0 if it has none."""
        return self.segments[-1].last if self.segments else 0


def packed(messages: Sequence[Stored], origin: str, previous: str) -> tuple[SegmentInfo, bytes]:
    """A segment of these messages, at least one, which follow each other without a gap."""
    first, last = messages[0], messages[-1]
    head = _Head(FORMAT, VERSION, origin, first.sequence, last.sequence, previous)
    text = b"".join([msgspec.json.encode(head) + b"\n", *map(to_line, messages)])
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
    digest = _digest(text)
    name = f"{first.sequence:020d}-{last.sequence:020d}-{digest[7:19]}.jsonl.zst"
    info = SegmentInfo(
        name,
        first.sequence,
        last.sequence,
        first.time_ns,
        last.time_ns,
        digest,
        previous,
        len(data),
        len(text),
    )
    return info, data


def unpacked(info: SegmentInfo, data: bytes, origin: str) -> list[Stored]:
    """The messages of a segment, proven to be those. Raises `ArchiveDamaged`."""
    text = _text(info.name, data)
    if _digest(text) != info.digest:
        raise ArchiveDamaged(f"{info.name}: its text has the digest {_digest(text)}")
    try:
        head, *lines = text.split(b"\n")[:-1]
        said = msgspec.json.decode(head, type=_Head)
        messages = [from_line(line) for line in lines]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArchiveDamaged(f"{info.name}: {error}") from None
    wanted = _Head(FORMAT, VERSION, origin, info.first, info.last, info.previous)
    if said != wanted:
        raise ArchiveDamaged(f"{info.name}: it says of itself {said}, the manifest {wanted}")
    if [m.sequence for m in messages] != list(range(info.first, info.last + 1)):
        raise ArchiveDamaged(f"{info.name}: not each of {info.first} to {info.last}, in order")
    return messages


def manifest_text(manifest: ArchiveManifest) -> bytes:
    """A manifest as it is stored: JSON that people can read, with a digest of it."""
    manifest = msgspec.structs.replace(manifest, digest=_digest_of(manifest))
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _digest_of(manifest: ArchiveManifest) -> str:
    return _digest(msgspec.json.encode(msgspec.structs.replace(manifest, digest="")))


def manifest_of(data: bytes, where: str) -> ArchiveManifest:
    """A manifest, its chain of segments unbroken. Raises `ArchiveDamaged` naming where it is."""
    try:
        manifest = msgspec.json.decode(data, type=ArchiveManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveDamaged(f"{where}: {error}") from None
    if manifest.version > VERSION:
        raise ArchiveDamaged(f"{where}: version {manifest.version} is of a later release")
    if manifest.digest not in ("", _digest_of(manifest)):
        raise ArchiveDamaged(f"{where}: it has the digest {_digest_of(manifest)}, and says another")
    previous, expected = None, manifest.first_sequence
    for segment in manifest.segments:
        if segment.first != expected or segment.last < segment.first:
            raise ArchiveDamaged(
                f"{where}: {segment.name} holds {segment.first} to {segment.last}, where "
                f"{expected} should come: a segment is missing or stands twice"
            )
        if previous not in (None, segment.previous):
            raise ArchiveDamaged(f"{where}: {segment.name} does not follow the segment before it")
        if "/" in segment.name or segment.name.startswith("."):
            raise ArchiveDamaged(f"{where}: {segment.name!r} can't be the name of a segment")
        previous, expected = segment.digest, segment.last + 1
    return msgspec.structs.replace(manifest, digest="")


def _text(name: str, data: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
            text = reader.read(MOST_BYTES + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ArchiveDamaged(f"{name}: {error}") from None
    if len(text) > MOST_BYTES:
        raise ArchiveDamaged(f"{name}: it holds more than {MOST_BYTES} bytes")
    return text


def _digest(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()
