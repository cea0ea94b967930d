"""What transfers leave behind: kept while somebody may go on from it, gone when data needs room."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from adapters.errors import CheckFailed
from adapters.files import leftovers
from adapters.files.landing import Landing
from adapters.files.leftovers import (
    idle_transfers,
    own_directories,
    sweep_partials,
    sweep_quarantine,
    tidy,
)
from adapters.files.rot import ROTTEN_SUFFIX
from adapters.files.scattered import notes_of
from dataplane.agent import tidying
from dataplane.agent.tidying import Tidying
from streams.memory import MemoryBus
from tests.conftest import eventually
from tests.unit.test_landing import entry_of, land, map_of_bytes, partials_in, quarantined_in

HOUR = 3600.0
DAY = 24 * HOUR
BYTES = b"x" * 40_000


#: From this used share on a disk is full in these tests, and how large it is.
FULL_FROM, DISK_BYTES = 0.9, 10**13


class Usage(NamedTuple):
    """Of a disk."""

    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is free on the disk; to be changed by a test."""
    bytes_free = [2 * 10**12]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: Usage(DISK_BYTES - bytes_free[0], bytes_free[0])
    )
    return bytes_free


async def leave(root: Path, transfer: str, data: bytes = BYTES) -> Path:
    """What is left of a transfer that was cut off."""
    before = set(partials_in(root))
    landing = await Landing.open(root, entry_of(data + b"rest"), transfer, "data/x.bin")
    await landing.write(data)
    await landing.abort()
    [left] = set(partials_in(root)) - before
    return left


async def test_a_place_that_files_were_only_brought_to_is_tidied_and_a_node_is_not(
    tmp_path: Path,
) -> None:
    """Empty partials go, but for one that is being written; so does what they lay in, alone."""
    place, node = tmp_path / "place", tmp_path / "node"
    place.mkdir()
    landing = await Landing.open(place, entry_of(BYTES), "t-1", "x")
    tidy(place)
    assert len(partials_in(place)) == 1
    await landing.abort()
    shutil.copytree(place, node)
    (node / ".dataplane" / "inventory").touch()
    for root in (place, node, place):
        tidy(root)
    assert list(place.iterdir()) == []
    assert len(partials_in(node)) == 1
    await leave(place, "t-2")
    tidy(place)
    assert len(partials_in(place)) == 1


async def quarantine(root: Path) -> None:
    """Two files that were no sound ones of their type."""
    for data in (b"\0", b"\0\0"):
        with pytest.raises(CheckFailed):
            await land(root, data, "data/x.npz")


@pytest.mark.usefixtures("free")
async def test_partials_go_after_a_day_and_quarantine_after_a_month(tmp_path: Path) -> None:
    """What is younger stays, where there is room, also when nobody will go on from it."""
    await leave(tmp_path, "t-1")
    with pytest.raises(CheckFailed):
        await land(tmp_path, b"", "data/x.onnx")
    own, now = tmp_path / ".dataplane", time.time()
    assert own_directories(tmp_path) == [own]
    assert sweep_partials(own, {"t-1"}, now + DAY - 60) == []
    assert len(sweep_partials(own, now=now + DAY + 60)) == 1
    assert sweep_quarantine(own, FULL_FROM, now + 29 * DAY) == []
    assert len(sweep_quarantine(own, FULL_FROM, now + 31 * DAY)) == 1


async def test_where_room_is_short_what_is_over_goes_and_what_is_not_stays(
    tmp_path: Path, free: list[int]
) -> None:
    """Superseded versions had held a fifth of a full disk for a day, and nothing came any more."""
    over, wanted = await leave(tmp_path, "over"), await leave(tmp_path, "wanted")
    own, soon = tmp_path / ".dataplane", time.time() + 120
    free[0] = 10 * len(BYTES)
    assert sweep_partials(own, {"over"}) == []
    assert sweep_partials(own, {"over"}, soon) == [over]
    assert partials_in(tmp_path) == [wanted]
    assert sweep_partials(own, (), soon) == []


async def test_of_what_is_over_the_oldest_goes_first(tmp_path: Path, free: list[int]) -> None:
    """And only so much that the rest takes little of what is free."""
    left = [await leave(tmp_path, f"t-{number}") for number in range(4)]
    soon = time.time() + 120
    each = left[0].stat().st_blocks * 512
    free[0] = 20 * each
    gone = sweep_partials(tmp_path / ".dataplane", {f"t-{number}" for number in range(4)}, soon)
    assert gone == left[:2]


async def test_quarantine_makes_room_for_data_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there to be looked into, and not to be kept at all costs."""
    await quarantine(tmp_path)
    own, now = tmp_path / ".dataplane", time.time()
    # As good as nothing, of a disk that is no larger than that.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(32_000, 8_000))
    assert sweep_quarantine(own, FULL_FROM, now + DAY - 60) == []
    assert len(sweep_quarantine(own, FULL_FROM, now + DAY + 60)) == 2
    assert quarantined_in(tmp_path) == []


async def test_k16_a_producers_clock_keeps_nothing_in_quarantine(tmp_path: Path) -> None:
    """A month after it came here it goes, whatever time its file says it has."""
    await quarantine(tmp_path)
    own, now = tmp_path / ".dataplane", time.time()
    for left in (own / "quarantine").iterdir():
        os.utime(left, (now + 999 * DAY, now + 999 * DAY))
    assert sweep_quarantine(own, FULL_FROM, now + 29 * DAY) == []
    assert len(sweep_quarantine(own, FULL_FROM, now + 31 * DAY)) == 2


async def test_on_a_full_disk_quarantine_makes_room_at_once(
    tmp_path: Path, free: list[int]
) -> None:
    """Nothing would come any more for what nobody may ever look into."""
    await quarantine(tmp_path)
    own = tmp_path / ".dataplane"
    free[0] = 0
    assert len(sweep_quarantine(own, FULL_FROM)) == 2
    assert quarantined_in(tmp_path) == []


async def test_what_rotted_is_never_removed_for_room(tmp_path: Path, free: list[int]) -> None:
    """It was sound once and may be the last copy, with most of it to be saved; only age ends it."""
    own, now = tmp_path / ".dataplane", time.time()
    rotten = own / "quarantine" / f"{'0' * 64}{ROTTEN_SUFFIX}"
    rotten.parent.mkdir(parents=True)
    rotten.write_bytes(BYTES)
    free[0] = 0
    assert sweep_quarantine(own, FULL_FROM, now + 29 * DAY) == []
    assert sweep_quarantine(own, FULL_FROM, now + 31 * DAY) == [rotten]


async def test_what_is_being_written_is_never_touched(tmp_path: Path, free: list[int]) -> None:
    """Neither for its age nor for room: its lock says that somebody is at it."""
    landing = await Landing.open(tmp_path, entry_of(BYTES), "t-1", "data/x.bin")
    await landing.write(BYTES)
    free[0] = 0
    assert sweep_partials(tmp_path / ".dataplane", {"t-1"}, time.time() + 2 * DAY) == []
    await landing.commit()
    assert (tmp_path / "data/x.bin").read_bytes() == BYTES


@pytest.mark.usefixtures("free")
async def test_notes_go_with_their_partial(tmp_path: Path) -> None:
    """And by themselves where there is none."""
    landing = await Landing.open(tmp_path, entry_of(BYTES), "t-1", "data/x.bin")
    await landing.scatter(map_of_bytes(BYTES))
    await landing.abort()
    [left] = partials_in(tmp_path)
    alone = notes_of(left.with_name("t-2.0.partial"))
    alone.write_bytes(b"notes")
    own = tmp_path / ".dataplane"
    assert set(sweep_partials(own, now=time.time() + DAY + 60)) == {left, alone}
    assert list((own / "partial").iterdir()) == []


@pytest.mark.usefixtures("free")
async def test_nobody_is_asked_of_files_of_a_group(tmp_path: Path) -> None:
    """No attempt goes on from them: they stay as long as a group may take, and go."""
    left = await leave(tmp_path, "t-1")
    group = left.with_name(f"{leftovers.GROUP_PREFIX}1-ab.3.partial")
    group.write_bytes(b"small")
    own, now = tmp_path / ".dataplane", time.time()
    assert idle_transfers(own, now) == set()
    assert idle_transfers(own, now + 120) == {"t-1"}
    assert sweep_partials(own, now=now + HOUR - 60) == []
    assert sweep_partials(own, now=now + HOUR + 60) == [group]


@pytest.mark.usefixtures("free")
async def test_one_that_cannot_be_removed_keeps_no_other(tmp_path: Path) -> None:
    """Somebody made a directory there: it is told of and stays, whatever comes before or behind."""
    own, now = tmp_path / ".dataplane", time.time()
    files, others = [], []
    for name in ("partial", "quarantine"):
        for number in range(5):
            file = own / name / f"t-{number}.0.partial"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(BYTES)
            files.append(file)
        others.append(own / name / "t-9.0.partial")
        others[-1].mkdir()
    told: dict[Path, OSError] = {}
    gone = sweep_partials(own, now=now + 31 * DAY, stuck=told.__setitem__)
    gone += sweep_quarantine(own, FULL_FROM, now + 31 * DAY, told.__setitem__)
    assert set(gone) == set(files)
    assert list(told) == others


async def test_one_that_cannot_be_looked_at_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back all but one is swept all the same."""
    bad, good = await leave(tmp_path, "t-1"), await leave(tmp_path, "t-2")
    look = Path.lstat

    def looked_at(path: Path) -> os.stat_result:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(path)

    monkeypatch.setattr(Path, "lstat", looked_at)
    told: dict[Path, OSError] = {}
    later = time.time() + DAY + 60
    assert idle_transfers(tmp_path / ".dataplane", later, told.__setitem__) == {"t-2"}
    assert sweep_partials(tmp_path / ".dataplane", now=later, stuck=told.__setitem__) == [good]
    assert list(told) == [bad]


async def test_what_is_stuck_is_warned_of_once_and_other_disks_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was said to nobody, and nothing was removed any more; it is said anew if it comes back."""
    for limit in ("PARTIAL_MAX_AGE_S", "QUARANTINE_MAX_AGE_S"):
        monkeypatch.setattr(leftovers, limit, -60.0)
    away, stuck = tmp_path / ".dataplane", tmp_path / "disk/.dataplane/partial/t-1.0.partial"
    (away / "quarantine").mkdir(parents=True)
    stuck.mkdir(parents=True)
    file = tmp_path / "disk/.dataplane/quarantine/x.bin"
    file.parent.mkdir()
    usage = shutil.disk_usage

    def used(own: Path) -> object:
        if own == away:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return usage(own)

    monkeypatch.setattr(shutil, "disk_usage", used)
    tidying = Tidying(MemoryBus(), tmp_path, FULL_FROM)

    async def warned_of() -> list[Path]:
        caplog.clear()
        file.write_bytes(b"x")
        assert await tidying.tidy() == [file]
        return sorted(record.args[0] for record in caplog.records)  # type: ignore[index]

    assert await warned_of() == [away, stuck]
    assert await warned_of() == []
    stuck.rmdir()
    assert await warned_of() == []
    stuck.mkdir()
    assert await warned_of() == [stuck]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("name", [b".nfs0001", b".x", b"\xff\xfe.0.partial", b"a b.0.partial"])
async def test_nobody_is_asked_of_what_no_transfer_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    """It would spoil the whole question; and goes by its age like all others."""
    monkeypatch.setattr(leftovers, "IDLE_S", -1.0)
    left = await leave(tmp_path, "t-1")
    other = left.with_name(os.fsdecode(name))
    other.write_bytes(b"x")
    bus, coordinator = MemoryBus(), Coordinator(("t-1",))
    answering = await bus.answer("dp.query.pending", coordinator.answer)
    assert await Tidying(bus, tmp_path, FULL_FROM).tidy() == []
    assert coordinator.asked == [["t-1"]]
    assert set(sweep_partials(tmp_path / ".dataplane", now=time.time() + 2 * DAY)) == {left, other}
    await answering.close()


class Coordinator:
    """Says which transfers are pending; counts what it is asked."""

    def __init__(self, pending: tuple[str, ...]) -> None:
        self.pending = pending
        self.asked: list[list[str]] = []

    async def answer(self, subject: str, body: bytes) -> bytes:
        transfers = msgspec.json.decode(body)["transfers"]
        self.asked.append(transfers)
        return msgspec.json.encode([id for id in transfers if id in self.pending])


async def test_a_coordinator_is_asked_which_are_over(
    tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it says that a transfer is to be done, what is there of it stays."""
    monkeypatch.setattr(leftovers, "IDLE_S", -1.0)
    over, wanted = await leave(tmp_path, "over"), await leave(tmp_path, "wanted")
    free[0] = 0
    bus, coordinator = MemoryBus(), Coordinator(("wanted",))
    answering = await bus.answer("dp.query.pending", coordinator.answer)
    assert await Tidying(bus, tmp_path, FULL_FROM).tidy() == [over]
    assert coordinator.asked == [["over", "wanted"]]
    assert partials_in(tmp_path) == [wanted]
    await answering.close()


async def test_where_no_coordinator_answers_everything_stays(
    tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is old; an answer that can't be read is none."""
    monkeypatch.setattr(leftovers, "IDLE_S", -1.0)
    left = await leave(tmp_path, "t-1")
    free[0] = 0
    bus = MemoryBus()
    assert await Tidying(bus, tmp_path, FULL_FROM).tidy() == []

    async def nonsense(subject: str, body: bytes) -> bytes:
        return b"{"

    await bus.answer("dp.query.pending", nonsense)
    assert await Tidying(bus, tmp_path, FULL_FROM).tidy() == []
    assert partials_in(tmp_path) == [left]


async def test_an_agent_sweeps_by_itself_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a disk would fill up with what nobody wants."""
    for limit in ("PARTIAL_MAX_AGE_S", "QUARANTINE_MAX_AGE_S"):
        monkeypatch.setattr(leftovers, limit, -60.0)
    monkeypatch.setattr(tidying, "TIDY_S", 0.01)
    old = [tmp_path / ".dataplane" / name / "x.bin" for name in ("partial", "quarantine")]
    for file in old:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    looked = iter([OSError("the disk is away"), own_directories(tmp_path)])

    def look(root: Path) -> list[Path]:
        found = next(looked)
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(tidying, "own_directories", look)
    sweeping = asyncio.create_task(Tidying(MemoryBus(), tmp_path, FULL_FROM).run())
    await eventually(lambda: not any(file.exists() for file in old))
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
