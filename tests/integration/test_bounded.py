"""A log bounded in age on a real nats-server: what leaves it is archived, and missed nowhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.blobs import DirectoryBlobs
from adapters.errors import EntryMissing
from bench.history import History
from dataplane.audit.archive import ArchiveMismatch, bring_back, extend, joined
from dataplane.audit.archiving import ArchiveKeeper
from dataplane.audit.bounding import Shortened, shorten
from dataplane.audit.replay import verify
from dataplane.audit.sources import LIVE, open_source
from dataplane.config import DataPlaneConfig
from projections.cluster import ClusterView
from projections.fold import view_digests
from projections.projector import Projector
from projections.snapshot import Snapshots
from projections.travel import past
from streams.codec import node_fact
from streams.events import FilesRemoved, LogShortened, SelfplayComplete
from streams.jetstream import JetStreamLog
from streams.log import LogError, NoLongerHeld
from streams.permissions import node_durables
from streams.segments import ArchiveDamaged
from streams.subjects import type_filter
from streams.wire import Message
from tests.conftest import Server, empty_log, eventually, wipe

FACTS = 300
#: Everything is older than this when it is looked at from so far ahead.
AGE_S, AHEAD_S = 100.0, 1000.0
#: Everything is older than this by the time it has been archived.
NO_AGE_S = 1e-6


class Kept:
    """A log with chains in it that have ended, its views and its archive."""

    def __init__(self, log: JetStreamLog, root: Path) -> None:
        self.log, self.root = log, root
        self.blobs = DirectoryBlobs(root / "archive")
        self.projector = Projector(log, root / "views")

    async def say(self, id: str) -> int:
        """A node says something that opens no chain."""
        fact = node_fact(FilesRemoved(node="selfplay-0", paths=(id,)), "selfplay-0", id)
        return (await self.log.publish(fact)).sequence

    async def shorten(self, *, ahead_s: float = AHEAD_S) -> Shortened:
        """Look at the log's beginning from a later time."""
        await self.projector.wait_for((await self.log.state()).last_sequence)
        now = time.time() + ahead_s
        return await shorten(self.log, self.blobs, self.projector, max_age_s=AGE_S, now=now)

    async def first(self) -> int:
        """Where the log begins."""
        return (await self.log.state()).first_sequence

    def digests(self) -> dict[str, str]:
        """Of the views."""
        with self.projector.store.read() as reader:
            return view_digests(reader)

    def config(self) -> DataPlaneConfig:
        """Of whoever looks at it."""
        return DataPlaneConfig.load(
            environment={},
            node="coord",
            nats_url=self.log.connection._client.connected_url.geturl(),
            state_dir=self.root,
            archive=str(self.root / "archive"),
        )


@pytest.fixture
async def kept(nats_server: Server, tmp_path: Path) -> AsyncIterator[Kept]:
    """A few hundred facts, from a log made to be bounded."""
    async with empty_log(nats_server.url, bounded=True) as log:
        await History.write(log, FACTS, tmp_path / "writer", seed=1)
        kept = Kept(log, tmp_path)
        await kept.projector.start()
        following = asyncio.create_task(kept.projector.run())
        yield kept
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await kept.projector.close()


async def test_views_come_back_from_archive_and_log_together(kept: Kept) -> None:
    """On an empty directory: the same digests, though the log's beginning is gone."""
    await extend(kept.blobs, kept.log, segment_bytes=50_000)
    archived = (await kept.log.state()).last_sequence
    await kept.say("later")
    before = kept.digests()
    done = await kept.shorten()
    assert done.first_sequence == await kept.first() == archived + 1 == done.removed + 1
    assert "holds nothing from there on" in done.held.reason

    alone = Projector(kept.log, kept.root / "alone")
    with pytest.raises(NoLongerHeld, match=f"the log begins at {archived + 1}"):
        await alone.start()
    again = Projector(joined(kept.log, kept.blobs), kept.root / "again")
    await again.start()
    with again.store.read() as reader:
        assert view_digests(reader) == before
    await again.close()


async def test_who_looks_back_reads_archive_and_log_as_one(kept: Kept) -> None:
    """Every message, any moment, and the proof that the views are the fold of it all."""
    end = (await kept.log.state()).last_sequence
    everything = [m async for batch in kept.log.messages(until=end) for m in batch]
    with pytest.raises(EntryMissing):
        await kept.shorten()
    await extend(kept.blobs, kept.log)
    assert (await kept.shorten()).removed == end - 1
    config = kept.config()
    async with open_source(LIVE, config) as log:
        assert [m async for batch in log.messages(until=end) for m in batch] == everything
        assert (await log.state()).first_sequence == 1
        assert await log.get(7) == everything[6].recorded()
        middle = [f async for batch in log.read(after=20, until=40) for f in batch]
        assert middle == [m.recorded() for m in everything[20:40]]
        async with past(log, 100) as there:
            assert there.checkpoint.sequence == 100
        assert (await verify(log, kept.root / "views")).same
    (kept.root / "archive" / "manifest.json").unlink()
    async with open_source(LIVE, config) as log:
        with pytest.raises(NoLongerHeld, match=r"manifest\.json"):
            [m async for batch in log.messages(until=end) for m in batch]


async def test_views_that_lag_behind_the_logs_beginning_are_caught_up(kept: Kept) -> None:
    """From the archive; from a snapshot on, where there is one. Without them it is said."""
    until = FACTS // 2
    old = Projector(kept.log, kept.root / "old", Snapshots(kept.root / "copies", every=50))
    await old.start(until=until)
    await old.close()
    await extend(kept.blobs, kept.log)
    await kept.shorten()
    with pytest.raises(NoLongerHeld):
        await Projector(kept.log, kept.root / "old").start()
    whole = joined(kept.log, kept.blobs)
    again = Projector(whole, kept.root / "old", Snapshots(kept.root / "copies", every=50))
    assert await Snapshots(kept.root / "copies").bring(whole, until, kept.root)
    await again.start()
    assert (again.checkpoint.sequence, again.rolled_back) == (until, "")
    following = asyncio.create_task(again.run())
    await again.wait_for((await kept.log.state()).last_sequence)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    with again.store.read() as reader:
        assert view_digests(reader) == kept.digests()
    await again.close()


async def test_what_is_needed_stays(kept: Kept) -> None:
    """An open chain, a subscriber that has not read on, what is young; a node's tasks do not."""
    consuming = await kept.log.consume("exporter", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    delivery = await anext(aiter(consuming))
    task = node_durables("training-0")[1]
    await kept.log.provide(task, ["dp.task.training-0.>"], ack_wait_s=30, max_pending=10)
    await extend(kept.blobs, kept.log)
    held = await kept.shorten()
    assert (held.removed, held.held.reason) == (
        0,
        "the consumer exporter has not acknowledged it",
    )
    await delivery.ack()
    await consuming.close()
    await kept.log.connection.ask(_deletion_of("exporter"))
    assert (await kept.shorten(ahead_s=0.0)).removed == 0, "all of it is young"

    opened = SelfplayComplete(config_key="hex8_2p", source_node="selfplay-0", games_count=1)
    trigger = await kept.log.publish(node_fact(opened, "selfplay-0", "open"))
    await kept.say("behind it")
    await extend(kept.blobs, kept.log)
    done = await kept.shorten()
    assert done.first_sequence == trigger.sequence == await kept.first()
    assert done.held.reason == "chain open is open"
    assert done.passed_over == (task,)
    with kept.projector.store.read() as reader:
        assert next(ClusterView(reader).open_chains()).id == "open"


async def test_nothing_leaves_that_the_archive_can_not_prove(kept: Kept) -> None:
    """A damaged segment, or an archive that is not what the log is, and all stays."""
    await extend(kept.blobs, kept.log, segment_bytes=50_000)
    segment = sorted((kept.root / "archive").glob("*.zst"))[1]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ArchiveDamaged, match=segment.name):
        await kept.shorten()
    assert await kept.first() == 1
    segment.write_bytes(whole)
    assert (await kept.shorten()).removed > 0


async def test_another_logs_archive_frees_nothing(kept: Kept, tmp_path: Path) -> None:
    """Even if it has as many messages."""
    await extend(kept.blobs, kept.log)
    await wipe(kept.log)
    await eventually(lambda: _made(kept.log))
    await History.write(kept.log, FACTS, tmp_path / "second", seed=2)
    projector = Projector(kept.log, tmp_path / "others")
    await projector.start()
    now = time.time() + AHEAD_S
    with pytest.raises(ArchiveMismatch):
        await shorten(kept.log, kept.blobs, projector, max_age_s=AGE_S, now=now)
    assert await kept.first() == 1
    await projector.close()


async def test_a_log_that_was_not_made_for_it_loses_nothing(
    nats_server: Server, tmp_path: Path
) -> None:
    """Its stream denies it; from its archive it is made one that can be bounded."""
    async with empty_log(nats_server.url) as log:
        await History.write(log, FACTS, tmp_path / "writer", seed=1)
        kept = Kept(log, tmp_path)
        await kept.projector.start()
        await extend(kept.blobs, log)
        with pytest.raises(LogError, match="nothing was removed"):
            await kept.shorten()
        assert await kept.first() == 1
        assert await log.ensure_topology(bounded=True) == [
            "DATAPLANE: deny_purge: wanted false, is true"
        ]
        await wipe(log)
        await bring_back(kept.blobs, log, bounded=True)
        assert await log.ensure_topology() == []
        assert (await kept.shorten()).removed > 0
        await kept.projector.close()


async def test_the_keeper_says_that_it_shortened_the_log(kept: Kept) -> None:
    """As a fact, with what is gone; and what keeps the log from it is told to health."""
    keeper = ArchiveKeeper(kept.log, kept.config())
    consuming = await kept.log.consume("slow", [], ack_wait_s=30, max_pending=10)
    await keeper.archive()
    assert keeper.state.sequence == (await kept.log.state()).last_sequence
    done = await keeper.bound(kept.projector, NO_AGE_S)
    assert done.removed == 0 and keeper.state.held is not None
    assert "consumer slow" in keeper.state.held.reason
    await consuming.close()
    await kept.log.connection.ask(_deletion_of("slow"))
    done = await keeper.bound(kept.projector, NO_AGE_S)
    assert keeper.state.held is None
    said = await kept.log.last(type_filter(LogShortened))
    assert said is not None and isinstance(said.event, LogShortened)
    assert said.event.removed == done.removed == await kept.first() - 1 > 0
    await keeper.close()


def _deletion_of(consumer: str) -> Message:
    """What an operator asks the bus for who is done with a subscription."""
    return Message(f"$JS.API.CONSUMER.DELETE.DATAPLANE.{consumer}", b"")


async def _made(log: JetStreamLog) -> bool:
    try:
        return await log.ensure_topology(bounded=True) == []
    except LogError:
        return False
