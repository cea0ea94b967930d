"""What an agent says of its files and when, besides what changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory, Scan
from dataplane.agent.observing import Observer
from dataplane.config import DataPlaneConfig
from dataplane.consumers import triggers_of
from streams import events
from streams.log import LogUnavailable
from streams.memory import MemoryBus, MemoryDelivery, MemoryLog
from tests.conftest import eventually
from tests.spec import as_fact, opens, played


class _SlowReading(Inventory):
    """An inventory that reads for as long as it is told to, a little further at each look."""

    def __init__(self, root: Path, *, goes_on: bool) -> None:
        super().__init__(root, "gpu-1")
        self.goes_on = goes_on
        self.read = asyncio.Event()
        self.looks = 0

    async def scan(self, config_key: str | None = None) -> Scan:
        while not self.read.is_set():
            self.steps += self.goes_on
            self.looks += 1
            await asyncio.sleep(0.005)
        return await super().scan(config_key)


class _Words:
    """What a node that reads slowly says to two triggers, as the log tells it."""

    def __init__(self, inventory: _SlowReading) -> None:
        self.inventory = inventory
        #: Chains that it told that it is reading, and those it told what it holds.
        self.reading: list[str] = []
        self.answered: list[str] = []

    async def hear(self, log: MemoryLog) -> None:
        async with aclosing(log.read()) as batches:
            async for batch in batches:
                for fact in batch:
                    if isinstance(fact.event, events.FilesObserved):
                        (self.answered if fact.event.last_part else self.reading).append(fact.chain)


@contextlib.asynccontextmanager
async def asked_twice(root: Path, *, goes_on: bool) -> AsyncIterator[_Words]:
    """Two triggers that speak of a node's files, which take long to read."""
    log, words = MemoryLog(), _Words(_SlowReading(root, goes_on=goes_on))
    config = DataPlaneConfig(node="gpu-1", data_dir=root, answer_limit_seconds=0.06)
    observer = Observer(log, MemoryBus(), config, words.inventory)
    await triggers_of("gpu-1").provide(log)
    for chain in ("a", "b"):
        await log.publish(as_fact(opens(chain, played("gpu-1")), 0))
    tasks = [asyncio.create_task(one) for one in (words.hear(log), observer.answer_triggers())]
    yield words
    words.inventory.read.set()
    await eventually(lambda: set(words.answered) == {"a", "b"})
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await words.inventory.close()


async def test_an_answer_that_takes_long_is_said_to_come_to_all_who_wait(tmp_path: Path) -> None:
    """Also to who asked while the first was being answered; and in the end both are answered."""
    async with asked_twice(tmp_path, goes_on=True) as words:
        await eventually(lambda: {"a", "b"} == set(words.reading) and len(words.reading) >= 6)
        assert not words.answered


async def test_p18_who_stands_still_says_nothing(tmp_path: Path) -> None:
    """P18: that the process lives is no progress: a disk that hangs is found out by the limit."""
    async with asked_twice(tmp_path, goes_on=False) as words:
        await eventually(lambda: words.inventory.looks > 40)
        assert not words.reading


async def test_a_bus_that_goes_away_at_an_unreadable_trigger_ends_no_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again, and meanwhile the others are answered."""
    log, inventory = MemoryLog(), Inventory(tmp_path, "gpu-1")
    config = DataPlaneConfig(node="gpu-1", data_dir=tmp_path)
    observer = Observer(log, MemoryBus(), config, inventory)
    await triggers_of("gpu-1").provide(log)
    log.tell("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b"no JSON")
    refused = asyncio.Event()

    async def ack(delivery: MemoryDelivery) -> None:
        if delivery.recorded.event is None:
            refused.set()
            raise LogUnavailable("it is away")

    monkeypatch.setattr(MemoryDelivery, "ack", ack)
    words = _Words(_SlowReading(tmp_path, goes_on=False))
    tasks = [asyncio.create_task(one) for one in (words.hear(log), observer.answer_triggers())]
    await eventually(refused.is_set)
    await log.publish(as_fact(opens("a", played("gpu-1")), 0))
    await eventually(lambda: "a" in words.answered)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await inventory.close()


async def test_reading_a_large_file_goes_on_in_steps(tmp_path: Path) -> None:
    """However large it is: what counts as progress is bytes, not files."""
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "hex8_2p.npz").write_bytes(bytes(64 << 20))
    inventory = Inventory(tmp_path, "gpu-1")
    await inventory.scan()
    assert inventory.steps >= 16
    await inventory.close()
