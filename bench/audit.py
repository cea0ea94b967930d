"""Looking back over a long log: archive, restore, rebuild, verify, and any moment of the past.

The log is a short real history over and over, each time with other ids and digests: its chains are
whole, and every view grows as it would.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import tempfile
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from pathlib import Path

from adapters.blobs import DirectoryBlobs
from bench.history import History
from bench.measuring import MEGABYTE, Usage, in_process, usage, workplace
from bench.report import Report, begin
from dataplane.audit.archive import bring_back, extend, prove
from dataplane.audit.replay import verify
from dataplane.config import DataPlaneConfig
from projections.projector import Projector
from projections.snapshot import Snapshots
from projections.transfers import transfer_id
from projections.travel import past
from streams import events
from streams.codec import STREAM, Fact, Recorded, encode
from streams.jetstream import JetStreamLog
from streams.memory import MemoryLog
from streams.restoring import Restoring, restore
from streams.server import EmbeddedServer
from streams.stored import Stored
from streams.values import DataEntry
from streams.wire import api

EVENTS, BIG_EVENTS = 50_000, 1_000_000
#: So many events are played for real.
_PLAYED = 5_000
_POINTS, _MANY_POINTS = 7, 25
_DEFAULTS = DataPlaneConfig()
_SNAPSHOT_EVERY = _DEFAULTS.snapshot_every_events
_BUDGET_BYTES = _DEFAULTS.snapshot_budget_mb * 1_000_000


def run(count: int, seed: int, base: Path | None) -> Report:
    """Fill a log with `count` events, lose it, bring it back, and look at it in every way."""
    report = begin("audit", seed, events=count, snapshot_every=_SNAPSHOT_EVERY)
    with workplace(base) as place:
        server = EmbeddedServer(place / "nats")
        server.start()
        try:
            _measure(report, server.url, count, place, seed)
        finally:
            server.stop()
    return report


def _measure(report: Report, url: str, count: int, place: Path, seed: int) -> None:
    views, snapshots = place / "views", place / "snapshots"
    steps = {
        "filling an empty bus": partial(_fill, url, count, seed),
        "archiving it": partial(_archive, url, place / "archive"),
        "proving the archive": partial(_prove, place / "archive"),
        "restoring it onto an empty bus": partial(_restore, url, place / "archive"),
        "rebuilding the views, with snapshots": partial(_rebuild, url, views, snapshots),
        "rebuilding them from the newest snapshot": partial(
            _rebuild, url, place / "again", snapshots
        ),
        "verify": partial(_verify, url, views),
    }
    for name, step in steps.items():
        used = in_process(step)
        report.add(name, [used.seconds], "s")
        report.add(f"{name}: events", [count / used.seconds], "events/s")
        report.add(f"{name}: peak memory", [used.peak_bytes / MEGABYTE], "MB")
    taken = in_process(_travel, url, count, snapshots, seed)
    report.add("going to a moment of the past, median", taken, "s")
    report.add("going to a moment of the past, slowest", [max(taken)], "s")
    sizes = [sum(f.stat().st_size for f in p.glob("*")) for p in snapshots.glob("0*")]
    if sizes:
        report.add("snapshots", [len(sizes)], "")
        report.add("disk of all snapshots", [sum(sizes) / MEGABYTE], "MB")
    stored = sum(p.stat().st_size for p in (place / "archive").iterdir())
    report.add("disk of the archive", [stored / MEGABYTE], "MB")


# Steps, each in a process of its own


def _fill(url: str, count: int, seed: int) -> Usage:
    async def fill() -> Usage:
        played = await _played(count, seed)
        log = await JetStreamLog.connect(url, name="bench")
        what = Restoring("bench", 1, count, played[-1].time_ns + count * 1_000_000)
        with usage() as used:
            await restore(log.connection, what, partial(_long, played, count), ())
        await log.ensure_topology()
        await log.close()
        return used

    return asyncio.run(fill())


def _archive(url: str, place: Path) -> Usage:
    async def work() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        with usage() as used:
            await extend(DirectoryBlobs(place), log)
        await log.close()
        return used

    return asyncio.run(work())


def _prove(place: Path) -> Usage:
    with usage() as used:
        asyncio.run(prove(DirectoryBlobs(place)))
    return used


def _restore(url: str, place: Path) -> Usage:
    async def work() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        await api(log.connection, f"STREAM.DELETE.{STREAM}")
        with usage() as used:
            await bring_back(DirectoryBlobs(place), log)
        await log.close()
        return used

    return asyncio.run(work())


def _rebuild(url: str, views: Path, snapshots: Path) -> Usage:
    async def work() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        kept = Snapshots(snapshots, every=_SNAPSHOT_EVERY, budget_bytes=_BUDGET_BYTES)
        projector = Projector(log, views, kept)
        with usage() as used:
            await projector.start()
        await projector.close()
        await log.close()
        return used

    return asyncio.run(work())


def _verify(url: str, views: Path) -> Usage:
    async def work() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        with usage() as used:
            assert (await verify(log, views)).same
        await log.close()
        return used

    return asyncio.run(work())


def _travel(url: str, count: int, snapshots: Path, seed: int) -> list[float]:
    async def work() -> list[float]:
        log = await JetStreamLog.connect(url, name="bench")
        took, rng = [], random.Random(seed)
        for _ in range(_MANY_POINTS if count >= BIG_EVENTS else _POINTS):
            point = rng.randint(1, count)
            with usage() as used:
                async with past(log, point, Snapshots(snapshots)) as there:
                    assert there.checkpoint.sequence == point
            took.append(used.seconds)
        await log.close()
        return took

    return asyncio.run(work())


# The long log


async def _played(count: int, seed: int) -> list[Stored]:
    """A real history, as messages."""
    log = MemoryLog()
    with tempfile.TemporaryDirectory() as views:
        last = await History.write(log, min(count, _PLAYED), Path(views), seed)
    return [_message(fact) async for batch in log.read(until=last) for fact in batch]


def _message(fact: Recorded) -> Stored:
    assert fact.event is not None, fact.problem
    chain = "" if fact.subject.startswith("dp.chain.") else fact.chain
    said = Fact(fact.event, fact.subject, fact.id, chain, fact.cause, "bench")
    headers, body = encode(said, fact.time)
    return Stored(fact.sequence, round(fact.time * 1e9), fact.subject, headers, body)


_IDS = re.compile(rb"[0-9a-f]{64}|[0-9a-f]{32}")


async def _long(played: list[Stored], count: int, after: int) -> AsyncGenerator[list[Stored], None]:
    """The history again and again, each time with other ids, up to `count` messages."""
    facts = [message.recorded() for message in played]
    moved = dict(_transfers(facts))
    sequence = 0
    for again in range(-(-count // len(played))):
        batch = []
        for message in _renamed(played, moved, again):
            sequence += 1
            if after < sequence <= count:
                time_ns = played[0].time_ns + sequence * 1_000_000
                batch.append(message._replace(sequence=sequence, time_ns=time_ns))
        for at in range(0, len(batch), 500):
            yield batch[at : at + 500]


def _transfers(facts: list[Recorded]) -> Iterator[tuple[str, tuple[DataEntry, str]]]:
    """By id, what each transfer brings where."""
    for fact in facts:
        if isinstance(fact.event, events.SyncPlanned):
            for plan in fact.event.plans:
                for entry in plan.entries:
                    for target in plan.target_nodes:
                        yield transfer_id(entry, target), (entry, target)


def _renamed(
    played: list[Stored], moved: dict[str, tuple[DataEntry, str]], again: int
) -> Iterator[Stored]:
    names: dict[bytes, bytes] = {}

    def other(found: re.Match[bytes]) -> bytes:
        old = found[0]
        if old not in names:
            names[old] = _other(old, moved, again)
        return names[old]

    for message in played:
        if again == 0:
            yield message
            continue
        headers = {k: _IDS.sub(other, v.encode()).decode() for k, v in message.headers.items()}
        yield message._replace(
            subject=_IDS.sub(other, message.subject.encode()).decode(),
            headers=headers,
            body=_IDS.sub(other, message.body),
        )


def _other(old: bytes, moved: dict[str, tuple[DataEntry, str]], again: int) -> bytes:
    """An id instead of another one; a transfer's is what its new content makes it."""
    transfer = moved.get(old.decode())
    if transfer is None:
        digest = hashlib.sha256(b"%s again %d" % (old, again)).hexdigest()
        return digest[: len(old)].encode()
    entry, target = transfer
    checksum = _other(entry.checksum.removeprefix("sha256:").encode(), {}, again).decode()
    changed = type(entry)(
        **{
            **{name: getattr(entry, name) for name in entry.__struct_fields__},
            "checksum": f"sha256:{checksum}",
        }
    )
    return transfer_id(changed, target).encode()
