"""Logs that lie in files: an archive's segments, and one exported file. They can only be read.

Both keep the contract of `streams.log.StoredLog`; a read without an end stops where the file does.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

from streams.codec import Recorded
from streams.log import LogError, LogState
from streams.segments import ArchiveManifest, SegmentInfo, unpacked
from streams.stored import NotALine, Stored, from_line
from streams.subjects import matches

_BATCH = 500
#: A file's lines are found through every so-manieth of them.
_INDEX_EVERY = 1000


class FileUnreadable(LogError):
    """A file is no exported log; the text names the line."""


class KeptLog(ABC):
    """What both share: facts and single messages, from messages in order."""

    @abstractmethod
    async def state(self) -> LogState:
        """As `ReadingLog.state`."""

    @abstractmethod
    def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        """As `StoredLog.messages`; it ends where the log does."""

    async def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """As `ReadingLog.read`; it ends where the log does."""
        async with aclosing(self.messages(after=after, until=until)) as batches:
            async for batch in batches:
                if facts := [m.recorded() for m in batch if _wanted(m.subject, subjects)]:
                    yield facts

    @abstractmethod
    async def close(self) -> None:
        """As `ReadingLog.close`."""

    async def get(self, sequence: int) -> Recorded | None:
        """As `ReadingLog.get`."""
        async with aclosing(self.messages(after=sequence - 1, until=sequence)) as batches:
            async for batch in batches:
                return batch[0].recorded()
        return None


class ArchivedLog(KeptLog):
    """The log that an archive's segments hold; `load` brings the bytes of one.

    Each segment is proven as it is read: raises `ArchiveDamaged`, naming it.
    """

    def __init__(
        self, manifest: ArchiveManifest, load: Callable[[SegmentInfo], Awaitable[bytes]]
    ) -> None:
        self.manifest = manifest
        self._load = load
        self._last_sequences = [segment.last for segment in manifest.segments]
        self._loaded: tuple[str, list[Stored]] = ("", [])

    async def state(self) -> LogState:
        manifest = self.manifest
        return LogState(manifest.origin, manifest.first_sequence, manifest.last_sequence)

    async def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        for segment in self.manifest.segments[bisect.bisect_right(self._last_sequences, after) :]:
            if until is not None and segment.first > until:
                return
            held = await self._messages_of(segment)
            start = max(0, after + 1 - segment.first)
            end = len(held) if until is None else min(len(held), until + 1 - segment.first)
            for at in range(start, end, _BATCH):
                yield held[at : min(at + _BATCH, end)]

    async def close(self) -> None:
        """Forget what was read last."""
        self._loaded = ("", [])

    async def _messages_of(self, segment: SegmentInfo) -> list[Stored]:
        """Those read last are remembered: single messages are asked for near each other."""
        if self._loaded[0] != segment.name:
            data = await self._load(segment)
            self._loaded = (segment.name, unpacked(segment, data, self.manifest.origin))
        return self._loaded[1]


class FileLog(KeptLog):
    """A log exported as JSON Lines, or a stretch of one."""

    def __init__(self, path: Path) -> None:
        """Raises `FileUnreadable`, naming the line, and OSError."""
        self._path = path
        #: Sequence and offset of every so-manieth line.
        self._index: list[tuple[int, int]] = []
        self._last = 0
        self._look()
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        self._state = LogState(
            f"{path.name} of {made.isoformat()}",
            self._index[0][0] if self._index else 1,
            self._last,
        )

    def _look(self) -> None:
        """Read it once, so that what is wrong with it is said before anybody relies on it."""
        offset, last = 0, None
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                sequence = self._message(line, number + 1).sequence
                if last is not None and sequence != last + 1:
                    raise FileUnreadable(
                        f"{self._path}: line {number + 1}: {sequence} follows {last}"
                    )
                if number % _INDEX_EVERY == 0:
                    self._index.append((sequence, offset))
                offset += len(line)
                last = sequence
        self._last = last or 0

    async def state(self) -> LogState:
        return self._state

    async def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        place = max(0, bisect.bisect_right(self._index, (after + 1, 1 << 62)) - 1)
        if not self._index or after >= self._last:
            return
        batch: list[Stored] = []
        with self._path.open("rb") as file:
            file.seek(self._index[place][1])
            for number, line in enumerate(file, place * _INDEX_EVERY + 1):
                message = self._message(line, number)
                if until is not None and message.sequence > until:
                    break
                if message.sequence > after:
                    batch.append(message)
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    async def close(self) -> None:
        """Nothing is held open."""

    def _message(self, line: bytes, number: int) -> Stored:
        try:
            return from_line(line)
        except NotALine as error:
            raise FileUnreadable(f"{self._path}: line {number}: {error}") from None


def _wanted(subject: str, subjects: Sequence[str]) -> bool:
    return not subjects or any(matches(subject, pattern) for pattern in subjects)
