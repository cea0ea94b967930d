"""The outbox: on disk before it is sent, sent once, and never blocked by one bad letter."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dataplane import DataPlane, DataPlaneConfig, NotKept
from dataplane.outbox import Outbox
from streams import events
from streams.codec import MAX_MESSAGE_BYTES, Fact, Recorded, node_fact
from streams.log import LogFull, LogUnavailable, PermissionDenied, Receipt
from streams.memory import MemoryLog
from tests.spec import played


def fact(number: int) -> Fact:
    """Something this node has to say."""
    return node_fact(played("gpu-7", number), "gpu-7", f"id-{number}", chain="c", cause="because")


async def said(log: MemoryLog) -> list[Recorded]:
    """All that the log holds."""
    end = (await log.state()).last_sequence
    return [one async for batch in log.read(until=end) for one in batch] if end else []


async def ids(log: MemoryLog) -> list[str]:
    """What was said, by id, in order."""
    return [one.id for one in await said(log)]


class Refusing(MemoryLog):
    """A log that refuses some facts, as a bus does."""

    def __init__(self, refused: Sequence[str], error: Exception) -> None:
        super().__init__()
        self.refused = refused
        self.error = error
        self.tried: list[str] = []

    async def publish(self, fact: Fact) -> Receipt:
        self.tried.append(fact.id)
        if fact.id in self.refused:
            raise self.error
        return await super().publish(fact)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """An outbox in a directory that does not exist yet."""
    return Outbox(tmp_path / "state" / "outbox")


async def test_event_is_on_disk_before_it_is_sent(outbox: Outbox) -> None:
    """K9: whoever dies while sending has lost nothing."""
    found: list[Fact | None] = []

    class Looking(MemoryLog):
        async def publish(self, fact: Fact) -> Receipt:
            found.extend(outbox.read(path) for path in outbox.waiting())
            return await super().publish(fact)

    await outbox.publish(Looking(), fact(1))
    (stored,) = found
    assert stored is not None
    assert (stored.event, stored.subject, stored.id) == (
        fact(1).event,
        fact(1).subject,
        fact(1).id,
    )


async def test_event_that_was_sent_is_forgotten(outbox: Outbox) -> None:
    """Nothing stays behind, and nothing is sent again."""
    log = MemoryLog()
    receipt = await outbox.publish(log, fact(1))
    assert receipt == Receipt(1)
    assert list(outbox.waiting()) == []
    assert await outbox.drain(log) == 0
    assert await ids(log) == ["id-1"]


async def test_event_that_could_not_be_sent_waits_and_the_caller_knows(outbox: Outbox) -> None:
    """The error says so; the event is not lost with it."""
    log = Refusing(["id-1"], LogUnavailable("no answer"))
    with pytest.raises(LogUnavailable):
        await outbox.publish(log, fact(1))
    assert len(list(outbox.waiting())) == 1
    log.refused = []
    assert await outbox.drain(log) == 1
    assert await ids(log) == ["id-1"]


async def test_event_is_sent_though_the_disk_is_full(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That a transfer failed for want of room must be said; nothing half-written stays."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    log = MemoryLog()
    assert (await outbox.publish(log, fact(1))).sequence == 1
    assert await ids(log) == ["id-1"]
    assert list((tmp_path / "state" / "outbox").iterdir()) == []


async def test_event_is_stored_beside_the_event_loop(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk must not keep an agent from its heartbeat."""
    threads: list[threading.Thread] = []
    sync = os.fsync

    def slow(handle: int) -> None:
        threads.append(threading.current_thread())
        sync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    await outbox.publish(MemoryLog(), fact(1))
    assert threads and threading.current_thread() not in threads


async def test_client_says_that_neither_disk_nor_bus_took_an_event(tmp_path: Path) -> None:
    """By its own error, which names both; never as if it had been stored."""
    (tmp_path / "outbox").write_text("no directory")
    config = DataPlaneConfig(nats_url="nats://127.0.0.1:1", state_dir=tmp_path, node="gpu-7")
    async with DataPlane.connect(config=config) as dp:
        with pytest.raises(NotKept, match=r"outbox.*127\.0\.0\.1:1"):
            await dp.publish(played("gpu-7"))


async def test_client_stores_beside_its_callers_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P20: a slow disk holds up nobody but who publishes."""
    threads: list[threading.Thread] = []
    put = Outbox.put

    def noting(self: Outbox, fact: Fact) -> Path:
        threads.append(threading.current_thread())
        return put(self, fact)

    monkeypatch.setattr(Outbox, "put", noting)
    config = DataPlaneConfig(nats_url="nats://127.0.0.1:1", state_dir=tmp_path, node="gpu-7")
    async with DataPlane.connect(config=config) as dp:
        assert (await dp.publish(played("gpu-7"))).queued
    assert threads
    assert threading.main_thread() not in threads


async def test_events_are_sent_oldest_first_as_they_were_said(outbox: Outbox) -> None:
    """Payload, id, chain and cause survive the disk."""
    for number in range(5):
        outbox.put(fact(number))
    log = MemoryLog()
    assert await outbox.drain(log) == 5
    assert await ids(log) == [f"id-{number}" for number in range(5)]
    first = (await said(log))[0]
    assert (first.event, first.owner, first.cause) == (fact(0).event, "gpu-7", "because")


async def test_event_that_was_sent_before_the_crash_is_not_doubled(outbox: Outbox) -> None:
    """The log had it, the file was not yet gone: the id makes it once."""
    log = MemoryLog()
    await log.publish(fact(1))
    outbox.put(fact(1))
    assert await outbox.drain(log) == 1
    assert await ids(log) == ["id-1"]


async def test_outbox_drained_by_two_processes_at_once_sends_each_event_once(
    outbox: Outbox, tmp_path: Path
) -> None:
    """The agent and the player that wrote it may both try."""
    for number in range(10):
        outbox.put(fact(number))
    log, other = MemoryLog(), Outbox(tmp_path / "state" / "outbox")
    await asyncio.gather(outbox.drain(log), other.drain(log.another()))
    assert await ids(log) == [f"id-{number}" for number in range(10)]
    assert list(outbox.waiting()) == []


@pytest.mark.parametrize("error", [LogUnavailable("no answer"), LogFull("no room")])
async def test_order_is_kept_while_the_log_takes_nothing(outbox: Outbox, error: Exception) -> None:
    """What can't be sent now stops the rest: it is all sent later, in order."""
    for number in range(3):
        outbox.put(fact(number))
    log = Refusing(["id-1"], error)
    assert await outbox.drain(log) == 1
    assert log.tried == ["id-0", "id-1"]
    assert len(list(outbox.waiting())) == 2
    log.refused = []
    assert await outbox.drain(log) == 2
    assert await ids(log) == ["id-0", "id-1", "id-2"]


async def test_event_the_bus_refuses_for_good_does_not_block_the_others(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, and is said in the process's log, whenever somebody looks."""
    for number in range(3):
        outbox.put(fact(number))
    log = Refusing(["id-1"], PermissionDenied("permissions violation for publish"))
    assert await outbox.drain(log) == 2
    assert await ids(log) == ["id-0", "id-2"]
    (left,) = outbox.waiting()
    kept = outbox.read(left)
    assert kept is not None
    assert kept.id == "id-1"
    assert "permissions violation" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"subject":"x"}', b'{"subject":"x","headers":{},"body":{}}'],
    ids=["empty", "torn", "binary", "incomplete", "no event"],
)
async def test_damaged_letter_is_set_aside_and_blocks_nothing(
    outbox: Outbox, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept for whoever wants to look, under another name, and said once."""
    damaged = outbox.put(fact(1))
    damaged.write_bytes(content)
    outbox.put(fact(2))
    log = MemoryLog()
    assert await outbox.drain(log) == 1
    assert await ids(log) == ["id-2"]
    assert damaged.with_suffix(".damaged").read_bytes() == content
    assert str(damaged) in caplog.text
    caplog.clear()
    assert await outbox.drain(log) == 0
    assert caplog.text == ""


def test_half_written_letter_is_none(outbox: Outbox) -> None:
    """A process that died while it wrote left a temporary file, and no event."""
    path = outbox.put(fact(1))
    path.rename(path.with_name(f".{path.stem}"))
    assert list(outbox.waiting()) == []


def test_event_that_can_not_be_sent_is_refused_at_once(outbox: Outbox) -> None:
    """In the publisher's own process, not by an agent hours later."""
    large = events.FilesRemoved(node="gpu-7", paths=("x" * MAX_MESSAGE_BYTES,))
    with pytest.raises(ValueError, match="FILES_REMOVED"):
        outbox.put(node_fact(large, "gpu-7", "id"))
    with pytest.raises(ValueError, match="games_count"):
        outbox.put(node_fact(played("gpu-7", -1), "gpu-7", "id"))
    assert list(outbox.waiting()) == []


def test_outbox_that_was_never_used_is_empty(outbox: Outbox) -> None:
    """No directory is no error."""
    assert list(outbox.waiting()) == []


async def test_letter_that_somebody_else_sent_meanwhile_is_no_error(outbox: Outbox) -> None:
    """It was there when we listed it, and is gone when we read it."""
    path = outbox.put(fact(1))
    path.unlink()
    assert outbox.read(path) is None
    outbox.done(path)


@pytest.mark.parametrize("id", ["a/b", "urn:x/../../y"])
async def test_any_id_is_an_id(outbox: Outbox, id: str) -> None:
    """Ids come from publishers; one with a slash is as good as any other."""
    log = MemoryLog()
    await outbox.publish(log, node_fact(played("gpu-7"), "gpu-7", id))
    assert await ids(log) == [id]


async def test_what_a_killed_process_had_begun_to_store_goes_in_time(
    outbox: Outbox, tmp_path: Path
) -> None:
    """It was never said to be stored; what was begun just now may still be finished."""
    outbox.put(fact(1))
    old, new = (tmp_path / "state" / "outbox" / name for name in (".0001-killed", ".0002-busy"))
    for path in (old, new):
        path.write_bytes(b'{"subject')
    os.utime(old, (0, 0))
    log = MemoryLog()
    assert len(list(outbox.waiting())) == 1
    assert await outbox.drain(log) == 1
    assert (old.exists(), new.exists()) == (False, True)
