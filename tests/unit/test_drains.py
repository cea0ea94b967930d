"""NODE_DRAINED: said once, and only after all that the node holds was read again elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dataplane import laws
from dataplane.coordinator import drains as drains_module
from dataplane.coordinator.drains import Drains
from dataplane.policy import Policy
from dataplane.proving import answer_proofs
from dataplane.turns import said
from projections.nodes import LEAVING_S
from projections.projector import Projector
from streams import events
from streams.codec import Fact, Recorded, node_fact
from streams.log import Guard, Receipt
from streams.memory import MemoryBus, MemoryLog
from streams.values import Proof
from tests.conftest import eventually
from tests.spec import Said, answers, as_fact, games_of, node, player, succeeded_with

GAMES = games_of("gpu-1")
LATER = games_of("gpu-1", "later")
PATIENCE_S = 20.0


class Cluster:
    """gpu-1 has been emptied to the vault, which proves what `sound` says."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.ahead_s = 0.0
        self.log, self.bus = MemoryLog(self.clock), MemoryBus()
        self.sound = True
        self.asked = 0
        self._root, self._stack = root, stack

    def clock(self) -> float:
        """The time of all."""
        return 1_000.0 + self.ahead_s

    async def start(self) -> None:
        """The chain that empties it has completed."""
        end = events.DataSyncCompleted(
            config_key="all",
            source_node="gpu-1",
            targets=(),
            games_synced=0,
            bytes_transferred=0,
            duration_seconds=0.0,
            reason="",
        )
        planned = events.SyncPlanned(config_key="all", source_node="gpu-1")
        await answer_proofs(self.bus, "vault", self._prove)
        await self.tell(
            node("vault"),
            player("gpu-1"),
            Said(events.NodeTerminating(node="gpu-1"), by="gpu-1", id="c1"),
            answers("c1", "gpu-1", GAMES),
            succeeded_with(GAMES, "vault"),
            Said(planned, chain="c1"),
            Said(end, chain="c1"),
        )

    async def _prove(self, path: str, checksum: str) -> Proof:
        self.asked += 1
        reason = "" if self.sound else "the disk holds something else"
        return Proof(node="vault", proven=self.sound, checksum=checksum, reason=reason)

    async def tell(self, *happened: events.Event | Said) -> None:
        """Something happens."""
        for event in happened:
            at = (await self.log.state()).last_sequence + 1
            await self.log.publish(as_fact(event, at))

    async def coordinator(self, name: str) -> Drains:
        """One that confirms drains."""
        projector = Projector(self.log, self._root / name)
        await projector.start()
        drains = Drains(self.log, self.bus, projector, Policy(), clock=self.clock)
        tasks = [asyncio.create_task(one) for one in (projector.run(), drains.run())]

        async def stop() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await projector.close()

        self._stack.push_async_callback(stop)
        return drains

    async def drained(self) -> list[Recorded]:
        """NODE_DRAINED, as often as it was said."""
        end = (await self.log.state()).last_sequence
        return [
            one
            async for batch in self.log.read(until=end)
            for one in batch
            if isinstance(one.event, events.NodeDrained)
        ]

    async def is_said(self) -> Recorded:
        """Wait for it."""

        async def said() -> bool:
            return bool(await self.drained())

        await eventually(said, PATIENCE_S)
        [fact] = await self.drained()
        return fact


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """An emptied node, no coordinator yet."""
    monkeypatch.setattr(drains_module, "TICK_S", 0.02)
    async with AsyncExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        await cluster.start()
        yield cluster


async def test_k9_a_node_is_drained_once_all_of_it_was_read_elsewhere(cluster: Cluster) -> None:
    """Of two coordinators one says it, in the chain that emptied the node."""
    await cluster.coordinator("one")
    await cluster.coordinator("two")
    fact = await cluster.is_said()
    assert (fact.chain, fact.event) == (
        "c1",
        events.NodeDrained(node="gpu-1", entries=1, size_bytes=GAMES.size_bytes),
    )
    assert cluster.asked


async def test_k9_a_copy_that_has_rotted_keeps_a_node_from_being_drained(
    cluster: Cluster, json_lines: list[dict[str, str]]
) -> None:
    """P9: whatever the catalog says; it is asked again ever later, and health names it."""
    cluster.sound = False
    drains = await cluster.coordinator("one")
    await eventually(lambda: bool(drains.troubles.items()), PATIENCE_S)
    [said] = drains.troubles.described()
    assert "1 of 1 files" in said
    assert "vault: the disk holds something else" in said
    asked, (_, trouble) = cluster.asked, *drains.troubles.items()
    assert drains.troubles.must_wait("c1", cluster.clock())
    assert (asked, trouble.tries) == (1, 1)
    assert await cluster.drained() == []
    assert {line["chain"] for line in json_lines if "not drained yet" in line["message"]} == {"c1"}
    cluster.sound = True
    cluster.ahead_s += 60.0
    await cluster.is_said()


async def test_k9_what_a_node_produces_meanwhile_is_not_left_behind(cluster: Cluster) -> None:
    """It is drained of what it holds now, not of what it held when it was asked."""
    await cluster.tell(events.FilesObserved(node="gpu-1", entries=(LATER,)))
    drains = await cluster.coordinator("one")
    await eventually(lambda: bool(drains.troubles.items()), PATIENCE_S)
    assert await cluster.drained() == []
    await cluster.tell(succeeded_with(LATER, "vault"))
    cluster.ahead_s += 60.0
    await cluster.is_said()


async def test_k9_a_copy_on_a_node_that_is_to_go_as_well_is_none(cluster: Cluster) -> None:
    """Of two that hold the last copies, both would be told that they may go."""
    await cluster.tell(Said(events.NodeTerminating(node="vault"), by="vault", id="c2"))
    drains = await cluster.coordinator("one")
    await eventually(lambda: bool(drains.troubles.items()), PATIENCE_S)
    assert "none of 1 other places hold it; vault may vanish" in drains.troubles.described()[0]
    assert await cluster.drained() == []
    await cluster.tell(events.HostOnline(node="vault", reason="its heartbeat is back"))
    cluster.ahead_s += 60.0
    await eventually(lambda: drains.troubles.items()[0][1].tries == 2, PATIENCE_S)
    await cluster.tell(events.NodeDrainCancelled(node="vault"))

    async def said() -> bool:
        # Tried again ever later, and perhaps once before that was folded.
        cluster.ahead_s += 60.0
        return bool(await cluster.drained())

    await eventually(said, PATIENCE_S)


async def test_a_node_that_stays_for_a_day_is_asked_for_no_more(cluster: Cluster) -> None:
    """It was not about to go."""
    cluster.ahead_s += LEAVING_S + 1
    drains = await cluster.coordinator("one")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not drains.troubles.items()
    assert cluster.asked == 0


@pytest.mark.parametrize("way", ["drain --cancel", "NODE_RECOVERED"])
async def test_a_node_that_stays_is_not_drained_though_both_are_said_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """It is said that it stays after the last look and before NODE_DRAINED is in the log."""
    stays = events.NodeDrainCancelled if way == "drain --cancel" else events.NodeRecovered
    append, offered = cluster.log.append, asyncio.Event()

    async def at_once(facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        if not offered.is_set():
            offered.set()
            await said(cluster.log, node_fact(stays(node="gpu-1"), "gpu-1", "stays"))
        return await append(facts, guards)

    monkeypatch.setattr(cluster.log, "append", at_once)
    drains = await cluster.coordinator("one")
    await asyncio.wait_for(offered.wait(), PATIENCE_S)
    await eventually(lambda: not drains.troubles.items() and not drains.busy, PATIENCE_S)
    end = (await cluster.log.state()).last_sequence
    facts = [one async for batch in cluster.log.read(until=end) for one in batch]
    assert list(laws.no_node_that_stays_is_drained(facts)) == []
    assert await cluster.drained() == []


async def test_what_comes_at_once_with_the_word_is_not_left_behind(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the node tells of before NODE_DRAINED is in the log was read nowhere else."""
    append, offered = cluster.log.append, asyncio.Event()

    async def at_once(facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        if not offered.is_set():
            offered.set()
            await cluster.tell(events.FilesObserved(node="gpu-1", entries=(LATER,)))
        return await append(facts, guards)

    monkeypatch.setattr(cluster.log, "append", at_once)
    drains = await cluster.coordinator("one")
    await eventually(lambda: bool(drains.troubles.items()), PATIENCE_S)
    assert "something new" in drains.troubles.described()[0]
    assert await cluster.drained() == []


async def test_a_node_that_stays_after_all_is_asked_for_no_more(cluster: Cluster) -> None:
    """Neither while nothing was proven of it nor once all of it could be."""
    cluster.sound = False
    drains = await cluster.coordinator("one")
    await eventually(lambda: bool(drains.troubles.items()), PATIENCE_S)
    await cluster.tell(events.NodeDrainCancelled(node="gpu-1"))
    await eventually(lambda: not drains.troubles.items(), PATIENCE_S)
    cluster.sound, asked = True, cluster.asked
    cluster.ahead_s += 60.0
    for _ in range(5):
        await asyncio.sleep(0)
    assert (cluster.asked, await cluster.drained()) == (asked, [])
