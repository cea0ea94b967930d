"""Deletions carried out: two coordinators on one log, nodes that answer late, twice or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dataplane.coordinator import deleting
from dataplane.coordinator.deleting import (
    Deleter,
    DeletionAnswer,
    DeletionOrder,
    Remover,
    answer_deletions,
    still_granted,
)
from dataplane.policy import Policy
from dataplane.proving import Prover, answer_proofs
from projections.projector import Projector
from streams import events
from streams.codec import MAX_MESSAGE_BYTES, Recorded
from streams.log import LogUnavailable
from streams.memory import MemoryBus, MemoryLog
from streams.values import Proof
from tests.conftest import eventually
from tests.spec import Said, as_fact, games_of, player, succeeded_with

GAMES = games_of("gpu-1")
NAMES = [f"gpu-{n}" for n in range(1, 5)]
PATIENCE_S = 20.0


class Cluster:
    """Nodes that hold one entry, as scripts, and coordinators on one log."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.log, self.bus = MemoryLog(), MemoryBus()
        self.holders = set(NAMES)
        #: How often the node's first answers get lost.
        self.lost = 0
        #: What their proofs say besides.
        self.words = "gone"
        self._root, self._stack = root, stack

    async def start(self) -> None:
        """Everybody has a copy, and answers for it."""
        for name in NAMES:
            await self.tell(player(name))
            holds = events.FilesObserved(node=name, entries=(GAMES,))
            await self.tell(holds if name == "gpu-1" else succeeded_with(GAMES, name))
            await answer_proofs(self.bus, name, self._prover(name))
            await answer_deletions(self.bus, name, self._remover(name))

    def _prover(self, name: str) -> Prover:
        async def prove(path: str, checksum: str) -> Proof:
            return Proof(
                node=name, proven=name in self.holders, checksum=checksum, reason=self.words
            )

        return prove

    def _remover(self, name: str) -> Remover:
        async def remove(order: DeletionOrder) -> DeletionAnswer:
            if not await still_granted(self.log, order):
                return DeletionAnswer(False, reason="not granted")
            self.holders.discard(name)
            await self.tell(events.FilesRemoved(node=name, paths=(order.path,)))
            if self.lost:
                self.lost -= 1
                raise LogUnavailable("the answer got lost")
            return DeletionAnswer(True, freed_bytes=7)

        return remove

    async def tell(self, event: events.Event | Said) -> None:
        """Something happens."""
        at = (await self.log.state()).last_sequence + 1
        await self.log.publish(as_fact(event, at))

    async def coordinator(self, name: str) -> Deleter:
        """Another one that drives deletions."""
        projector = Projector(self.log, self._root / name)
        await projector.start()
        deleter = Deleter(self.log, self.bus, projector, Policy())
        tasks = [asyncio.create_task(one) for one in (projector.run(), deleter.run())]

        async def stop() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await projector.close()

        self._stack.push_async_callback(stop)
        return deleter

    async def said(self, *kinds: type[events.Event]) -> list[Recorded]:
        """Facts of some classes."""
        end = (await self.log.state()).last_sequence
        found: list[Recorded] = []
        async for batch in self.log.read(until=end):
            found += [one for one in batch if isinstance(one.event, kinds)]
        return found

    async def ends(self, count: int) -> list[events.Event]:
        """Wait until so many deletions have ended."""
        kinds = (events.DeletionDone, events.DeletionRefused)

        async def there() -> bool:
            return len(await self.said(*kinds)) >= count

        await eventually(there, PATIENCE_S)
        return [one.event for one in await self.said(*kinds) if one.event is not None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(deleting, "TICK_S", 0.02)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Four copies, no coordinator yet."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(tmp_path, stack)
        await cluster.start()
        yield cluster


def wants(node: str) -> Said:
    """Somebody asks for a copy to be deleted."""
    event = events.DeletionRequested(path=GAMES.path, node=node)
    return Said(event, by="boss", id=f"d-{node}")


async def test_two_coordinators_decide_each_step_once(cluster: Cluster) -> None:
    """Reserved, granted and done once, in this order; the copy is gone."""
    await cluster.coordinator("one")
    await cluster.coordinator("two")
    await cluster.tell(wants("gpu-2"))
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert (end.deleted, end.freed_bytes) == (True, 7)
    kinds = (events.DeletionReserved, events.DeletionGranted, events.DeletionDone)
    assert [type(one.event) for one in await cluster.said(*kinds)] == list(kinds)
    assert cluster.holders == set(NAMES) - {"gpu-2"}


async def test_a_lost_answer_is_asked_for_again(cluster: Cluster) -> None:
    """The node deletes once, and says so again."""
    cluster.lost = 2
    await cluster.tell(wants("gpu-2"))
    await cluster.coordinator("one")
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert end.deleted


async def test_deletions_that_all_come_at_once_leave_two(cluster: Cluster) -> None:
    """P8: every copy is to go; two may, and each of the others says why it stays."""
    await cluster.coordinator("one")
    await cluster.coordinator("two")
    for name in NAMES:
        await cluster.tell(wants(name))
    ends = await cluster.ends(4)
    refused = [end for end in ends if isinstance(end, events.DeletionRefused)]
    assert {end.rule for end in refused} <= {"another-deletion", "too-few-copies", "unproven"}
    assert len(cluster.holders) >= 2
    assert len(refused) == len(cluster.holders)


async def test_a_node_that_never_answers_is_no_longer_allowed_to(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deletion ends as not done, and what it hears later it does not obey."""
    monkeypatch.setattr(deleting, "WITHDRAWN_AFTER_S", 0.0)
    orders: list[DeletionOrder] = []

    async def silent(order: DeletionOrder) -> DeletionAnswer:
        orders.append(order)
        raise LogUnavailable("nothing came")

    await answer_deletions(cluster.bus, "gpu-2", silent)
    await cluster.coordinator("one")
    await cluster.tell(wants("gpu-2"))
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert not end.deleted
    assert not await still_granted(cluster.log, orders[0])
    assert cluster.holders == set(NAMES)


async def test_deletion_that_no_message_can_hold_is_in_the_way_of_no_other(
    cluster: Cluster,
) -> None:
    """A proof's reason is a node's own words; the loop outlives them."""
    cluster.words = "x" * MAX_MESSAGE_BYTES
    deleter = await cluster.coordinator("one")
    await cluster.tell(wants("gpu-2"))
    await eventually(lambda: deleter.errors > 0, PATIENCE_S)
    cluster.words = ""
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
