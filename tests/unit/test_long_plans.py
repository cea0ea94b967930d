"""A plan so long that it is said part by part: its leader stays, no part is lost or doubled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dataplane.coordinator import bridge as bridge_module
from dataplane.coordinator import lease as lease_module
from dataplane.coordinator.bridge import EventBridge, _moved_on
from dataplane.coordinator.lease import LEADER, LEASE_S, Lease
from dataplane.policy import Policy
from projections import transfers
from projections.chains import ChainStatus
from projections.cluster import ClusterView
from projections.projector import Projector
from streams import events
from streams.codec import MAX_MESSAGE_BYTES, Fact, Recorded, encode
from streams.log import Guard, LogError, LogUnavailable, Receipt
from streams.memory import MemoryBus, MemoryLog
from streams.topology import LEASE_BUCKET
from tests.conftest import eventually
from tests.spec import (
    Story,
    as_fact,
    asked,
    assigned,
    entry,
    failed,
    given,
    holds,
    opens,
    player,
    said_what_is_owed,
    succeeded,
    trainer,
)

PATIENCE_S = 60.0
#: Paths so long that a message holds a hundred or so.
LONG = 1_500
MANY = [entry(f"games/gpu-1/{'d' * LONG}/{n:03}_hex8_2p.db", games=10) for n in range(600)]
STARTED = events.TrainingStarted(config_key="hex8_2p", node="train-1")
BEFORE = (
    trainer("train-1"),
    player("gpu-1"),
    *(holds("gpu-1", *MANY[n : n + 100]) for n in range(0, len(MANY), 100)),
)


class Counting(MemoryLog):
    """A client that notes how much each append holds, and may be cut off after some."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sizes: list[int] = []
        self.left = 1_000

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        if not self.left:
            raise LogUnavailable("cut off")
        self.left -= 1
        receipt = await super().append(facts, guards)
        self.sizes.append(sum(len(encode(fact, 0.0)[1]) for fact in facts))
        return receipt


@asynccontextmanager
async def bridge_on(log: MemoryLog, root: Path, **more: Any) -> AsyncIterator[EventBridge]:
    """A bridge whose views follow the log, and that is only swept."""
    projector = Projector(log, root)
    await projector.start()
    following = asyncio.create_task(projector.run())
    await projector.wait_for((await log.state()).last_sequence)
    try:
        yield EventBridge(log, projector, Policy(), **more)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await projector.close()


async def told(log: MemoryLog, *more: Any) -> MemoryLog:
    """The log, with a cluster of many files and a training that starts."""
    for number, fact in enumerate((*BEFORE, opens("c1", STARTED), *more), 1):
        await log.publish(as_fact(fact, number))
    return log


async def decisions(log: MemoryLog) -> list[Recorded]:
    """What was decided for the chain, in order."""
    end = (await log.state()).last_sequence
    facts = [fact async for batch in log.read(until=end) for fact in batch]
    return [fact for fact in facts if fact.subject.startswith("dp.chain.c1.")]


def wanted(facts: Sequence[Recorded]) -> list[str]:
    """The paths that plans bring, as often as they say so."""
    plans = [fact.event for fact in facts if isinstance(fact.event, events.SyncPlanned)]
    return sorted(e.path for event in plans for plan in event.plans for e in plan.entries)


async def test_long_plan_is_appended_part_by_part(tmp_path: Path) -> None:
    """Whatever its length, no append and no message grows with it."""
    log = Counting()
    await told(log)
    async with bridge_on(log, tmp_path) as bridge:
        await bridge.sweep()
        await bridge.sweep()
    facts = await decisions(log)
    assert wanted(facts) == sorted(one.path for one in MANY)
    parts = [fact.event for fact in facts if isinstance(fact.event, events.SyncPlanned)]
    assert len(parts) > 2
    assert [part.last_part for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(log.sizes) == len(parts)
    assert max(log.sizes) <= MAX_MESSAGE_BYTES
    assert [fact.type for fact in facts][len(parts) :] == ["DATA_SYNC_STARTED"]
    assert bridge.conflicts == 0


async def _is_past(bus: MemoryBus, revision: int) -> bool:
    return (await bus.kv_entry(LEASE_BUCKET, LEADER))[0] > revision


async def test_lease_is_renewed_while_a_long_decision_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deciding that lasts longer than a lease deposes nobody: it takes no turn from the loop."""
    now, renewed = [1_000.0], threading.Event()
    bus, log = MemoryBus(), await told(MemoryLog())
    lease = Lease(bus, "a", clock=lambda: now[0])
    monkeypatch.setattr(lease_module, "RENEW_S", 0.001)
    real = bridge_module.owed

    def owed(*asked: Any) -> list[Fact]:
        assert renewed.wait(PATIENCE_S), "the loop had no turn while this was decided"
        return real(*asked)

    async def time_passes() -> None:
        """Three leases, each renewed in time."""
        for _ in range(6):
            now[0] += LEASE_S / 2
            before = (await bus.kv_entry(LEASE_BUCKET, LEADER))[0]
            await eventually(lambda past=before + 1: _is_past(bus, past), PATIENCE_S)
        renewed.set()

    monkeypatch.setattr(bridge_module, "owed", owed)
    async with bridge_on(log, tmp_path, leads=lambda: lease.held) as bridge:
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        await asyncio.gather(bridge.sweep(), time_passes())
        assert lease.held and lease.term == 1
        keeping.cancel()
    assert wanted(await decisions(log)) == sorted(one.path for one in MANY)


async def test_long_decision_is_no_standstill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever takes it is ended in the middle of it, and who takes it over as well."""
    seen, real = list[int](), bridge_module.owed

    async with bridge_on(await told(MemoryLog()), tmp_path) as bridge:

        def owed(chain: Any, rows: Any, plan: Any, *asked: Any) -> list[Fact]:
            def noting(*trigger: Any) -> events.SyncPlanned:
                seen.append(bridge.turns)
                planned: events.SyncPlanned = plan(*trigger)
                seen.append(bridge.turns)
                return planned

            return real(chain, rows, noting, *asked)

        monkeypatch.setattr(bridge_module, "owed", owed)
        await bridge.sweep()
    begun, decided = seen
    assert decided - begun >= len(MANY)


@pytest.mark.parametrize("said", range(7))
async def test_who_leads_next_says_the_rest_of_a_plan_and_nothing_twice(
    said: int, tmp_path: Path
) -> None:
    """Wherever its decider is cut off; what it said stands, also where the cluster has changed."""
    log = await told(MemoryLog())
    first = Counting(store=log._store)
    first.left = said
    async with bridge_on(first, tmp_path / "first") as bridge:
        with suppress(LogError):
            await bridge.sweep()
    before = await decisions(log)
    assert len([one for one in before if one.type == "SYNC_PLANNED"]) == said
    newer = entry("games/gpu-1/newer_hex8_2p.db", games=10)
    await log.publish(as_fact(holds("gpu-1", newer), 10_000))
    async with bridge_on(log, tmp_path / "second") as bridge:
        await bridge.sweep()
        await bridge.sweep()
        with bridge._projector.store.read() as reader:
            chain = ClusterView(reader).whole_chain("c1")
    facts = await decisions(log)
    paths = sorted(one.path for one in (*MANY, newer))
    assert wanted(facts) == paths
    assert facts[: len(before)] == before
    assert [fact.type for fact in facts].count("DATA_SYNC_STARTED") == 1
    assert chain is not None and chain.status is ChainStatus.MOVING
    assert sorted(need.path for need in chain.needs) == paths
    assert len({need.transfer for need in chain.needs}) == len(chain.needs) == chain.copies


async def test_two_who_decide_on_one_plan_at_once_say_it_once(tmp_path: Path) -> None:
    """The guard of each piece lets one of them on; the other sees what was said and goes on."""
    log = await told(MemoryLog())
    async with (
        bridge_on(log.another(), tmp_path / "a") as one,
        bridge_on(log.another(), tmp_path / "b") as other,
    ):
        await asyncio.gather(one.sweep(), other.sweep())
        for bridge in (one, other):
            await bridge._projector.wait_for((await log.state()).last_sequence)
            await bridge.sweep()
    facts = await decisions(log)
    assert wanted(facts) == sorted(one.path for one in MANY)
    assert [fact.type for fact in facts].count("DATA_SYNC_STARTED") == 1


def test_row_of_a_chain_does_not_grow_with_its_plan() -> None:
    """Who looks at all chains, every second, reads no plans."""
    story = given(*BEFORE, opens("c1", STARTED))
    before = _stored_bytes(story)
    story.tell(said_what_is_owed)
    assert len(story.chain("c1").needs) == len(MANY)
    assert _stored_bytes(story) < before + 100


def _stored_bytes(story: Story) -> int:
    with story.store.read() as reader:
        return len(reader.get("chains", b"c1") or b"")


# How often a chain is asked that waits for very much


class Reads:
    """Counts the transfers that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = transfers.get_transfer

        def counted(*asked: Any) -> Any:
            self.count += 1
            return real(*asked)

        monkeypatch.setattr(transfers, "get_transfer", counted)


FILES = [entry(f"games/gpu-1/{n:03}_hex8_2p.db", games=10) for n in range(200)]


@pytest.mark.parametrize(
    "breaks",
    [
        lambda one: failed(path=one.path, error_class="Refused", retryable=False),
        lambda one: (failed(path=one.path), assigned),
    ],
    ids=["for good", "once"],
)
def test_result_of_a_long_chain_reads_few_of_its_transfers(
    breaks: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many of the others have failed: one that goes on is found at once."""
    story = given(trainer("train-1"), player("gpu-1"), holds("gpu-1", *FILES))
    story.under(bandwidth={"max_per_node": 1_000, "max_total": 1_000})
    story.tell(opens("c1", STARTED), said_what_is_owed, assigned)
    for one in FILES[:100]:
        broken = breaks(one)
        story.tell(*broken if isinstance(broken, tuple) else (broken,))
    story.tell(succeeded(path=FILES[150].path))
    reads = Reads(monkeypatch)
    assert _moved_on(story.view, story.facts[-1], story.policy) == []
    assert reads.count < 6


def test_chain_is_asked_when_the_last_that_went_on_has_ended() -> None:
    """Those that failed for good are no reason to wait."""
    story = given(trainer("train-1"), player("gpu-1"), holds("gpu-1", *FILES[:2]))
    story.tell(opens("c1", STARTED), said_what_is_owed, assigned)
    story.tell(failed(path=FILES[0].path, error_class="Refused", retryable=False))
    assert _moved_on(story.view, story.facts[-1], story.policy) == []
    story.tell(succeeded(path=FILES[1].path))
    assert _moved_on(story.view, story.facts[-1], story.policy) == ["c1"]
    story.when(asked("c1"))


async def test_sweep_asks_a_long_chain_the_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many seconds apart as it wants thousands of copies."""
    monkeypatch.setattr(bridge_module, "LONG_COPIES", 100)
    log = await told(MemoryLog())
    now, asked_of = [0.0], list[str]()
    real = bridge_module.owed

    def owed(chain: Any, *rest: Any) -> list[Fact]:
        asked_of.append(chain.id)
        return real(chain, *rest)

    monkeypatch.setattr(bridge_module, "owed", owed)
    async with bridge_on(log, tmp_path, clock=lambda: now[0]) as bridge:
        await bridge.sweep()
        await bridge._projector.wait_for((await log.state()).last_sequence)
        asked_of.clear()
        for _ in range(13):
            now[0] += 1.0
            await bridge.sweep()
    assert asked_of == ["c1"] * 2
