"""Grants on the bus: told, kept to, run out; whatever is not heard is not counted on."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager

import msgspec
import pytest

from dataplane.agent import asking
from dataplane.agent.attempt import Attempt, Outcome
from dataplane.agent.parts import Parts
from dataplane.budget import FLOOR_MBPS, GRANT_S, claim_in_flight, claim_of_order
from dataplane.coordinator.granting import Granter, GrantKeeper
from dataplane.policy import Bandwidth, Policy
from projections.transfers import TransferRow, TransferState
from streams import events
from streams.memory import MemoryBus
from tests.conftest import eventually
from tests.spec import T0
from tests.unit.test_admission import Known, row

#: One node gives 80 Mbit/s, whatever a sync may take.
TIGHT = Policy(bandwidth=Bandwidth(sync_mbps=0, host_mb_s=10, total_mb_s=0))


def under_way(name: str, mbps: float, executor: str = "train-1") -> TransferRow:
    """A transfer that was assigned with a rate."""
    return msgspec.structs.replace(
        row(name=name, source=f"s-{name}"),
        state=TransferState.ASSIGNED,
        executor=executor,
        bandwidth_mbps=mbps,
    )


def order(one: TransferRow, grant_s: float = GRANT_S) -> events.TransferAssigned:
    """Its assignment."""
    return events.TransferAssigned(
        transfer=one.id,
        executor=one.executor,
        source=one.source,
        target=one.target,
        entry=one.entry,
        transports=one.transports,
        bandwidth_mbps=one.bandwidth_mbps,
        grant_s=grant_s,
    )


class Executor:
    """A node that keeps to what it is granted."""

    def __init__(self, bus: MemoryBus, node: str = "train-1") -> None:
        self.rates: dict[str, float] = {}
        self.keeper = GrantKeeper(bus, node, self.rates.__setitem__)
        self._running: dict[str, AbstractContextManager[None]] = {}

    def begins(self, one: events.TransferAssigned) -> None:
        """It carries this out from now on."""
        running = self._running[one.transfer] = self.keeper.running(one)
        running.__enter__()

    def ends(self, one: events.TransferAssigned) -> None:
        """It has carried this out."""
        self._running.pop(one.transfer).__exit__(None, None, None)


async def test_what_runs_is_cut_for_who_comes_and_grows_when_he_is_gone() -> None:
    """Two share what a node gives, each as soon as the other has given it back."""
    bus = MemoryBus()
    executor, granter = Executor(bus), Granter(bus, TIGHT, lambda: T0)
    await executor.keeper.start()
    first, second = under_way("a", 80.0), under_way("b", FLOOR_MBPS)
    for one in (first, second):
        executor.begins(order(one))

    def divided(*rows: TransferRow) -> dict[str, float]:
        granter.see(rows, Known().node)
        granter.divide(list(rows), Known().node)
        return executor.rates

    async def shared() -> bool:
        rates = divided(first, second)
        await asyncio.sleep(0)
        assert rates.get(first.id, 80.0) + rates.get(second.id, 0.0) <= 80.0 + FLOOR_MBPS
        return rates.get(first.id) == rates.get(second.id) == 40.0

    await eventually(shared)
    executor.ends(order(first))

    async def alone() -> bool:
        rates = divided(second)
        await asyncio.sleep(0)
        return rates[second.id] == 80.0

    await eventually(alone)
    await granter.close()
    await executor.keeper.stop()


async def test_small_ones_that_travel_together_have_one_grant() -> None:
    """They are told once, keep it until the last of them has ended, and count once in a limit."""
    bus = MemoryBus()
    executor, granter = Executor(bus), Granter(bus, TIGHT, lambda: T0)
    await executor.keeper.start()
    small = [
        msgspec.structs.replace(
            row(name=f"s{n}", size_bytes=20_000),
            state=TransferState.ASSIGNED,
            executor="train-1",
            bandwidth_mbps=40.0,
        )
        for n in range(40)
    ]
    for one in small:
        executor.begins(order(one))
    claim = claim_in_flight(small[0])

    async def raised() -> bool:
        granter.see(small, Known().node)
        granter.divide(small, Known().node)
        await asyncio.sleep(0)
        return executor.rates == {claim: 80.0}

    await eventually(raised)
    for one in small[1:]:
        executor.ends(order(one))
    executor.keeper.expire(time.monotonic() + 2 * GRANT_S)
    assert executor.rates == {claim: FLOOR_MBPS}
    executor.ends(order(small[0]))
    assert not executor.keeper._granted
    await granter.close()
    await executor.keeper.stop()


async def test_what_nobody_confirms_is_given_to_nobody() -> None:
    """An executor that can't be told keeps what its assignment said, and is counted with it."""
    bus = MemoryBus()
    granter = Granter(bus, TIGHT, lambda: T0)
    heard = Executor(bus)
    await heard.keeper.start()
    deaf, waiting = under_way("a", 75.0, executor="gone"), under_way("b", FLOOR_MBPS)
    heard.begins(order(waiting))
    for _ in range(20):
        granter.see([deaf, waiting], Known().node)
        granter.divide([deaf, waiting], Known().node)
        await asyncio.sleep(0.001)
    assert heard.rates.get(waiting.id, FLOOR_MBPS) <= 5.0
    await granter.close()
    await heard.keeper.stop()


async def test_who_begins_to_lead_counts_with_what_a_dead_leader_may_have_granted() -> None:
    """An executor that was raised, and can't be told, is not taken for what its assignment says."""
    bus, now = MemoryBus(), [T0]
    granter, heard = Granter(bus, TIGHT, lambda: now[0]), Executor(bus)
    await heard.keeper.start()
    deaf, waiting = under_way("a", 20.0, executor="gone"), under_way("b", 20.0)
    heard.begins(order(waiting))
    granter.see([deaf], Known().node)
    granter.begin()

    async def divided() -> float:
        for _ in range(20):
            granter.see([deaf, waiting], Known().node)
            granter.divide([deaf, waiting], Known().node)
            await asyncio.sleep(0.001)
        return heard.rates.get(waiting.id, FLOOR_MBPS)

    # Each may have been raised to all there is, or cut for the other.
    assert await divided() == FLOOR_MBPS
    now[0] += 2 * GRANT_S
    # Its last grant has run out: now its assignment is the most it may be using.
    assert await divided() == 40.0
    await granter.close()
    await heard.keeper.stop()


async def test_what_the_executor_confirms_is_inherited_no_more() -> None:
    """Two that answer share what there is at once, whoever led before."""
    bus = MemoryBus()
    granter, executor = Granter(bus, TIGHT, lambda: T0), Executor(bus)
    await executor.keeper.start()
    rows = [under_way("a", 20.0), under_way("b", 20.0)]
    for one in rows:
        executor.begins(order(one))
    granter.begin()

    async def shared() -> bool:
        granter.see(rows, Known().node)
        granter.divide(rows, Known().node)
        await asyncio.sleep(0)
        return executor.rates == {one.id: 40.0 for one in rows}

    await eventually(shared)
    await granter.close()
    await executor.keeper.stop()


async def test_a_grant_that_ran_out_leaves_the_floor() -> None:
    """Nobody said anything for longer than it lasts; what has no limit needs no renewal."""
    executor = Executor(MemoryBus())
    limited, free = under_way("a", 80.0), under_way("b", 0.0)
    executor.begins(order(limited))
    executor.begins(order(free))
    executor.keeper.expire(time.monotonic() + GRANT_S - 1)
    assert executor.rates == {}
    executor.keeper.expire(time.monotonic() + GRANT_S + 1)
    assert executor.rates == {limited.id: FLOOR_MBPS}


@pytest.mark.parametrize("grant_s", [0.0, GRANT_S])
async def test_only_what_runs_here_is_confirmed(grant_s: float) -> None:
    """A grant for a transfer that has ended, or never came, is nobody's."""
    bus = MemoryBus()
    executor = Executor(bus)
    await executor.keeper.start()
    one = under_way("a", 80.0)
    executor.begins(order(one, grant_s))
    body = msgspec.json.encode({"mbps": {one.id: 10.0, "of-nobody": 99.0}, "lasts_s": 5.0})
    kept = msgspec.json.decode(await bus.request("dp.grant.train-1", body))
    assert (kept, executor.rates) == ([one.id], {one.id: 10.0})
    await executor.keeper.stop()


class Leg:
    """A node that does a part of a transfer until it may end, as fast as it is told."""

    def __init__(self, bus: MemoryBus, node: str) -> None:
        self.bus, self.node = bus, node
        self.executor = Executor(bus, node)
        self.asked: asyncio.Future[events.TransferAssigned] = asyncio.Future()
        self.may_end = asyncio.Event()

    async def start(self) -> None:
        """Listen to what it may use, and to what it is asked to do."""
        await self.executor.keeper.start()
        await asking.answer_parts(self.bus, self.node, self._carry_out)

    async def _carry_out(self, part: events.TransferAssigned, claim: str) -> Outcome:
        with self.executor.keeper.running(part, claim):
            self.executor.rates[claim] = part.bandwidth_mbps
            self.asked.set_result(part)
            await self.may_end.wait()
        return Attempt(self.node, part).succeeded(None)


async def test_a_grant_is_felt_by_whoever_moves_the_bytes_of_a_relay() -> None:
    """Cut on its first leg, begun on its second with what is left, raised and run out there."""
    bus = MemoryBus()
    hub, source, target = Executor(bus, "mid"), Leg(bus, "gpu-7"), Leg(bus, "train-1")
    await hub.keeper.start()
    for leg in (source, target):
        await leg.start()
    one = msgspec.structs.replace(order(under_way("a", 80.0, executor="mid")), source="gpu-7")
    parts = Parts(bus, hub.keeper)

    async def relayed() -> None:
        with hub.keeper.running(one):
            await parts.let_do("gpu-7", msgspec.structs.replace(one, target="mid"), one)
            await parts.let_do("train-1", msgspec.structs.replace(one, source="mid"), one)

    async def told(mbps: float) -> list[str]:
        body = msgspec.json.encode({"mbps": {one.transfer: mbps}, "lasts_s": GRANT_S})
        return msgspec.json.decode(await bus.request("dp.grant.mid", body), type=list[str])

    relay = asyncio.create_task(relayed())
    assert (await source.asked).bandwidth_mbps == 80.0
    assert await told(20.0) == [one.transfer]
    assert source.executor.rates == {one.transfer: 20.0}
    source.may_end.set()
    part = await target.asked
    assert part.bandwidth_mbps == 20.0
    assert 0 < part.grant_s <= GRANT_S
    assert await told(40.0) == [one.transfer]
    assert target.executor.rates == {one.transfer: 40.0}
    # The first leg is over, and is told no more.
    assert source.executor.rates == {one.transfer: 20.0}
    target.executor.keeper.expire(time.monotonic() + 2 * GRANT_S)
    assert target.executor.rates == {one.transfer: FLOOR_MBPS}
    target.may_end.set()
    await relay


async def test_a_cut_that_the_node_that_moves_did_not_hear_is_not_confirmed() -> None:
    """Else what it goes on using would be given to others."""
    bus = MemoryBus()
    hub, source = Executor(bus, "mid"), Leg(bus, "gpu-7")
    await hub.keeper.start()
    await source.start()
    one = order(under_way("a", 80.0, executor="mid"))
    parts = Parts(bus, hub.keeper)
    with hub.keeper.running(one):
        relay = asyncio.create_task(parts.let_do("gpu-7", one, one))
        await source.asked
        await source.executor.keeper.stop()
        body = msgspec.json.encode({"mbps": {one.transfer: 10.0}, "lasts_s": 5.0})
        assert msgspec.json.decode(await bus.request("dp.grant.mid", body)) == []
        # It falls back by itself, when what it has heard has run out.
        source.executor.keeper.expire(time.monotonic() + GRANT_S + 1)
        assert source.executor.rates == {one.transfer: FLOOR_MBPS}
        source.may_end.set()
        await relay


async def test_a_part_begins_at_the_floor_where_the_grant_of_its_whole_has_run_out() -> None:
    """Nobody has told its executor anything for longer than the grant lasts."""
    executor = Executor(MemoryBus())
    one = order(under_way("a", 80.0), grant_s=1e-9)
    with executor.keeper.running(one):
        part = executor.keeper.as_granted(one, one.transfer)
    assert (part.bandwidth_mbps, part.grant_s) == (FLOOR_MBPS, 0.0)


async def test_small_ones_of_a_relay_are_one_claim_for_who_moves_them() -> None:
    """Whoever fetches from the hub what came from two holders keeps them apart."""
    bus = MemoryBus()
    hub, target = Executor(bus, "mid"), Leg(bus, "train-1")
    await hub.keeper.start()
    await target.start()
    small = row(name="s", size_bytes=20_000)
    one = order(msgspec.structs.replace(small, executor="mid", bandwidth_mbps=40.0))
    claim = claim_of_order(one)
    part = msgspec.structs.replace(one, source="mid")
    with hub.keeper.running(one):
        relay = asyncio.create_task(Parts(bus, hub.keeper).let_do("train-1", part, one))
        await target.asked
        body = msgspec.json.encode({"mbps": {claim: 10.0}, "lasts_s": 5.0})
        assert msgspec.json.decode(await bus.request("dp.grant.mid", body)) == [claim]
        assert target.executor.rates == {claim: 10.0}
        target.may_end.set()
        await relay
