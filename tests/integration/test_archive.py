"""The archive on a real nats-server: what comes back is what was there, and the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.blobs import DirectoryBlobs
from adapters.errors import EntryMissing, Overtaken
from adapters.s3.blobs import S3Blobs
from dataplane.audit.archive import (
    ArchiveMismatch,
    archived,
    bring_back,
    extend,
    manifest_at,
    prove,
)
from dataplane.audit.archiving import ArchiveKeeper
from dataplane.audit.exporting import export_log, import_log, open_exported
from dataplane.config import DataPlaneConfig
from projections.projector import Projector
from streams.codec import chain_fact, node_fact
from streams.events import FilesRemoved, SelfplayNeeded
from streams.jetstream import JetStreamLog
from streams.kept import FileUnreadable
from streams.log import Guard, LogUnavailable, SequenceConflict
from streams.restoring import NotEmpty
from streams.segments import ArchiveDamaged
from streams.stored import Stored
from streams.subjects import chain_filter
from streams.values import DataType
from streams.wire import Message, api
from tests.conftest import Server, empty_log, eventually, wipe
from tests.integration.s3_server import (
    ACCESS_KEY,
    SECRET_KEY,
    S3Server,
    new_bucket,
    running_s3_server,
)

__all__ = ["running_s3_server"]


def removed(node: str, id: str) -> object:
    """Some fact of a node."""
    return node_fact(FilesRemoved(node=node, paths=("a",)), node, id)


def decision(chain: str, first: int = 0) -> list:  # type: ignore[type-arg]
    """Two facts that are appended together."""
    event = SelfplayNeeded(config_key="hex8_2p", node="n1", data_type=DataType.GAMES)
    return [chain_fact(event, chain, "", n) for n in range(first, first + 2)]


async def fill(log: JetStreamLog, count: int = 40) -> None:
    """Publications, guarded batches, a hand-made message, and garbage."""
    for n in range(count):
        await log.publish(removed("n1", f"id-{n}"))  # type: ignore[arg-type]
        await log.append(decision(f"c{n}"), [Guard(chain_filter(f"c{n}"), 0)])
    raw = log.connection
    await raw.ask(Message("dp.node.n1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":5}'))
    await raw.ask(Message("dp.node.n1.WHAT", b"\xff\x00", {"x": "y", "Dp-Kept-At": "12"}))


async def all_of(log: JetStreamLog) -> list[Stored]:
    """Every message."""
    end = (await log.state()).last_sequence
    return [m async for batch in log.messages(until=end) for m in batch]


@pytest.fixture
async def log(nats_server: Server) -> AsyncIterator[JetStreamLog]:
    """A log with nothing in it."""
    async with empty_log(nats_server.url) as log:
        yield log


async def test_a_restored_log_is_the_same_message_by_message(
    log: JetStreamLog, nats_server: Server, tmp_path: Path
) -> None:
    """Sequences, times, headers, bodies; its archive has the same digests; ids stay known."""
    await fill(log)
    before, state = await all_of(log), await log.state()
    blobs = DirectoryBlobs(tmp_path / "archive")
    done = await extend(blobs, log, segment_bytes=20_000)
    assert (done.messages, done.last_sequence) == (len(before), len(before))
    assert done.segments > 2
    assert (await prove(blobs)).last_sequence == len(before)
    assert (await extend(blobs, log)).messages == 0

    with pytest.raises(NotEmpty, match="empty bus only"):
        await bring_back(blobs, log)
    await wipe(log)
    restored = await bring_back(blobs, log)
    assert restored.created != state.created
    assert restored.origin == state.created
    again = await JetStreamLog.connect(nats_server.url)
    assert await all_of(again) == before
    facts = [f async for batch in again.read(until=len(before)) for f in batch]
    assert facts == [message.recorded() for message in before]
    assert await again.get(5) == facts[4]
    assert await again.last("dp.node.>") == facts[-1]
    assert await again.ensure_topology() == []

    elsewhere = DirectoryBlobs(tmp_path / "elsewhere")
    await extend(elsewhere, again, segment_bytes=20_000)
    first, second = (await manifest_at(blobs))[0], (await manifest_at(elsewhere))[0]
    assert [s.digest for s in first.segments] == [s.digest for s in second.segments]

    assert (await again.publish(removed("n1", "id-39"))).duplicate  # type: ignore[arg-type]
    receipt = await again.append(decision("c7"), [Guard(chain_filter("c7"), 0)])
    assert receipt.duplicate, "who asks again finds his own decision"
    with pytest.raises(SequenceConflict):
        await again.append(decision("c7", 5), [Guard(chain_filter("c7"), 0)])
    assert (await again.publish(removed("n1", "new"))).sequence == len(before) + 1  # type: ignore[arg-type]
    assert (await extend(blobs, again)).messages == 1, "the archive goes on where it was"
    await again.close()


@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
async def test_an_exported_log_is_the_same_on_another_bus(
    log: JetStreamLog, tmp_path: Path, name: str
) -> None:
    """Whole, message by message, and onto an empty bus only; a stretch of it is one too."""
    await fill(log, 5)
    before = await all_of(log)
    path = tmp_path / name
    assert (await export_log(log, path)).messages == len(before)
    with pytest.raises(NotEmpty):
        await import_log(path, log)
    await wipe(log)
    state = await import_log(path, log)
    assert (state.first_sequence, state.last_sequence) == (1, len(before))
    assert await all_of(log) == before

    part = path.with_stem("part")
    assert (await export_log(log, part, after=4, until=9)).first_sequence == 5
    kept = open_exported(part)
    assert [m async for batch in kept.messages(after=6) for m in batch] == before[6:9]
    await wipe(log)
    state = await import_log(part, log)
    assert (state.first_sequence, state.last_sequence) == (5, 9)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileUnreadable, match=path.name):
        open_exported(path)


async def test_consumers_go_on_where_they_stood(log: JetStreamLog, tmp_path: Path) -> None:
    """What was acknowledged before the archive does not come again, what was not does."""
    for n in range(6):
        await log.publish(removed("n1", f"id-{n}"))  # type: ignore[arg-type]
    consuming = await log.consume("worker", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    for _ in range(4):
        await (await anext(aiter(consuming))).ack()
    await consuming.close()

    async def four_acknowledged() -> bool:
        info = await api(log.connection, "CONSUMER.INFO.DATAPLANE.worker")
        return bool(info["ack_floor"]["stream_seq"] == 4)

    await eventually(four_acknowledged)
    blobs = DirectoryBlobs(tmp_path / "archive")
    await extend(blobs, log)
    await wipe(log)
    await bring_back(blobs, log)
    consuming = await log.consume("worker", ["dp.node.>"], ack_wait_s=30, max_pending=10)
    assert (await anext(aiter(consuming))).recorded.id == "id-4"
    await consuming.close()


async def test_an_interrupted_restore_is_gone_on_with(log: JetStreamLog, tmp_path: Path) -> None:
    """Half a log is no log to anybody, and the second try brings what is missing."""
    await fill(log)
    before = await all_of(log)
    blobs = DirectoryBlobs(tmp_path / "archive")
    await extend(blobs, log, segment_bytes=20_000)
    await wipe(log)

    def stop(done: int) -> None:
        if done > 50:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await bring_back(blobs, log, progress=stop)
    with pytest.raises(LogUnavailable, match="being restored"):
        await log.state()
    await bring_back(blobs, log)
    assert await all_of(log) == before


async def test_what_is_wrong_with_an_archive_is_named(log: JetStreamLog, tmp_path: Path) -> None:
    """A lost segment, a flipped bit, another log's archive, a rolled back log."""
    await fill(log)
    blobs = DirectoryBlobs(tmp_path / "archive")
    await extend(blobs, log, segment_bytes=20_000)
    manifest, _ = await manifest_at(blobs)
    victim = manifest.segments[1]
    path = tmp_path / "archive" / victim.name
    data = path.read_bytes()
    path.unlink()
    for reading in (prove(blobs), _read_through(blobs)):
        with pytest.raises(ArchiveDamaged, match=rf"{victim.name} is missing: sequences"):
            await reading
    path.write_bytes(data[:50] + bytes([data[50] ^ 4]) + data[51:])
    with pytest.raises(ArchiveDamaged, match=victim.name):
        await prove(blobs)
    path.write_bytes(data)
    await prove(blobs)

    await wipe(log)
    await eventually(lambda: _made(log))
    await fill(log, 1)
    with pytest.raises(ArchiveMismatch, match="give it another place"):
        await extend(blobs, log)


async def test_a_log_that_was_rolled_back_is_not_archived_over(
    log: JetStreamLog, tmp_path: Path
) -> None:
    """An older backup was restored: shorter than its archive, and then written on differently."""
    await fill(log, 5)
    old, new = DirectoryBlobs(tmp_path / "old"), DirectoryBlobs(tmp_path / "new")
    await extend(old, log)
    await log.publish(removed("n1", "later"))  # type: ignore[arg-type]
    await extend(new, log)
    await wipe(log)
    await bring_back(old, log)
    with pytest.raises(ArchiveMismatch, match="rolled back"):
        await extend(new, log)
    await log.publish(removed("n1", "another"))  # type: ignore[arg-type]
    with pytest.raises(ArchiveMismatch, match="another message at"):
        await extend(new, log)
    assert (await extend(old, log)).messages == 1


async def test_an_archive_in_a_bucket(
    log: JetStreamLog, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in S3, and of two writers one is told."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    blobs = S3Blobs(new_bucket(s3_server), "log/a", endpoint_url=s3_server.url)
    await fill(log, 5)
    before = await all_of(log)
    await extend(blobs, log)
    data, version = await blobs.get("manifest.json")
    await blobs.put("manifest.json", data + b"\n", replaces=version)
    with pytest.raises(Overtaken):
        await blobs.put("manifest.json", data + b" ", replaces=version)
    await wipe(log)
    await bring_back(blobs, log)
    assert await all_of(log) == before
    await blobs.close()


async def _read_through(blobs: DirectoryBlobs) -> None:
    log = await archived(blobs)
    async for _ in log.messages():
        await asyncio.sleep(0)


async def _made(log: JetStreamLog) -> bool:
    try:
        return await log.ensure_topology() == []
    except LogUnavailable:
        return False


async def test_the_archive_keeps_up_by_itself_and_goes_on_after_trouble(
    log: JetStreamLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the coordinator runs: new facts are archived, trouble is said, and nothing is lost."""
    place = tmp_path / "archive"
    place.write_text("in the way")
    config = DataPlaneConfig(node="coord", archive=str(place), archive_interval=0.05)
    await fill(log, 2)
    keeper = ArchiveKeeper(log, config)
    keeping = asyncio.create_task(keeper.run(Projector(log, tmp_path), leads=lambda: False))
    await eventually(lambda: "was not archived" in caplog.text)
    assert keeper.state.problem and not keeper.state.at
    place.unlink()
    blobs = DirectoryBlobs(place)
    for count in (0, 2):
        await fill(log, count)
        await eventually(lambda: _holds_all(blobs, log))
    await eventually(lambda: keeper.state.at > 0 and not keeper.state.problem)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await keeper.close()
    await prove(blobs)


async def _holds_all(blobs: DirectoryBlobs, log: JetStreamLog) -> bool:
    try:
        manifest, _ = await manifest_at(blobs)
    except EntryMissing:
        return False
    return manifest.last_sequence == (await log.state()).last_sequence
