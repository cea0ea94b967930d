"""A log whose beginning is in the archive alone, and the archive: read as one.

What the log still holds comes from the log, what it holds no more from the archive, and nothing
between them is ever passed over. The archive is opened only where it is needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Protocol, TypeVar

from msgspec.structs import replace

from streams.codec import Recorded
from streams.log import LogState, NoLongerHeld, StoredLog
from streams.stored import Stored

M = TypeVar("M")


class _Placed(Protocol):
    @property
    def sequence(self) -> int: ...


P = TypeVar("P", bound=_Placed)
#: Reads a log behind a sequence, up to another or without an end.
_Reads = Callable[[StoredLog, int, int | None], AsyncGenerator[list[P], None]]


class JoinedLog:
    """The log from its first fact on. Keeps the contract of `streams.log.StoredLog`.

    `archive` gives the archive as it is now, and raises NoLongerHeld where it can't be read.
    """

    def __init__(self, live: StoredLog, archive: Callable[[], Awaitable[StoredLog]]) -> None:
        self._live, self._archive = live, archive
        self._opened: StoredLog | None = None

    async def state(self) -> LogState:
        """Of the live log; it begins where the archive does, if that can be read now."""
        live = await self._live.state()
        if live.first_sequence == 1:
            return live
        with suppress(NoLongerHeld):
            archive = await self._holding(live.first_sequence - 1)
            return replace(live, first_sequence=(await archive.state()).first_sequence)
        return live

    def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """As `ReadingLog.read`."""

        def reads(
            log: StoredLog, after: int, until: int | None
        ) -> AsyncGenerator[list[Recorded], None]:
            return log.read(after=after, until=until, subjects=subjects)

        return self._all(reads, after, until)

    def messages(
        self, *, after: int = 0, until: int | None = None
    ) -> AsyncGenerator[list[Stored], None]:
        """As `StoredLog.messages`."""

        def reads(
            log: StoredLog, after: int, until: int | None
        ) -> AsyncGenerator[list[Stored], None]:
            return log.messages(after=after, until=until)

        return self._all(reads, after, until)

    async def get(self, sequence: int) -> Recorded | None:
        """As `ReadingLog.get`."""
        found = await self._live.get(sequence)
        if found is not None or not 0 < sequence < (await self._live.state()).first_sequence:
            return found
        return await (await self._holding(sequence)).get(sequence)

    async def close(self) -> None:
        """As `ReadingLog.close`."""
        if self._opened is not None:
            await self._opened.close()
        await self._live.close()

    async def _all(
        self, reads: _Reads[P], after: int, until: int | None
    ) -> AsyncGenerator[list[P], None]:
        done = after
        while until is None or done < until:
            first = (await self._live.state()).first_sequence
            if done < first - 1:
                end = first - 1 if until is None else min(first - 1, until)
                archive = await self._holding(end)
                async with aclosing(reads(archive, done, end)) as batches:
                    async for batch in batches:
                        yield batch
                done = end
                continue
            try:
                async with aclosing(reads(self._live, done, until)) as batches:
                    async for batch in batches:
                        yield batch
                        done = batch[-1].sequence
                return
            except NoLongerHeld:
                # Its beginning was removed while it was read: the archive has that by now.
                if (await self._live.state()).first_sequence <= done + 1:
                    raise

    async def _holding(self, sequence: int) -> StoredLog:
        """The archive, which holds this sequence. Raises NoLongerHeld."""
        if self._opened is None or (await self._opened.state()).last_sequence < sequence:
            self._opened = await self._archive()
            live, kept = await self._live.state(), await self._opened.state()
            if kept.created != live.origin or kept.last_sequence < sequence:
                raise NoLongerHeld(
                    f"neither the log, which begins at {live.first_sequence}, nor the archive, "
                    f"which is of the log made {kept.created} and ends at {kept.last_sequence}, "
                    f"holds {sequence}"
                )
        return self._opened
