"""The speed limit: never faster, fair, and changeable while it is used."""

from __future__ import annotations

import asyncio
import time

import pytest

from adapters import throttle as module
from adapters.throttle import BURST_S, Throttle


class Clock:
    """A clock that only sleeping moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Move on, and let others run."""
        self.now += seconds
        await REAL_SLEEP(0)


REAL_SLEEP = asyncio.sleep


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of our own in place of the machine's."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module.asyncio, "sleep", clock.sleep)
    return clock


async def test_no_more_passes_than_the_rate_and_a_short_burst(clock: Clock) -> None:
    """At any moment what has passed is at most the rate times the time, and a tenth of a second."""
    throttle = Throttle(8)
    began, passed = clock.now, 0
    for size in (100, 1_000_000, 40_000, 1, 250_000) * 4:
        await throttle.take(size)
        passed += size
        assert passed <= 1_000_000 * (clock.now - began + BURST_S) + 1
    assert clock.now - began == pytest.approx(passed / 1_000_000, rel=0.05)


async def test_idle_time_is_not_saved_up(clock: Clock) -> None:
    """After an hour of nothing the burst is as short as ever."""
    throttle = Throttle(8)
    clock.now += 3600
    began = clock.now
    await throttle.take(1_100_000)
    assert clock.now - began == pytest.approx(1.0, rel=0.01)


async def test_a_new_rate_is_felt_by_those_who_wait(clock: Clock) -> None:
    """Raising the rate, or lifting the limit, shortens a wait that has begun."""
    throttle = Throttle(8)
    waiting = asyncio.create_task(throttle.take(100_000_000))
    await REAL_SLEEP(0)
    throttle.set_rate(800)
    began = clock.now
    await waiting
    assert clock.now - began < 1.5
    waiting = asyncio.create_task(throttle.take(10_000_000_000))
    await REAL_SLEEP(0)
    throttle.set_rate(0)
    await asyncio.wait_for(waiting, 5)
    assert clock.now - began < 3


async def test_a_limit_set_later_does_not_charge_for_the_past(clock: Clock) -> None:
    """What passed while there was no limit is not owed."""
    throttle = Throttle(0)
    await throttle.take(10**12)
    throttle.set_rate(8)
    began = clock.now
    await throttle.take(1_000_000)
    assert clock.now - began == pytest.approx(1.0, rel=0.2)


async def test_takers_are_served_in_order(clock: Clock) -> None:
    """A small taker that came later does not overtake a large one."""
    throttle = Throttle(8)
    served: list[str] = []

    async def take(name: str, size: int) -> None:
        await throttle.take(size)
        served.append(name)

    await asyncio.gather(take("large", 2_000_000), take("small", 10), take("last", 500_000))
    assert served == ["large", "small", "last"]


async def test_a_negative_rate_is_refused() -> None:
    """A limit is never below zero, where zero means none."""
    with pytest.raises(ValueError, match="negative"):
        Throttle(-1)


async def test_the_machines_own_clock_is_kept_to_as_well() -> None:
    """Half a second's worth takes about half a second, less the burst."""
    throttle, began = Throttle(80), time.monotonic()
    for _ in range(50):
        await throttle.take(100_000)
    assert 0.35 < time.monotonic() - began < 5
