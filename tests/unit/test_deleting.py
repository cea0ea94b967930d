"""Deletions carried out: two coordinators on one log, nodes that answer late, twice or never."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from dataplane.coordinator import deleting, trouble
from dataplane.coordinator.deleting import (
    Deleter,
    DeletionAnswer,
    DeletionOrder,
    Remover,
    answer_deletions,
    still_granted,
)
from dataplane.deletion import copies_chain
from dataplane.policy import Policy
from dataplane.proving import Prover, answer_proofs
from projections.deletions import DeletionRow
from projections.projector import Projector
from streams import events
from streams.codec import MAX_MESSAGE_BYTES, Fact, Recorded
from streams.log import Guard, LogUnavailable, Receipt
from streams.memory import MemoryBus, MemoryLog
from streams.values import Proof
from tests.conftest import eventually
from tests.spec import Said, as_fact, games_of, player, succeeded_with

GAMES = games_of("gpu-1")
OTHERS = games_of("gpu-2")
NAMES = [f"gpu-{n}" for n in range(1, 5)]
PATIENCE_S = 20.0


class BrokenLog(MemoryLog):
    """A log that takes no decision on some deletions."""

    refuses: tuple[str, ...] = ()

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        """As ever, but for these."""
        if any(getattr(fact.event, "request", "") in self.refuses for fact in facts):
            raise LogUnavailable("this one is never taken")
        return await super().append(facts, guards)


class Cluster:
    """Nodes that hold one entry, as scripts, and coordinators on one log."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.ahead_s = 0.0
        self.log, self.bus = BrokenLog(self.clock), MemoryBus()
        self.holders = set(NAMES)
        #: How often nodes hear nothing at first; then how often their answers get lost, and whether
        #: the copy comes again before anybody can ask.
        self.deaf = self.lost = 0
        self.comes_again = False
        #: What their proofs say besides.
        self.words = "gone"
        self._root, self._stack = root, stack

    def clock(self) -> float:
        """The time of log, nodes and coordinators."""
        return time.time() + self.ahead_s

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
            if self.deaf:
                self.deaf -= 1
                raise LogUnavailable("not heard")
            if not await still_granted(self.log, order, self.clock()):
                return DeletionAnswer(False, reason="not granted")
            self.holders.discard(name)
            removed = events.FilesRemoved(node=name, paths=(order.path,))
            await self.tell(Said(removed, by=name, cause=order.grant))
            if self.comes_again:
                self.holders.add(name)
                await self.tell(succeeded_with(GAMES, name))
            if self.lost:
                self.lost -= 1
                raise LogUnavailable("the answer got lost")
            return DeletionAnswer(True, freed_bytes=7)

        return remove

    async def tell(self, *happened: events.Event | Said) -> None:
        """Something happens."""
        for event in happened:
            at = (await self.log.state()).last_sequence + 1
            await self.log.publish(as_fact(event, at))

    async def coordinator(self, name: str) -> Deleter:
        """Another one that drives deletions."""
        projector = Projector(self.log, self._root / name)
        await projector.start()
        deleter = Deleter(self.log, self.bus, projector, Policy(), clock=self.clock)
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


def wants(node: str, path: str = GAMES.path) -> Said:
    """Somebody asks for a copy to be deleted."""
    event = events.DeletionRequested(path=path, node=node)
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


async def test_a_copy_that_came_again_is_not_deleted_because_an_answer_was_lost(
    cluster: Cluster,
) -> None:
    """What the node has said is in the log: it is not asked a second time by the same grant."""
    cluster.lost, cluster.comes_again = 1, True
    await cluster.tell(wants("gpu-2"))
    await cluster.coordinator("one")
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert (end.deleted, end.freed_bytes) == (True, GAMES.size_bytes)
    assert len(await cluster.said(events.FilesRemoved)) == 1
    assert "gpu-2" in cluster.holders


async def test_a_node_that_did_not_hear_is_asked_again(cluster: Cluster) -> None:
    """Nothing was deleted, and nothing said: the grant still stands."""
    cluster.deaf = 2
    await cluster.tell(wants("gpu-2"))
    await cluster.coordinator("one")
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert end.deleted
    assert cluster.holders == set(NAMES) - {"gpu-2"}


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


async def test_a_node_that_never_answers_is_no_longer_allowed_to(cluster: Cluster) -> None:
    """Its deletion ends as not done, and what it hears later it does not obey."""
    orders: list[DeletionOrder] = []

    async def silent(order: DeletionOrder) -> DeletionAnswer:
        orders.append(order)
        raise LogUnavailable("nothing came")

    await answer_deletions(cluster.bus, "gpu-2", silent)
    await cluster.coordinator("one")
    await cluster.tell(wants("gpu-2"))
    await eventually(lambda: bool(orders), PATIENCE_S)
    assert await still_granted(cluster.log, orders[0], cluster.clock())
    cluster.ahead_s += deleting.WITHDRAWN_AFTER_S
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert not end.deleted
    assert not await still_granted(cluster.log, orders[0], cluster.clock())
    assert cluster.holders == set(NAMES)


async def test_endless_words_of_a_node_end_no_loop_and_hold_up_no_deletion(
    cluster: Cluster,
) -> None:
    """A proof's reason is a node's own words: of them a message holds the beginning."""
    cluster.words = "x" * MAX_MESSAGE_BYTES
    await cluster.coordinator("one")
    await cluster.tell(wants("gpu-2"))
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    cluster.holders.clear()
    await cluster.tell(wants("gpu-3"))
    [_, end] = await cluster.ends(2)
    assert isinstance(end, events.DeletionRefused)
    assert end.proofs


async def test_deletion_that_can_not_go_on_is_tried_ever_later_and_said(cluster: Cluster) -> None:
    """P18: not each second; and health says which one it is, and what stops it."""
    cluster.log.refuses = ("d-gpu-2",)
    await cluster.tell(wants("gpu-2"))
    deleter = await cluster.coordinator("one")
    await eventually(lambda: deleter.errors == 1, PATIENCE_S)
    [(id, trouble)] = deleter.troubles.items()
    assert (id, trouble.tries) == ("d-gpu-2", 1)
    for tries in (2, 3):
        assert deleter.troubles.must_wait(id, cluster.clock())
        cluster.ahead_s += 60.0
        await eventually(lambda tries=tries: deleter.errors == tries, PATIENCE_S)
    [said] = deleter.troubles.described()
    assert said.startswith("deletion d-gpu-2 could not go on 3 times: LogUnavailable")
    cluster.log.refuses = ()
    cluster.ahead_s += 60.0
    await cluster.ends(1)
    await eventually(lambda: not deleter.troubles.items(), PATIENCE_S)


async def test_deletion_that_can_not_be_decided_is_set_aside_and_holds_up_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, json_lines: list[dict[str, str]]
) -> None:
    """P18: whoever asked hears that the copy stays; the loop and the next deletion go on."""
    real = deleting.reserve

    def stumbles(row: DeletionRow, *rest: Any) -> Fact:
        if row.node == "gpu-2":
            raise KeyError("no such place")
        return real(row, *rest)

    monkeypatch.setattr(deleting, "reserve", stumbles)
    monkeypatch.setattr(trouble, "_FIRST_S", 0.001)
    deleter = await cluster.coordinator("one")
    await cluster.tell(wants("gpu-2"), wants("gpu-3"))
    ends = {getattr(end, "node", ""): end for end in await cluster.ends(2)}
    assert isinstance(kept := ends["gpu-2"], events.DeletionRefused)
    assert (kept.rule, kept.reason) == (
        "undecided",
        "set aside after 5 tries: KeyError: 'no such place'",
    )
    assert isinstance(ends["gpu-3"], events.DeletionDone)
    await eventually(lambda: not deleter.troubles.items(), PATIENCE_S)
    assert cluster.holders == set(NAMES) - {"gpu-3"}
    undecided = [line for line in json_lines if "can't be decided" in line["message"]]
    assert {line["event"] for line in undecided} == {"d-gpu-2"}


@pytest.mark.parametrize("days", [1, -1])
async def test_nobody_deletes_on_proofs_that_have_grown_old(cluster: Cluster, days: int) -> None:
    """A grant that nobody carried out for a day is none, also while it is the last word.

    One that is said to be of tomorrow is none either: a clock is wrong.
    """
    await cluster.tell(*granted("gpu-2"))
    [grant] = await cluster.said(events.DeletionGranted)
    order = DeletionOrder("d", GAMES.path, GAMES.checksum, grant.id)
    assert await still_granted(cluster.log, order, cluster.clock())
    assert not await still_granted(cluster.log, order, cluster.clock() + days * 86_400)


async def test_a_coordinator_that_comes_back_after_days_asks_nobody(cluster: Cluster) -> None:
    """The witnesses may have lost their copies meanwhile: the deletion is withdrawn."""
    asked: list[DeletionOrder] = []

    async def obeys(order: DeletionOrder) -> DeletionAnswer:
        asked.append(order)
        return DeletionAnswer(True)

    await answer_deletions(cluster.bus, "gpu-2", obeys)
    await cluster.tell(wants("gpu-2"))
    await cluster.tell(*granted("gpu-2", "d-gpu-2"))
    cluster.ahead_s += 2 * 86_400
    await cluster.coordinator("one")
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert (end.deleted, asked) == (False, [])
    assert "withdrawn" in end.reason


async def test_a_deletion_that_fails_again_and_again_holds_up_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where one at a time is driven: what failed last is tried last."""
    monkeypatch.setattr(deleting, "AT_ONCE", 1)
    await cluster.tell(wants("gpu-2"))
    cluster.log.refuses = ("d-gpu-2",)
    await share_others(cluster)
    await cluster.tell(wants("gpu-1", OTHERS.path))
    await cluster.coordinator("one")
    [end] = await cluster.ends(1)
    assert isinstance(end, events.DeletionDone)
    assert end.path == OTHERS.path


async def test_a_deletion_under_way_is_not_begun_again(cluster: Cluster) -> None:
    """While another one fails each time, nobody is asked twice for the same proof."""
    asked: Counter[str] = Counter()
    slow = asyncio.Event()

    async def proves(path: str, checksum: str) -> Proof:
        asked[path] += 1
        await slow.wait()
        return Proof(node="gpu-3", proven=True, checksum=checksum)

    await answer_proofs(cluster.bus, "gpu-3", proves)
    await cluster.tell(wants("gpu-2"))
    cluster.log.refuses = ("d-gpu-2",)
    await share_others(cluster)
    await cluster.tell(wants("gpu-1", OTHERS.path))
    deleter = await cluster.coordinator("one")
    await eventually(lambda: deleter.errors >= 2 and bool(asked), PATIENCE_S)
    assert asked == {OTHERS.path: 1}
    slow.set()
    await cluster.ends(1)


def granted(node: str, request: str = "d") -> tuple[Said, Said]:
    """A copy may be deleted, says a coordinator that has died since."""
    what, chain = (GAMES.path, GAMES.checksum), copies_chain(GAMES.path, GAMES.checksum)
    reserved = events.DeletionReserved(
        path=what[0], checksum=what[1], node=node, request=request, reason="", requester="boss"
    )
    granted = events.DeletionGranted(path=what[0], checksum=what[1], node=node, request=request)
    return Said(reserved, chain=chain), Said(granted, chain=chain)


async def share_others(cluster: Cluster) -> None:
    """Everybody has a copy of something else, too."""
    for name in NAMES:
        holds = events.FilesObserved(node=name, entries=(OTHERS,))
        await cluster.tell(holds if name == "gpu-2" else succeeded_with(OTHERS, name))
