"""How far a chain is, as whoever waits for it is told."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest
from rich.console import Console

from adapters.telling import InAll
from dataplane.agent.progress import ProgressMessage
from dataplane.api import SyncHandle
from dataplane.cli import show
from dataplane.cli.bars import bars
from projections.transfers import transfer_id
from streams import events
from streams.codec import chain_fact
from streams.log import LogUnavailable
from streams.memory import MemoryBus, MemoryLog
from streams.values import DataEntry, SyncPlan
from tests.conftest import eventually
from tests.spec import games_of

LARGE, SMALL = games_of("gpu-1", size_bytes=1000), games_of("gpu-2", size_bytes=200)


class Waiter:
    """Somebody who waits for a chain, and what he is told."""

    def __init__(self) -> None:
        self.log, self.bus = MemoryLog(), MemoryBus()
        self.told: list[tuple[int, int]] = []

    def waits(self) -> asyncio.Task[object]:
        """He begins to wait."""
        handle = SyncHandle(self.log, self.bus, "c1", 0)
        return asyncio.create_task(handle.wait(30, progress_callback=self.hear))

    def hear(self, done: int, total: int) -> None:
        """The callback."""
        self.told.append((done, total))

    async def say(self, event: events.Event) -> None:
        """The chain's next fact."""
        await self.log.publish(chain_fact(event, "c1", f"cause of {type(event).__name__}"))

    async def moved(self, entry: DataEntry, target: str, done: int) -> None:
        """An executor tells how far it is, until he has heard it."""
        before = len(self.told)

        async def heard() -> bool:
            self.tell(transfer_id(entry, target), entry, target, done)
            await asyncio.sleep(0)
            return len(self.told) > before

        await eventually(heard)

    def tell(self, transfer: str, entry: DataEntry, target: str, done: int) -> None:
        """An executor tells how far it is."""
        said = ProgressMessage(
            transfer=transfer,
            source="gpu-1",
            target=target,
            path=entry.path,
            config_key=entry.config_key,
            done=done,
            total=entry.size_bytes,
            time=0.0,
        )
        self.bus.tell(f"dp.progress.{transfer}", msgspec.json.encode(said))


def planned() -> events.SyncPlanned:
    """One file for two, another for one."""
    plans = (
        SyncPlan(source_node="gpu-1", target_nodes=("t1", "t2"), entries=(LARGE,)),
        SyncPlan(source_node="gpu-2", target_nodes=("t1",), entries=(SMALL,)),
    )
    return events.SyncPlanned(config_key="hex8_2p", plans=plans)


async def test_who_waits_is_told_how_much_of_all_that_the_chain_moves_is_there() -> None:
    """In bytes; what begins anew is not told again, what others move not at all."""
    waiter = Waiter()
    waiting = waiter.waits()
    await waiter.say(planned())
    await waiter.moved(LARGE, "t1", 400)
    waiter.tell("of another chain", LARGE, "t1", 900)
    waiter.bus.tell("dp.progress.x", b"not a word of it")
    waiter.tell(transfer_id(LARGE, "t1"), LARGE, "t1", 100)
    await waiter.moved(SMALL, "t1", 200)
    await waiter.say(
        events.DataSyncCompleted(config_key="hex8_2p", source_node="gpu-1", reason="done")
    )
    await waiting
    assert waiter.told == [(400, 2200), (600, 2200), (2200, 2200)]


async def test_a_chain_that_failed_is_not_told_as_done() -> None:
    """Nor does it wait for words that nobody says any more."""
    waiter = Waiter()
    waiting = waiter.waits()
    await waiter.say(planned())
    await waiter.moved(LARGE, "t1", 400)
    await waiter.say(events.DataSyncFailed(config_key="hex8_2p", source_node="gpu-1", reason="no"))
    await waiting
    assert waiter.told == [(400, 2200)]


async def test_what_the_callback_raises_reaches_who_waits() -> None:
    """It would be lost in the background otherwise, and he would wait in vain."""
    waiter = Waiter()

    def hear(done: int, total: int) -> None:
        waiter.told.append((done, total))
        raise LogUnavailable("no more")

    waiter.hear = hear  # type: ignore[method-assign]
    waiting = waiter.waits()
    await waiter.say(planned())
    await waiter.moved(LARGE, "t1", 400)
    with pytest.raises(LogUnavailable, match="no more"):
        await waiting


def test_several_as_one_never_shrink() -> None:
    """Nor is more of one there than it has."""
    told: list[tuple[int, int]] = []
    in_all = InAll(lambda done, total: told.append((done, total)))
    in_all.expect("a", 10)
    in_all.tell("a", 4)
    in_all.tell("a", 3)
    in_all.expect("b", 20)
    in_all.tell("b", 99)
    in_all.tell("unknown", 5)
    in_all.done()
    in_all.done()
    assert told == [(4, 10), (24, 30), (30, 30)]


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_drawn_for_people_alone(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Where nobody looks, a command says what it always said."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=terminal, width=120)
    monkeypatch.setattr(show, "errors", console)
    with bars() as bar:
        bar("hex8_2p games")(500_000, 1_000_000)
    assert ("hex8_2p games" in drawn.getvalue()) is terminal
    assert ("0.5/1.0 MB" in drawn.getvalue()) is terminal
