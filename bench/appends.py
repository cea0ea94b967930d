"""What a stretch of the log cost in appends, and how long those alone take on the same server.

An append is one atomic batch or one single publication, as the log itself remembers them: every
message of a batch names it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from streams.codec import Fact
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer

_BATCH = "Nats-Batch-Id"


class Append(msgspec.Struct):
    """One append as it was made."""

    facts: list[Fact]
    #: Of its last fact; the time is the log's.
    sequence: int
    time: float


async def appends(log: JetStreamLog, after: int, until: int) -> list[Append]:
    """The appends that wrote what lies behind `after`, up to `until`, in order."""
    found: list[Append] = []
    batch = ""
    async for stored in log.messages(after=after, until=until):
        for message in stored:
            told = message.recorded()
            assert told.event is not None, told.problem
            fact = Fact(told.event, told.subject, told.id, told.chain, told.cause, "bench")
            name = message.headers.get(_BATCH, "")
            if name and name == batch:
                found[-1].facts.append(fact)
                found[-1].sequence = told.sequence
            else:
                found.append(Append([fact], told.sequence, told.time))
            batch = name
    return found


async def alone(made: list[Append], place: Path) -> list[float]:
    """How long each of these takes, one after the other, in an empty log of a new server.

    Without the guards they had, so this is a limit from below.
    """
    took = []
    async with _empty_log(place) as log:
        for append in made:
            started = time.perf_counter()
            await _make(log, append)
            took.append(time.perf_counter() - started)
    return took


async def alone_at_once(made: list[Append], place: Path) -> float:
    """As `alone`, but as many at once as the log allows; how long all take."""
    async with _empty_log(place) as log:
        started = time.perf_counter()
        await asyncio.gather(*(_make(log, append) for append in made))
        return time.perf_counter() - started


async def _make(log: JetStreamLog, append: Append) -> None:
    if len(append.facts) == 1:
        await log.publish(append.facts[0])
    else:
        await log.append(append.facts)


@asynccontextmanager
async def _empty_log(place: Path) -> AsyncIterator[JetStreamLog]:
    server = EmbeddedServer(place)
    await server.start_async()
    log = await JetStreamLog.connect(server.url, name="bench")
    try:
        await log.ensure_topology()
        yield log
    finally:
        await log.close()
        await server.stop_async()
