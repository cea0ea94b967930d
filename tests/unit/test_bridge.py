"""Bridge, dispatcher and projector on one log in one event loop, with agents that are scripts.

What the unit tests of `owed` and `admit` prove of decisions is proved here of the loops: whatever
dies between two steps, and however many run, each chain ends once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dataplane import admission as admission_module
from dataplane.admission import Admission
from dataplane.coordinator import bridge as bridge_module
from dataplane.coordinator import dispatch as dispatch_module
from dataplane.coordinator import trouble as trouble_module
from dataplane.coordinator.bridge import Decision, EventBridge
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.planner import CommandRejected
from dataplane.policy import Policy
from dataplane.retry import retry
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.rejected import RejectedRow
from projections.transfers import TransferState
from streams import events
from streams.codec import (
    MAX_MESSAGE_BYTES,
    Fact,
    Recorded,
    chain_fact,
    fact_id,
    node_fact,
)
from streams.events import FILE_TRIGGERS, Event
from streams.log import Guard, LogUnavailable, Receipt
from streams.memory import MemoryLog
from streams.values import DataEntry, DataType
from tests.conftest import eventually
from tests.spec import as_fact, entry, games_of, holds, opens, played, player, policy_of, trainer

PATIENCE_S = 20.0
GAMES = games_of("gpu-1")
CLUSTER = (trainer("train-1"), trainer("train-2"), player("gpu-1"))
#: Attempts and answers that nobody gives are given up while a test waits.
HASTY = policy_of(
    retries={
        "attempt_base_s": 0.05,
        "attempt_s_per_mb": 0.0,
        "attempt_grace_s": 0.05,
        "backoff_base_s": 0.01,
        "backoff_max_s": 0.02,
    },
    chains={"answer_limit_s": 0.1},
)
#: As hasty with retries, and patient with those who answer at all.
STEADY = policy_of(retries={"backoff_base_s": 0.01, "backoff_max_s": 0.02})

WANTED: dict[str, Any] = {"node": "train-1", "config_key": "hex8_2p", "data_type": DataType.GAMES}

Behaviour = Callable[[events.TransferAssigned, Recorded], Event | None]


class Clock:
    """The time of log and coordinators; it can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    """The clock of the test's log."""
    return Clock()


@pytest.fixture
def log(clock: Clock) -> MemoryLog:
    """An empty log."""
    return MemoryLog(clock)


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unanswered attempts are looked for often enough for a test."""
    monkeypatch.setattr(dispatch_module, "TICK_S", 0.02)


# Who takes part


class Coordinator:
    """Projector, bridge, dispatcher and sweep, as the real one runs them."""

    def __init__(self, log: MemoryLog, root: Path, policy: Policy, clock: Clock) -> None:
        self.started = asyncio.Event()
        self.projector = Projector(log, root)
        self.bridge = EventBridge(log, self.projector, policy, clock=clock)
        self.dispatcher = Dispatcher(log, self.projector, policy, "boss", clock=clock)

    async def run(self) -> None:
        """Until cancelled; then the views are let go of."""
        await self.projector.start()
        self.started.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.projector.run())
                group.create_task(self.bridge.run())
                group.create_task(self.dispatcher.run())
                group.create_task(self._sweep())
        finally:
            await self.projector.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            await self.bridge.sweep()


def succeeds(order: events.TransferAssigned, _: Recorded) -> Event:
    """The transfer succeeds at once."""
    return events.TransferSucceeded(
        transfer=order.transfer,
        node=order.executor,
        source=order.source,
        target=order.target,
        entry=order.entry,
        attempt=order.attempt,
        bytes_transferred=order.entry.size_bytes,
        games=order.entry.games,
    )


def stays_away(order: events.TransferAssigned, _: Recorded) -> None:
    """The executor is not there."""


def fails_once(order: events.TransferAssigned, recorded: Recorded) -> Event:
    """The first attempt breaks off, the second succeeds."""
    if order.attempt > 1:
        return succeeds(order, recorded)
    return events.TransferFailed(
        transfer=order.transfer,
        node=order.executor,
        source=order.source,
        target=order.target,
        entry=order.entry,
        attempt=order.attempt,
        error="connection reset",
        error_class="Interrupted",
        bytes_transferred=10,
    )


class ScriptedAgent:
    """A node that answers triggers with what it holds, and orders as its script says."""

    def __init__(
        self, log: MemoryLog, name: str, *entries: DataEntry, does: Behaviour = succeeds
    ) -> None:
        self._log = log.another()
        self._name = name
        self._entries = entries
        self._does = does

    async def run(self) -> None:
        """Read the log from its beginning, as one that was away does."""
        async for batch in self._log.read():
            for recorded in batch:
                await self._hear(recorded)

    async def _hear(self, recorded: Recorded) -> None:
        event = recorded.event
        if recorded.owner != self._name:
            return
        if type(event) in FILE_TRIGGERS:
            found = events.FilesObserved(node=self._name, entries=self._entries)
            id = fact_id("observed", recorded.id)
            await self._say(found, id, recorded)
        elif isinstance(event, events.TransferAssigned):
            result = self._does(event, recorded)
            if result is not None:
                await self._say(result, fact_id(recorded.id, events.type_name(result)), recorded)

    async def _say(self, event: Event, id: str, cause: Recorded) -> None:
        fact = node_fact(event, self._name, id, chain=cause.chain, cause=cause.id)
        await self._log.publish(fact)


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """These run meanwhile; one that ends by itself ends the test with its error."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield tasks
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def agents(log: MemoryLog, **does: Behaviour) -> list[Coroutine[Any, Any, None]]:
    """A player that holds games, and two trainers."""
    names = {"train-1": succeeds, "train-2": succeeds}
    names |= {name.replace("_", "-"): behaviour for name, behaviour in does.items()}
    trainers = [ScriptedAgent(log, name, does=behaviour) for name, behaviour in names.items()]
    return [agent.run() for agent in (ScriptedAgent(log, "gpu-1", GAMES), *trainers)]


# What is looked at


async def tell(log: MemoryLog, *facts: Any) -> None:
    """Say these."""
    for fact in facts:
        sequence = (await log.state()).last_sequence + 1
        await log.publish(as_fact(fact, sequence))


async def history(log: MemoryLog) -> list[Recorded]:
    """All that the log holds."""
    end = (await log.state()).last_sequence
    return [fact async for batch in log.read(until=end) for fact in batch] if end else []


async def types(log: MemoryLog, chain: str = "") -> list[str]:
    """What was said, of a chain if it is given, in order."""
    return [fact.type for fact in await history(log) if chain in ("", fact.chain)]


async def said(log: MemoryLog, type_name: str, count: int = 1) -> list[Recorded]:
    """Wait until so many facts of a type are in the log."""
    async with asyncio.timeout(PATIENCE_S):
        found: list[Recorded] = []
        async for batch in log.read():
            found += [fact for fact in batch if fact.type == type_name]
            if len(found) >= count:
                return found
    raise AssertionError("a log does not end")


async def ended(log: MemoryLog, count: int = 1) -> list[Recorded]:
    """Wait until so many chains have ended."""
    async with asyncio.timeout(PATIENCE_S):
        found: list[Recorded] = []
        async for batch in log.read():
            found += [
                fact
                for fact in batch
                if isinstance(fact.event, events.DataSyncCompleted | events.DataSyncFailed)
            ]
            if len(found) >= count:
                return found
    raise AssertionError("a log does not end")


async def nothing_is_doubled(log: MemoryLog) -> None:
    """No id twice, and of each chain no decision twice."""
    facts = await history(log)
    assert len({fact.id for fact in facts}) == len(facts)
    decisions = Counter(
        (fact.owner, fact.type) for fact in facts if fact.subject.startswith("dp.chain.")
    )
    assert set(decisions.values()) <= {1}


async def settled(log: MemoryLog, coordinator: Coordinator) -> None:
    """Wait until the bridge has dealt with all that was said, and its views have seen it."""
    async with asyncio.timeout(PATIENCE_S):
        await coordinator.started.wait()
        while True:
            end = (await log.state()).last_sequence
            await coordinator.projector.wait_for(end)
            await coordinator.bridge.sweep()
            if (await log.state()).last_sequence == end:
                return


# One chain


async def test_chain_completes(log: MemoryLog, clock: Clock, tmp_path: Path) -> None:
    """From the trigger to the announcement, each fact once and in order."""
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    await tell(log, trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    async with running(coordinator.run(), *agents(log)):
        await said(log, "NEW_GAMES_AVAILABLE")
        await settled(log, coordinator)
    assert await types(log, "c1") == [
        "SELFPLAY_COMPLETE",
        "FILES_OBSERVED",
        "SYNC_PLANNED",
        "DATA_SYNC_STARTED",
        "TRANSFER_ASSIGNED",
        "TRANSFER_SUCCEEDED",
        "DATA_SYNC_COMPLETED",
        "NEW_GAMES_AVAILABLE",
    ]
    await nothing_is_doubled(log)


async def test_every_fact_names_what_caused_it(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """A chain is a tree: each fact's cause is an earlier fact of the log."""
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    async with running(Coordinator(log, tmp_path, STEADY, clock).run(), *agents(log)):
        await said(log, "NEW_GAMES_AVAILABLE")
    facts = [fact for fact in await history(log) if fact.chain == "c1"]
    known = {facts[0].id}
    for fact in facts[1:]:
        assert fact.cause in known, f"{fact.type} is caused by {fact.cause}"
        known.add(fact.id)


async def test_what_is_decided_for_a_trigger_of_a_trace_is_part_of_it(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Plan, orders and end are in the trace of whoever said the trigger; another chain is not."""
    theirs = "0af7651916cd43dd8448eb211c80319c"
    coordinator = Coordinator(log, tmp_path / "boss", STEADY, clock)
    first = as_fact(opens("c1", played()), 0)
    await tell(log, *CLUSTER, replace(first, traceparent=f"00-{theirs}-00f067aa0ba902b7-01"))
    async with running(coordinator.run(), *agents(log)):
        await ended(log)
        await tell(log, opens("c2", played()))
        await ended(log, 2)
    decided = [f for f in await history(log) if f.subject.startswith(("dp.chain.", "dp.task."))]
    for fact in decided:
        assert (fact.traceparent[3:35] == theirs) == (fact.chain == "c1"), fact
    assert {"SYNC_PLANNED", "TRANSFER_ASSIGNED"} <= {f.type for f in decided if f.chain == "c1"}


async def test_hand_made_trigger_completes(log: MemoryLog, clock: Clock, tmp_path: Path) -> None:
    """`nats pub` without a header is as good as the client library."""
    await tell(log, *CLUSTER)
    log.tell("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_played":500}')
    async with running(Coordinator(log, tmp_path, STEADY, clock).run(), *agents(log)):
        (end,) = await ended(log)
    assert (end.type, end.chain) == ("DATA_SYNC_COMPLETED", "DATAPLANE-4")


async def test_failed_attempt_is_made_again(log: MemoryLog, clock: Clock, tmp_path: Path) -> None:
    """A broken connection costs an attempt, not the chain; its bytes are counted."""
    await tell(log, trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run(), *agents(log, train_1=fails_once)):
        (end,) = await ended(log)
    assert isinstance(end.event, events.DataSyncCompleted)
    assert end.event.bytes_transferred == 1_010
    assert (await types(log, "c1")).count("TRANSFER_ASSIGNED") == 2


async def test_p1_failed_chain_names_the_target_that_stays_away(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """One of two trainers is never heard of: the end says which, and what the other got."""
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, HASTY, clock)
    async with running(coordinator.run(), *agents(log, train_2=stays_away)):
        (end,) = await ended(log)
    assert isinstance(end.event, events.DataSyncFailed)
    assert end.event.reason == "1 of 2 copies are missing on train-2"
    assert [outcome.target for outcome in end.event.arrived] == ["train-1"]
    (missing,) = end.event.failed
    assert missing.target == "train-2"
    assert missing.error.startswith("Unanswered: train-2 gave no result")
    await nothing_is_doubled(log)


async def test_p1_failed_chain_names_the_node_that_does_not_answer(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Without its agent nobody knows what the player holds; the sweep notices."""
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    async with running(Coordinator(log, tmp_path, HASTY, clock).run()):
        (end,) = await ended(log)
    assert isinstance(end.event, events.DataSyncFailed)
    assert end.event.reason == "gpu-1 gave no answer within 0.1 s"


async def test_node_that_comes_back_carries_out_what_it_was_given(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """However long it stays away: its order waits in the log, and the chain completes."""
    await tell(log, trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run(), ScriptedAgent(log, "gpu-1", GAMES).run()):
        await said(log, "TRANSFER_ASSIGNED")
        async with running(ScriptedAgent(log, "train-1").run()):
            (end,) = await ended(log)
    assert end.type == "DATA_SYNC_COMPLETED"


# Several coordinators


async def test_two_coordinators_on_one_log_double_nothing(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Twenty chains, two deciders: each says each thing once, and caps hold for both together."""
    capped = policy_of(
        bandwidth={"max_total": 3, "small_per_slot": 1}, retries={"backoff_base_s": 0.01}
    )
    two = [Coordinator(log.another(), tmp_path / name, capped, clock) for name in "ab"]
    await tell(log, *CLUSTER)
    names = [f"games/gpu-1/{n:02}_hex8_2p.db" for n in range(20)]
    # Large enough that none shares its slot.
    large = [entry(name, games=10, size_bytes=50_000_000) for name in names]
    holder = ScriptedAgent(log, "gpu-1", *large)
    workers = [ScriptedAgent(log, name).run() for name in ("train-1", "train-2")]
    async with running(*(one.run() for one in two), holder.run(), *workers):
        await tell(log, *(opens(f"c{n}", played("gpu-1")) for n in range(20)))
        ends = await ended(log, 20)
        for one in two:
            await settled(log, one)
    assert {end.chain for end in ends} == {f"c{n}" for n in range(20)}
    assert {end.type for end in ends} == {"DATA_SYNC_COMPLETED"}
    await nothing_is_doubled(log)
    under_way: set[str] = set()
    for fact in await history(log):
        if isinstance(fact.event, events.TransferAssigned):
            under_way.add(fact.event.transfer)
        elif isinstance(fact.event, events.TransferSucceeded):
            under_way.discard(fact.event.transfer)
        assert len(under_way) <= 3


async def test_views_of_two_coordinators_are_the_same(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Live folds in whatever batches: both know the same."""
    two = [Coordinator(log.another(), tmp_path / name, STEADY, clock) for name in "ab"]
    await tell(log, *CLUSTER, *(opens(f"c{n}", played("gpu-1")) for n in range(5)))
    async with running(*(one.run() for one in two), *agents(log)):
        await ended(log, 5)
        found = []
        for one in two:
            await settled(log, one)
            with one.projector.store.read() as reader:
                view = ClusterView(reader)
                found.append((view.counts(), [row.id for row in view.ended_chains()]))
    assert found[0] == found[1]


async def test_p11_coordinator_that_takes_over_goes_on_where_the_dead_one_was(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Orders are out, nobody waits for them any more: the next one completes the chain."""
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    first = Coordinator(log.another(), tmp_path / "first", STEADY, clock)
    async with running(first.run(), ScriptedAgent(log, "gpu-1", GAMES).run()):
        await said(log, "TRANSFER_ASSIGNED", 2)
    clock.ahead_s += bridge_module.ACK_WAIT_S + 1
    second = Coordinator(log.another(), tmp_path / "second", STEADY, clock)
    async with running(second.run(), *agents(log)):
        (end,) = await ended(log)
        await settled(log, second)
    assert end.type == "DATA_SYNC_COMPLETED"
    await nothing_is_doubled(log)


# Dying in between


class Dying(MemoryLog):
    """A client whose process stops at its n-th append, before or after the log has it."""

    dies_at = 1
    after_append = False

    def armed(self, dies_at: int, *, after_append: bool) -> Dying:
        """The same, ready to die."""
        self.dies_at, self.after_append = dies_at, after_append
        self.reached = asyncio.Event()
        self.appends = 0
        return self

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        self.appends += 1
        if self.appends < self.dies_at:
            return await super().append(facts, guards)
        if self.after_append:
            await super().append(facts, guards)
        self.reached.set()
        await asyncio.Event().wait()
        raise AssertionError("it is dead")


@pytest.mark.parametrize("after_append", [False, True], ids=["decided", "appended"])
@pytest.mark.parametrize("dies_at", [1, 2, 3])
async def test_p1_bridge_that_dies_between_deciding_and_acknowledging_loses_nothing(
    clock: Clock, tmp_path: Path, dies_at: int, after_append: bool
) -> None:
    """Redelivery asks again: what was not appended is, what was appended is not doubled."""
    log = Dying(clock).armed(1_000, after_append=False)
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    client = log.another().armed(dies_at, after_append=after_append)
    first = Coordinator(client, tmp_path / "first", STEADY, clock)
    others = agents(log)
    async with running(*others):
        async with running(first.run()):
            async with asyncio.timeout(PATIENCE_S):
                await client.reached.wait()
        # The server has not noticed yet that nobody acknowledges any more.
        clock.ahead_s += bridge_module.ACK_WAIT_S + 1
        second = Coordinator(
            log.another().armed(1_000, after_append=False), tmp_path / "second", STEADY, clock
        )
        async with running(second.run()):
            (end,) = await ended(log)
            await settled(log, second)
    assert end.type == "DATA_SYNC_COMPLETED"
    await nothing_is_doubled(log)


async def test_redelivery_alone_completes_what_a_dead_bridge_left(
    clock: Clock, tmp_path: Path
) -> None:
    """Without any sweep, and without a further event: the unacknowledged trigger comes again."""
    log = MemoryLog(clock)
    await tell(log, trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
    found = events.FilesObserved(node="gpu-1", entries=(GAMES,))
    await log.publish(node_fact(found, "gpu-1", "observed", chain="c1", cause="c1"))
    client = Dying(clock, store=log._store).armed(1, after_append=False)
    root = tmp_path / "views"
    for one in (client, log.another()):
        projector = Projector(one, root)
        await projector.start()
        bridge = EventBridge(one, projector, STEADY, clock=clock)
        async with running(projector.run(), bridge.run()):
            if one is client:
                async with asyncio.timeout(PATIENCE_S):
                    await client.reached.wait()
                assert "SYNC_PLANNED" not in await types(log)
                clock.ahead_s += bridge_module.ACK_WAIT_S + 1
            else:
                await said(log, "DATA_SYNC_STARTED")
        await projector.close()
    assert (await types(log)).count("SYNC_PLANNED") == 1


class Flaky(MemoryLog):
    """A client whose first appends are not answered, though some of them are heard."""

    failures = 0
    heard = False

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        if self.failures:
            self.failures -= 1
            if self.heard:
                await super().append(facts, guards)
            raise LogUnavailable("no answer within 5 s")
        return await super().append(facts, guards)


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
async def test_p2_append_that_is_not_answered_is_counted_and_done_again(
    clock: Clock, tmp_path: Path, heard: bool
) -> None:
    """The error is no silent 'no plans': the delivery is given back, and comes again."""
    log = Flaky(clock)
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    client = log.another()
    client.failures, client.heard = 1, heard
    coordinator = Coordinator(client, tmp_path, STEADY, clock)

    async def sweepless() -> None:
        await asyncio.Event().wait()

    coordinator._sweep = sweepless  # type: ignore[method-assign]
    async with running(coordinator.run(), *agents(log)):
        (end,) = await ended(log)
        await settled(log, coordinator)
    assert end.type == "DATA_SYNC_COMPLETED"
    assert coordinator.bridge.errors + coordinator.dispatcher.errors > 0
    await nothing_is_doubled(log)


async def test_full_log_is_said_and_forgotten_once_it_takes_something_again(
    clock: Clock, tmp_path: Path
) -> None:
    """Nothing is lost meanwhile: the chain completes when there is room."""
    log = MemoryLog(clock, max_messages=4)
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    clock.ahead_s += 100.0
    async with running(coordinator.run()):
        await eventually(lambda: "the log is full" in log.room.full)
        log._store.max_messages = None
        clock.ahead_s += 20.0
        (end,) = await ended(log)
        await eventually(lambda: log.room.full == "")
    assert end.type == "DATA_SYNC_FAILED"


# What nobody understands


async def test_p14_rejected_message_gets_exactly_one_event_rejected(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """With two coordinators, sweeps, and a restart: said once, by sequence and reason."""
    await tell(log, *CLUSTER)
    bad = "dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p"
    for body in (b'{"games_count":-1}', b"[]"):
        log.tell(bad, body)
    two = [Coordinator(log.another(), tmp_path / name, STEADY, clock) for name in "ab"]
    async with running(*(one.run() for one in two)):
        await said(log, "EVENT_REJECTED", 2)
        for one in two:
            await settled(log, one)
    clock.ahead_s += bridge_module.ACK_WAIT_S + 1
    third = Coordinator(log.another(), tmp_path / "c", STEADY, clock)
    async with running(third.run()):
        log.tell(bad, b"7")
        await said(log, "EVENT_REJECTED", 3)
        await settled(log, third)
    rejected = [one.event for one in await history(log) if one.type == "EVENT_REJECTED"]
    assert [(one.sequence, one.subject) for one in rejected] == [  # type: ignore[union-attr]
        (4, bad),
        (5, bad),
        (8, bad),
    ]
    assert "$.games_count" in rejected[0].reason  # type: ignore[union-attr]


async def test_p1_message_nobody_understands_blocks_nothing_behind_it(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Not under a node, not under the chain itself, not among the assignments."""
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    log.tell("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b"\xff")
    log.tell("dp.chain.c1.FROM_THE_FUTURE.hex8_2p", b"{}")
    log.tell("dp.task.train-1.TRANSFER_ASSIGNED.hex8_2p", b"{}")
    log.tell("dp.task.a.b.TRANSFER_ASSIGNED.hex8_2p", b"{}")
    log.tell("dp.chain.c1", b"{}")
    async with running(Coordinator(log, tmp_path, STEADY, clock).run(), *agents(log)):
        (end,) = await ended(log)
    assert (end.type, end.chain) == ("DATA_SYNC_COMPLETED", "c1")


async def test_events_that_open_no_chain_are_acknowledged(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """What owes nothing is dealt with, too: it does not come again for ever."""
    await tell(log, *CLUSTER, events.HostOffline(node="gpu-1"), events.NodeRecovered(node="gpu-1"))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run()):
        await settled(log, coordinator)
        await eventually(lambda: coordinator.bridge.handled == 5)
    assert log._store.consumers[bridge_module.DURABLE].out == {}
    assert len(await history(log)) == 5


async def test_what_takes_long_to_decide_is_appended_bit_by_bit(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine so slow that one chain takes its whole time, each is appended by itself."""
    monkeypatch.setattr(bridge_module, "SLICE_S", 0.0)
    names = [f"c{number}" for number in range(5)]
    needs = [opens(name, events.DataNeeded(**WANTED)) for name in names]
    await tell(log, *CLUSTER, *needs)
    appended: list[int] = []
    real = EventBridge._append

    async def append(self: EventBridge, group: list[Decision]) -> Receipt:
        appended.append(len(group))
        return await real(self, group)

    monkeypatch.setattr(EventBridge, "_append", append)
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run()):
        ends = await ended(log, len(names))
    assert {end.chain for end in ends} == set(names)
    assert appended == [1] * len(names)


# What can't be decided


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks what chain ``poison`` owes gets an error, and there is no delay."""
    real = bridge_module.owed

    def owed(chain: Any, *rest: Any) -> list[Fact]:
        if chain.id.startswith("poison"):
            raise KeyError("no such board")
        return real(chain, *rest)

    monkeypatch.setattr(bridge_module, "owed", owed)
    monkeypatch.setattr(trouble_module, "_FIRST_S", 0.001)


@pytest.mark.usefixtures("poisoned")
async def test_chain_that_cannot_be_decided_is_in_nobodys_way_and_is_set_aside_once(
    log: MemoryLog, clock: Clock, tmp_path: Path, json_lines: list[dict[str, str]]
) -> None:
    """With two coordinators: the other chains complete, and this one fails with the reason."""
    await tell(log, *CLUSTER, opens("poison", played("gpu-1")), opens("c1", played("gpu-1")))
    two = [Coordinator(log.another(), tmp_path / name, STEADY, clock) for name in "ab"]
    async with running(*(one.run() for one in two), *agents(log)):
        ends = {end.chain: end for end in await ended(log, 2)}
        for one in two:
            await settled(log, one)
            assert len(one.bridge.troubles) == 0
    assert ends["c1"].type == "DATA_SYNC_COMPLETED"
    assert isinstance(failed := ends["poison"].event, events.DataSyncFailed)
    assert failed.reason == "set aside after 5 tries: KeyError: 'no such board'"
    (aside,) = [one for one in await history(log) if one.type == "EVENT_SET_ASIDE"]
    assert isinstance(said_ := aside.event, events.EventSetAside)
    assert (said_.sequence, said_.trigger, said_.tries) == (4, "SELFPLAY_COMPLETE", 5)
    await nothing_is_doubled(log)
    # Whoever looks for a chain in the logs finds what is about it, and which fact moved it.
    ids = {fact.id for fact in await history(log)}
    for chain, words in (("poison", "can't be decided"), ("c1", "decided: SYNC_PLANNED")):
        about = [line for line in json_lines if words in line["message"]]
        assert {line["chain"] for line in about} == {chain}
        assert {line["event"] for line in about} <= ids


async def test_chain_whose_facts_no_message_can_hold_is_set_aside(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before the log is asked: else the append would end the loop, and the next leader's."""
    real = bridge_module.owed

    def owed(chain: Any, *rest: Any) -> list[Fact]:
        if chain.id != "poison":
            return real(chain, *rest)
        endless = events.ChainOverdue(
            config_key="hex8_2p", age_seconds=1.0, waiting_for="x" * MAX_MESSAGE_BYTES
        )
        return [chain_fact(endless, chain.id, "")]

    monkeypatch.setattr(bridge_module, "owed", owed)
    monkeypatch.setattr(trouble_module, "_FIRST_S", 0.001)
    await tell(log, *CLUSTER, opens("poison", played("gpu-1")), opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run(), *agents(log)):
        ends = {end.chain: end for end in await ended(log, 2)}
    assert ends["c1"].type == "DATA_SYNC_COMPLETED"
    assert isinstance(failed := ends["poison"].event, events.DataSyncFailed)
    assert failed.reason.startswith("set aside after 5 tries: ValueError: CHAIN_OVERDUE is ")


@pytest.mark.usefixtures("poisoned")
async def test_what_was_set_aside_can_be_said_anew_once(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """It opens a chain of its own, which completes now that its cause is mended."""
    await tell(log, *CLUSTER, opens("poison", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run(), *agents(log)):
        await ended(log)
        await settled(log, coordinator)
        with coordinator.projector.store.read() as reader:
            row = ClusterView(reader).rejected_at(4)
        assert row is not None and (row.chain, row.retried_as) == ("poison", "")
        retried = await retry(log, row.sequence)
        with pytest.raises(CommandRejected, match="said anew by somebody else"):
            await retry(log, row.sequence)
        ends = await ended(log, 2)
        await settled(log, coordinator)
        with coordinator.projector.store.read() as reader:
            row = ClusterView(reader).rejected_at(4)
    assert row is not None and row.retried_as == retried.id
    assert (ends[1].chain, ends[1].type) == (retried.chain, "DATA_SYNC_COMPLETED")


# What admission stumbles over


def stumbling(monkeypatch: pytest.MonkeyPatch, name: str, over: str) -> None:
    """A function of admission raises an error where it is given a transfer of chain `over`."""
    real = getattr(admission_module, name)

    def stumbles(transfer: Any, *rest: Any) -> Any:
        if over in transfer.chains:
            raise KeyError("no such board")
        return real(transfer, *rest)

    monkeypatch.setattr(admission_module, name, stumbles)
    monkeypatch.setattr(trouble_module, "_FIRST_S", 0.001)


@pytest.mark.parametrize("name", ["not_ready", "choose", "share_of", "expected_end"])
async def test_transfer_that_admission_stumbles_over_is_in_nobodys_way_and_is_set_aside_once(
    log: MemoryLog,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    json_lines: list[dict[str, str]],
) -> None:
    """With two coordinators: the other chain completes, and this one fails with the reason."""
    stumbling(monkeypatch, name, "poison")
    others = replace(games_of("gpu-2"), config_key="square8_2p")
    asked = events.TrainingStarted(config_key="square8_2p", node="train-1", deadline=clock() + 60.0)
    await tell(log, *CLUSTER, player("gpu-2"), holds("gpu-2", others))
    await tell(log, opens("poison", asked), opens("c1", played("gpu-1")))
    two = [Coordinator(log.another(), tmp_path / name, STEADY, clock) for name in "ab"]
    async with running(*(one.run() for one in two), *agents(log)):
        ends = {end.chain: end for end in await ended(log, 2)}
        for one in two:
            await settled(log, one)
            await eventually(lambda one=one: not one.dispatcher.suspects.troubles)
            assert not one.dispatcher.problem
    assert isinstance(failed := ends["poison"].event, events.DataSyncFailed)
    assert failed.reason.startswith(
        f"set aside after 5 tries: transfer of {others.path} to train-1"
    )
    assert failed.reason.endswith("KeyError: 'no such board'")
    assert ends["c1"].type == "DATA_SYNC_COMPLETED"
    (aside,) = [one for one in await history(log) if one.type == "EVENT_SET_ASIDE"]
    assert isinstance(said_ := aside.event, events.EventSetAside)
    assert said_.tries == 5
    await nothing_is_doubled(log)
    left_out = [line for line in json_lines if "is left out" in line["message"]]
    assert {line["chain"] for line in left_out} == {"poison"}


async def test_transfer_under_way_that_admission_stumbles_over_is_set_aside(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up nobody, and its chain does not wait for its result for ever."""
    real = admission_module.share_of

    def stumbles(transfer: Any, *rest: Any) -> Any:
        if transfer.state is TransferState.ASSIGNED and "poison" in transfer.chains:
            raise KeyError("no such board")
        return real(transfer, *rest)

    def of_poison_nothing(order: events.TransferAssigned, recorded: Recorded) -> Event | None:
        return None if recorded.chain == "poison" else succeeds(order, recorded)

    monkeypatch.setattr(admission_module, "share_of", stumbles)
    monkeypatch.setattr(trouble_module, "_FIRST_S", 0.001)
    others = replace(games_of("gpu-2"), config_key="square8_2p")
    asked = events.TrainingStarted(config_key="square8_2p", node="train-1")
    await tell(log, *CLUSTER, player("gpu-2"), holds("gpu-2", others), opens("poison", asked))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    scripts = agents(log, train_1=of_poison_nothing)
    async with running(coordinator.run(), *scripts):
        await said(log, "TRANSFER_ASSIGNED")
        await tell(log, opens("c1", played("gpu-1")))
        ends = {end.chain: end for end in await ended(log, 2)}
    assert ends["c1"].type == "DATA_SYNC_COMPLETED"
    assert isinstance(failed := ends["poison"].event, events.DataSyncFailed)
    assert failed.reason.startswith("set aside after 5 tries: transfer of ")


async def test_admission_that_stumbles_over_no_transfer_in_particular_ends_no_coordinator(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so for health, goes on trying, and assigns as soon as it can."""
    real, broken = dispatch_module.admit, True

    def admit(*given: Any, **more: Any) -> Admission:
        if broken and isinstance(given[2], dispatch_module.Known) and more:
            raise KeyError("no such node")
        return real(*given, **more)

    monkeypatch.setattr(dispatch_module, "admit", admit)
    await tell(log, *CLUSTER, opens("c1", played("gpu-1")))
    coordinator = Coordinator(log, tmp_path, STEADY, clock)
    async with running(coordinator.run(), *agents(log)):
        dispatcher = coordinator.dispatcher
        await eventually(lambda: bool(dispatcher.problem) and dispatcher.turns > 3)
        assert dispatcher.problem == "nothing can be assigned: KeyError: 'no such node'"
        assert len(dispatcher.suspects.troubles) == 0
        broken = False
        (end,) = await ended(log)
        await eventually(lambda: not dispatcher.problem)
    assert end.type == "DATA_SYNC_COMPLETED"


async def test_what_is_still_not_understood_is_not_said_anew(log: MemoryLog) -> None:
    """The reason is said again; the log gets nothing."""
    log.tell("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b"[]")
    row = RejectedRow(1, "dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", "", 0.0)
    with pytest.raises(CommandRejected, match="still not understood"):
        await retry(log, row.sequence)
    assert len(await history(log)) == 1


@pytest.mark.parametrize("steps", range(5))
async def test_coordinator_that_is_cancelled_ends(
    log: MemoryLog, clock: Clock, tmp_path: Path, steps: int
) -> None:
    """Also if something was committed just then: a cancellation is never swallowed."""
    projector = Projector(log, tmp_path)
    await projector.start()
    dispatcher = Dispatcher(log, projector, STEADY, "boss", clock=clock)
    task = asyncio.create_task(dispatcher.run())
    await asyncio.sleep(0)
    for tell_it in projector.on_commit:
        tell_it([])
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5)
    assert done == {task}
    await projector.close()


async def test_warning_that_did_not_get_through_is_said_again(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that did is said once; nobody remembers warnings of transfers that have ended."""
    event = events.DeadlineAtRisk(transfer="t1", target="train-1", deadline=9.0, estimate=10.0)
    fact = chain_fact(event, "c1", "", "t1", 9.0)
    risks = {"t1": fact}
    admission = Admission((), None, risks)
    monkeypatch.setattr(dispatch_module, "admit", lambda *_, **__: admission)
    said: list[str] = []

    async def publish(fact: Fact) -> Receipt:
        said.append(fact.id)
        if len(said) == 1:
            raise LogUnavailable("a hiccup")
        return Receipt(1)

    monkeypatch.setattr(log, "publish", publish)
    projector = Projector(log, tmp_path)
    await projector.start()
    dispatcher = Dispatcher(log, projector, STEADY, "boss", clock=clock)
    with pytest.raises(LogUnavailable):
        await dispatcher.dispatch()
    for _ in range(3):
        await dispatcher.dispatch()
    assert said == [fact.id, fact.id]
    risks["t2"] = chain_fact(event, "c1", "", "t2", 9.0)
    await dispatcher.dispatch()
    assert dispatcher._warned.keys() == {"t2"}
    await projector.close()


async def test_sweep_goes_through_more_chains_than_a_page(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    """Every open chain is asked, however many there are."""
    await tell(log, *(opens(f"c{n:03}", played("gpu-1")) for n in range(250)))
    async with AsyncExitStack() as stack:
        projector = Projector(log, tmp_path)
        await projector.start()
        stack.push_async_callback(projector.close)
        bridge = EventBridge(log, projector, HASTY, clock=clock)
        clock.ahead_s += 10
        await stack.enter_async_context(running(projector.run()))
        await bridge.sweep()
        ends = await ended(log, 250)
    assert len({end.chain for end in ends}) == 250
