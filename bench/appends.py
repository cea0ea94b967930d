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

from streams.codec import STREAM, Fact, decode
from streams.jetstream import JetStreamLog
from streams.pull import Item, Pull
from streams.server import EmbeddedServer
from streams.wire import create_consumer, parse_headers, parse_reply

_SECOND = 1_000_000_000
_BATCH = "Nats-Batch-Id"


class Append(msgspec.Struct):
    """One append as it was made."""

    facts: list[Fact]
    #: Of its last fact; the time is the log's.
    sequence: int
    time: float


async def messages(log: JetStreamLog, until: int, after: int = 0) -> AsyncIterator[list[Item]]:
    """The log's messages as they arrive, undecoded: the most that this client can take."""
    wire, name = log.connection, f"raw_{log.connection.token()}"
    pull = Pull(wire, STREAM, name, 1000)
    await pull.open()
    config = {
        "name": name,
        "ack_policy": "none",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": after + 1,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * _SECOND,
    }
    await create_consumer(wire, STREAM, config)
    left = until - after
    while left > 0:
        items = list(pull.items)
        pull.items.clear()
        left -= len(items)
        if pull.wanting and left > 0:
            await pull.request()
        if items:
            yield items
        elif left > 0:
            await pull.wait(pull.arrival)
    await pull.close()


async def appends(log: JetStreamLog, after: int, until: int) -> list[Append]:
    """The appends that wrote what lies behind `after`, up to `until`, in order."""
    found: list[Append] = []
    batch = ""
    async for items in messages(log, until, after):
        for item in items:
            headers = parse_headers(item.headers)
            said = parse_reply(item.reply)
            told = decode(said.sequence, said.time, item.subject.decode(), headers, item.body)
            assert told.event is not None, told.problem
            fact = Fact(told.event, told.subject, told.id, told.chain, told.cause, "bench")
            name = headers.get(_BATCH, "")
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
