"""Who leads, on every bus: a bucket in memory, and one of JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dataplane.coordinator import lease as lease_module
from dataplane.coordinator.lease import (
    LEADER,
    LEASE_S,
    LOOK_S,
    RENEW_S,
    Lease,
    LeaseLost,
    holder_of,
)
from streams.log import Bus
from streams.memory import MemoryBus
from streams.topology import LEASE_BUCKET
from tests.conftest import PATIENCE_S, empty_log, eventually


class Clock:
    """A process's own clock, that goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of all in this test."""
    return Clock()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and renewals follow each other without a pause; the clock is the test's."""
    monkeypatch.setattr(lease_module, "LOOK_S", 0.001)
    monkeypatch.setattr(lease_module, "RENEW_S", 0.001)


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Each bus in turn, with nobody leading."""
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryBus()
        else:
            url = request.getfixturevalue("nats_server").url
            yield (await stack.enter_async_context(empty_log(url))).bus


async def soon(work: asyncio.Task[None] | asyncio.Future[None]) -> None:
    """Wait for it, with patience."""
    await asyncio.wait_for(work, PATIENCE_S)


async def looks(bus: Bus, lease: Lease, times: int = 3) -> bool:
    """Let it look a few times; whether it leads then."""
    for _ in range(times):
        if await lease._try():
            return True
    return False


async def _is_past(bus: Bus, revision: int) -> bool:
    return (await bus.kv_entry(LEASE_BUCKET, LEADER))[0] > revision


async def test_of_those_who_look_at_once_one_leads(bus: Bus, clock: Clock) -> None:
    """However they are interleaved."""
    leases = [Lease(bus, name, clock=clock) for name in "abcde"]
    await asyncio.gather(*(looks(bus, one) for one in leases))
    assert [one.held for one in leases].count(True) == 1


async def test_leader_that_renews_stays_the_leader(bus: Bus, clock: Clock) -> None:
    """The other looks on, as long as the value changes."""
    first, second = Lease(bus, "a", clock=clock), Lease(bus, "b", clock=clock)
    await soon(asyncio.ensure_future(first.acquire()))
    keeping = asyncio.create_task(first.keep())
    for _ in range(8):
        clock.now += LEASE_S / 4
        revision = (await bus.kv_entry(LEASE_BUCKET, LEADER))[0]
        await eventually(lambda past=revision: _is_past(bus, past + 1))
        assert not await second._try()
    assert first.held and not second.held
    keeping.cancel()


async def test_lease_that_stands_still_is_taken_and_the_old_leader_knows_it(
    bus: Bus, clock: Clock
) -> None:
    """It was paused: when it wakes it holds nothing, renews nothing, and is told so."""
    first, second = Lease(bus, "a", clock=clock), Lease(bus, "b", clock=clock)
    await soon(asyncio.ensure_future(first.acquire()))
    assert not await second._try()
    clock.now += LEASE_S
    assert not first.held
    await soon(asyncio.ensure_future(second.acquire()))
    assert second.held and second.term == 2
    with pytest.raises(LeaseLost):
        await soon(asyncio.ensure_future(first.keep()))
    assert second.held and (first.term, first.held) == (0, False)


async def test_renewal_after_another_took_over_changes_nothing(bus: Bus, clock: Clock) -> None:
    """Its write carries the revision that it knows; the bus refuses it."""
    first, second = Lease(bus, "a", clock=clock), Lease(bus, "b", clock=clock)
    await soon(asyncio.ensure_future(first.acquire()))
    await second._try()
    clock.now += LEASE_S
    await soon(asyncio.ensure_future(second.acquire()))
    first._until = clock.now + LEASE_S  # as if its own clock had stood still
    before = await bus.kv_entry(LEASE_BUCKET, LEADER)
    with pytest.raises(LeaseLost):
        await soon(asyncio.ensure_future(first.keep()))
    assert (await bus.kv_entry(LEASE_BUCKET, LEADER))[1] == before[1]


async def test_lease_that_was_given_up_is_taken_without_waiting(bus: Bus, clock: Clock) -> None:
    """No time passes between SIGTERM and the next leader."""
    first, second = Lease(bus, "a", clock=clock), Lease(bus, "b", clock=clock)
    await soon(asyncio.ensure_future(first.acquire()))
    assert not await second._try()
    await first.release()
    assert not first.held
    assert await second._try()
    await first.release()
    assert second.held


async def test_process_that_was_started_again_takes_its_own_lease_at_once(
    bus: Bus, clock: Clock, tmp_path: Path
) -> None:
    """It has the directory's lock, so that whoever led by this name is dead."""
    name = holder_of(tmp_path, "boss")
    await soon(asyncio.ensure_future(Lease(bus, name, clock=clock).acquire()))
    again = Lease(bus, holder_of(tmp_path, "boss"), clock=clock)
    assert await again._try()
    assert again.term == 2
    assert holder_of(tmp_path / "other", "boss") != name


def test_whoever_stands_by_leads_within_five_seconds_of_a_kill() -> None:
    """The worst case: killed as it had just renewed, and looked for just before it ran out."""
    assert LEASE_S + LOOK_S < 5.0
    assert RENEW_S < LEASE_S / 3, "two renewals may be lost"
