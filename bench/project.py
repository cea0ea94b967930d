"""Folding: events a second from the log into fresh views, beside merely reading the same log.

The views are folded by the projector's own two paths: a rebuild, as after a change of version, and
the live path with its disk sync for every batch, as far behind as it can be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

from bench.history import History
from bench.measuring import MEGABYTE, Usage, in_process, usage, workplace
from bench.report import Report, begin, paired
from projections.fold import TABLES, fold
from projections.projector import REBUILD_BATCH, Projector
from projections.store import Store
from streams.codec import Recorded
from streams.jetstream import JetStreamLog
from streams.server import EmbeddedServer

EVENTS, BIG_EVENTS = 100_000, 1_000_000
#: So many are decoded at once to be folded without reading between: bounds the memory.
_HELD = 100_000


def run(count: int, rounds: int, seed: int, base: Path | None) -> Report:
    """Write a log of `count` events, then read and fold it, `rounds` times in adjacent steps."""
    report = begin("project", seed, events=count, rounds=rounds)
    with workplace(base) as place:
        server = EmbeddedServer(place / "nats")
        server.start()
        try:
            write = in_process(_write, server.url, count, place / "writer", seed)
            total, log_bytes = write
            found = [_round(server.url, total, place / f"round-{n}") for n in range(rounds)]
        finally:
            server.stop()
    report.parameters |= {"events": total, "log_megabytes": round(log_bytes / MEGABYTE, 1)}
    _tell(report, total, found)
    return report


def _round(url: str, total: int, place: Path) -> dict[str, Usage]:
    steps: dict[str, Callable[[], Usage]] = {
        "raw": partial(in_process, _raw, url, total),
        "read": partial(in_process, _read, url, total),
        "rebuild": partial(in_process, _rebuild, url, total, place / "rebuild"),
        "live": partial(in_process, _live, url, total, place / "live"),
        "fold": partial(in_process, _fold_only, url, min(total, _HELD), place / "fold"),
    }
    return {name: step() for name, step in steps.items()}


def _tell(report: Report, total: int, found: list[dict[str, Usage]]) -> None:
    rates = {
        step: [(min(total, _HELD) if step == "fold" else total) / f[step].seconds for f in found]
        for step in found[0]
    }
    names = {
        "raw": "reading the log, undecoded",
        "read": "reading the log, decoded",
        "rebuild": "folding the log into new views",
        "live": "folding it on the live path, synced",
        "fold": "the fold alone, decoded before",
    }
    for step, name in names.items():
        ratio = None if step == "read" else paired(rates[step], rates["read"])
        beside = "" if ratio is None else "reading, decoded"
        report.add(name, rates[step], "events/s", ratio, beside)
    for step in ("read", "rebuild", "live"):
        cpu = [1e6 * f[step].cpu_s / total for f in found]
        report.add(f"CPU of one event: {names[step]}", cpu, "us")
        peaks = [f[step].peak_bytes / MEGABYTE for f in found]
        report.add(f"peak memory: {names[step]}", peaks, "MB")
    report.notes.append(
        "All in Python on one thread but the server's part: reading and decoding share it with "
        "the fold, so the rebuild is at best 1 / (1/reading + 1/fold alone)."
    )


def _write(url: str, count: int, views: Path, seed: int) -> tuple[int, int]:
    async def write() -> tuple[int, int]:
        log = await JetStreamLog.connect(url, name="bench")
        await log.ensure_topology()
        total = await History.write(log, count, views, seed)
        stored = sum(p.stat().st_size for p in views.parent.glob("nats/**/*.blk"))
        await log.close()
        return total, stored

    return asyncio.run(write())


def _raw(url: str, total: int) -> Usage:
    async def raw() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        with usage() as used:
            async for _ in log.messages(until=total):
                pass
        await log.close()
        return used

    return asyncio.run(raw())


def _read(url: str, total: int) -> Usage:
    async def read() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        with usage() as used:
            async with aclosing(log.read(until=total)) as batches:
                assert sum([len(batch) async for batch in batches]) == total
        await log.close()
        return used

    return asyncio.run(read())


def _rebuild(url: str, total: int, views: Path) -> Usage:
    async def rebuild() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        projector = Projector(log, views)
        with usage() as used:
            await projector.start(until=total)
        assert projector.checkpoint.sequence == total
        await projector.close()
        await log.close()
        return used

    return asyncio.run(rebuild())


def _live(url: str, total: int, views: Path) -> Usage:
    async def live() -> Usage:
        log = await JetStreamLog.connect(url, name="bench")
        projector = Projector(log, views)
        await projector.start(until=0)
        with usage() as used:
            following = asyncio.create_task(projector.run())
            await projector.wait_for(total, timeout_s=600.0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await projector.close()
        await log.close()
        return used

    return asyncio.run(live())


def _fold_only(url: str, total: int, views: Path) -> Usage:
    facts = asyncio.run(_decoded(url, total))
    store = Store.open(views, TABLES, durable=False)
    with usage() as used:
        for start in range(0, total, REBUILD_BATCH):
            batch = facts[start : start + REBUILD_BATCH]
            store.write(partial(fold, batch=batch, created="bench"))
        store.sync()
    store.close()
    return used


async def _decoded(url: str, total: int) -> list[Recorded]:
    log = await JetStreamLog.connect(url, name="bench")
    async with aclosing(log.read(until=total)) as batches:
        facts = [recorded async for batch in batches for recorded in batch]
    await log.close()
    return facts
