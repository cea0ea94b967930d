"""What an agent says of its files and when, besides what changed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory, Scan
from dataplane.agent import reconciling
from dataplane.agent.observing import Observer
from dataplane.config import DataPlaneConfig
from dataplane.consumers import triggers_of
from streams import events
from streams.log import LogUnavailable
from streams.memory import MemoryBus, MemoryDelivery, MemoryLog
from streams.values import DataEntry
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


class _Surprised(Inventory):
    """An inventory that is surprised at each of its first looks."""

    def __init__(self, root: Path, surprises: int, error: Exception) -> None:
        super().__init__(root, "gpu-1")
        self.left, self.error = surprises, error

    async def scan(self, config_key: str | None = None) -> Scan:
        if self.left:
            self.left -= 1
            raise self.error
        return await super().scan(config_key)


@contextlib.asynccontextmanager
async def answering(
    root: Path, surprises: int, error: Exception
) -> AsyncIterator[tuple[MemoryLog, Observer]]:
    """An agent's observer that is asked once, and surprised so often."""
    log, inventory = MemoryLog(), _Surprised(root, surprises, error)
    config = DataPlaneConfig(node="gpu-1", data_dir=root)
    observer = Observer(log, MemoryBus(), config, inventory)
    await triggers_of("gpu-1").provide(log)
    await log.publish(as_fact(opens("a", played("gpu-1")), 0))
    task = asyncio.create_task(observer.answer_triggers())
    yield log, observer
    assert not task.done(), "a surprise ends no agent"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await inventory.close()


async def answer_to(log: MemoryLog, chain: str) -> events.FilesObserved:
    """What a node says to a chain, once it does."""
    async with aclosing(log.read()) as batches:
        async for batch in batches:
            for fact in batch:
                if isinstance(fact.event, events.FilesObserved) and fact.chain == chain:
                    return fact.event
    raise AssertionError("the log ended")


@pytest.mark.parametrize(
    ("error", "words"),
    [(KeyError("rows"), "KeyError: 'rows'"), (OSError(5, "broken disk"), "broken disk")],
)
async def test_p18_what_goes_wrong_again_and_again_is_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    """After some tries, each later than the one before, who asked hears what it is."""
    rests: list[float] = []
    nak = MemoryDelivery.nak

    async def at_once(delivery: MemoryDelivery, delay_s: float = 0.0) -> None:
        rests.append(delay_s)
        await nak(delivery, 0.0)

    monkeypatch.setattr(MemoryDelivery, "nak", at_once)
    async with answering(tmp_path, 1000, error) as (log, observer):
        said = await answer_to(log, "a")
        assert words in said.problems[0]
        assert said.last_part
        assert rests == [1.0, 2.0, 4.0]
        assert words in observer.problem

        async def acknowledged() -> bool:
            consumer = await log.consumer(triggers_of("gpu-1").name)
            return consumer is not None and consumer.unacknowledged == 0

        await eventually(acknowledged)


async def test_what_goes_wrong_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is what is here, as if nothing had been."""
    monkeypatch.setattr("dataplane.agent.deliveries._REST_S", 0.001)
    async with answering(tmp_path, 3, KeyError("rows")) as (log, _):
        assert (await answer_to(log, "a")).problems == ()


async def test_p18_a_surprise_while_looking_ends_no_watch(tmp_path: Path) -> None:
    """It is said in the heartbeat until all can be looked through again."""
    log, inventory = MemoryLog(), _Surprised(tmp_path, 1, KeyError("rows"))
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    config = DataPlaneConfig.from_values(
        {"node": "gpu-1", "data_dir": str(tmp_path), "policy": {"schedule": {"event_gap_s": 0.001}}}
    )
    observer = Observer(log, MemoryBus(), config, inventory)
    looked = asyncio.Event()

    async def watch(stop: asyncio.Event) -> AsyncIterator[None]:
        yield
        assert "KeyError: 'rows'" in observer.problem
        yield
        assert observer.problem == ""
        looked.set()

    inventory.watch = watch  # type: ignore[method-assign]
    await observer.watch()
    assert looked.is_set()
    assert (await log.state()).last_sequence == 1
    await inventory.close()


async def test_reading_a_large_file_goes_on_in_steps(tmp_path: Path) -> None:
    """However large it is: what counts as progress is bytes, not files."""
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "hex8_2p.npz").write_bytes(bytes(64 << 20))
    inventory = Inventory(tmp_path, "gpu-1")
    await inventory.scan()
    assert inventory.steps >= 16
    await inventory.close()


async def test_a_log_that_was_made_anew_is_told_all_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any trigger is answered there, by an agent that was started again."""
    monkeypatch.setattr(reconciling, "SETTLE_S", 0.0)
    file = _games(tmp_path)
    inventory = Inventory(tmp_path, "gpu-1")
    await _answer_in(MemoryLog(), inventory, "a")
    said = await _answer_in(MemoryLog(), inventory, "b")
    assert [entry.path for entry in said] == [file]
    await inventory.close()


async def test_a_log_that_was_rolled_back_is_told_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has grown again beyond what was seen of it."""
    monkeypatch.setattr(reconciling, "SETTLE_S", 0.0)
    file = _games(tmp_path)
    inventory, log = Inventory(tmp_path, "gpu-1"), MemoryLog()
    await log.publish(as_fact(opens("early", played("gpu-2")), 0))
    backup = copy.deepcopy(log._store)
    await _answer_in(log, inventory, "a")
    back = MemoryLog(store=backup)
    for other in range(9):
        await back.publish(as_fact(opens(f"other-{other}", played("gpu-2")), 0))
    said = await _answer_in(back, inventory, "b", look=True)
    assert [entry.path for entry in said] == [file]
    await inventory.close()


async def test_the_same_log_is_not_told_again(tmp_path: Path) -> None:
    """Neither what it was told before this process began, nor what this process said."""
    _games(tmp_path)
    inventory, log = Inventory(tmp_path, "gpu-1"), MemoryLog()
    assert await _answer_in(log, inventory, "a")
    assert not await _answer_in(log, inventory, "b", look=True)
    assert not await _answer_in(log, inventory, "c", look=True)
    await inventory.close()


def _games(root: Path) -> str:
    """A file of this node that is at rest; its path for everybody."""
    file = root / "games" / "hex8_2p.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"{}\n")
    os.utime(file, (time.time() - 60, time.time() - 60))
    return "games/gpu-1/hex8_2p.jsonl"


async def _answer_in(
    log: MemoryLog, inventory: Inventory, chain: str, *, look: bool = False
) -> list[DataEntry]:
    """What an agent that begins says in `log` up to the end of its answer to a trigger there."""
    config = DataPlaneConfig(node="gpu-1", data_dir=inventory._root)
    observer = Observer(log, MemoryBus(), config, inventory)
    begin = (await log.state()).last_sequence
    tasks = [asyncio.create_task(observer.keep_footing())] if look else []
    await asyncio.sleep(0)
    await triggers_of("gpu-1").provide(log)
    await log.publish(as_fact(opens(chain, played("gpu-1")), 0))
    tasks.append(asyncio.create_task(observer.answer_triggers()))
    said: list[DataEntry] = []
    async with aclosing(log.read(after=begin)) as batches:
        async for batch in batches:
            for fact in batch:
                if isinstance(fact.event, events.FilesObserved):
                    said += fact.event.entries
            if any(isinstance(f.event, events.FilesObserved) and f.chain == chain for f in batch):
                break

    async def marked_as_said() -> bool:
        consumer = await log.consumer(triggers_of("gpu-1").name)
        return consumer is not None and consumer.unacknowledged == 0

    await eventually(marked_as_said)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return said


async def test_k17_a_clock_that_is_behind_lets_nobody_wait_for_ever(tmp_path: Path) -> None:
    """What is being written is waited for a while, whatever the log's clock says of that."""
    (tmp_path / "hex8_2p.jsonl").write_bytes(b"{}\n")
    (tmp_path / "hex8_2p.jsonl.writing").touch()
    log = MemoryLog(clock=lambda: time.time() + 3600)
    config = DataPlaneConfig(node="gpu-1", data_dir=tmp_path, answer_limit_seconds=0.1)
    words = _Words(_SlowReading(tmp_path, goes_on=False))
    words.inventory.read.set()
    observer = Observer(log, MemoryBus(), config, words.inventory)
    await triggers_of("gpu-1").provide(log)
    await log.publish(as_fact(opens("a", played("gpu-1")), 0))
    tasks = [asyncio.create_task(one) for one in (words.hear(log), observer.answer_triggers())]
    await eventually(lambda: words.answered == ["a"])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await words.inventory.close()


async def test_p2_a_name_that_cannot_be_sent_silences_nobody(tmp_path: Path) -> None:
    """Where somebody writes a file of such a name, all others are told, and this one is named."""
    for name in ("hex8_2p_\udcff.jsonl", "hex8_2p_\udcff.jsonl.writing"):
        (tmp_path / name).touch()
    (tmp_path / "hex8_2p.jsonl").write_bytes(b"{}\n")
    log, inventory = MemoryLog(), Inventory(tmp_path, "gpu-1")
    config = DataPlaneConfig(node="gpu-1", data_dir=tmp_path, answer_limit_seconds=0.0)
    observer = Observer(log, MemoryBus(), config, inventory)
    await observer.report()
    said = await log.get(1)
    assert said is not None
    observed = said.event
    assert isinstance(observed, events.FilesObserved)
    assert [entry.path for entry in observed.entries] == ["gpu-1/hex8_2p.jsonl"]
    assert any("hex8_2p_\\udcff.jsonl is being written" in text for text in observed.problems)
    await inventory.close()


async def test_p17_an_answer_names_the_directory_that_hides_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name: nobody can say that there is nothing new. One that never held any of it
    keeps no answer from being whole.
    """
    for name in ("games/hex8_2p.jsonl", "private/square8_2p.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"{}\n")
    log, inventory = MemoryLog(), Inventory(tmp_path, "gpu-1")
    observer = Observer(
        log, MemoryBus(), DataPlaneConfig(node="gpu-1", data_dir=tmp_path), inventory
    )
    await observer.report()
    scandir = os.scandir

    def failing(path: Path) -> object:
        if path.name in ("games", "private"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("adapters.files.walk.os.scandir", failing)
    await triggers_of("gpu-1").provide(log)
    await log.publish(as_fact(opens("a", played("gpu-1")), 0))
    answering = asyncio.create_task(observer.answer_triggers())
    async with asyncio.timeout(30):
        answer = await answer_to(log, "a")
    assert answer.problems == ("games cannot be read: Permission denied",)
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    await inventory.close()
