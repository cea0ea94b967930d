"""Scrubbing: rot is found, set aside and said; what somebody wrote is no rot."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.files import rot as rotting
from adapters.files.inventory import Inventory
from dataplane.agent.custody import Custody
from dataplane.agent.scrub import Scrubber, pace
from dataplane.coordinator.deleting import DeletionOrder
from dataplane.deletion import copies_chain
from dataplane.policy import Policy
from dataplane.proving import Untold
from streams import events
from streams.codec import Fact, chain_fact
from streams.log import LogUnavailable, Receipt
from streams.memory import MemoryBus, MemoryLog
from streams.values import DataEntry, DataType, Proof
from tests.conftest import eventually

PATH = "games/gpu-1/hex8_2p.jsonl"
DAY_S = 86_400.0


class Clock:
    """The time, seconds since 1970; it goes on when the test says so."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """What a node holds."""
    inventory = Inventory(tmp_path, "train-1")
    yield inventory
    await inventory.close()


@pytest.fixture
def clock() -> Clock:
    """The scrubber's clock."""
    return Clock()


@pytest.fixture
def said() -> list[Fact]:
    """What the scrubber says."""
    return []


@pytest.fixture
def scrubber(inventory: Inventory, said: list[Fact], clock: Clock) -> Scrubber:
    """It reads everything again each day."""

    async def say(fact: Fact) -> None:
        said.append(fact)

    return Scrubber("train-1", inventory, say, interval_s=DAY_S, limit_mbps=1_000.0, clock=clock)


async def received(
    inventory: Inventory, root: Path, content: bytes = b'{"moves":[]}\n' * 100
) -> DataEntry:
    """A file that came by a transfer."""
    file = root / PATH
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    entry = DataEntry(
        path=PATH,
        data_type=DataType.GAMES,
        config_key="hex8_2p",
        size_bytes=len(content),
        checksum="sha256:" + hashlib.sha256(content).hexdigest(),
    )
    await inventory.landed({PATH: entry})
    return entry


def rot(file: Path, position: int = 40) -> None:
    """One bit changes, and nobody wrote it."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_copy_that_rotted_is_set_aside_said_and_asked_for_anew(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """The damaged file is in quarantine, the fact names it, and a chain is opened for that path."""
    entry = await received(inventory, tmp_path)
    rot(tmp_path / PATH)
    found = await scrubber.scrub(entry)
    assert found is not None and found.set_aside
    assert not (tmp_path / PATH).exists()
    (aside,) = (tmp_path / ".dataplane" / "quarantine").iterdir()
    assert aside.suffix == ".rotten"
    damaged, needed = (fact.event for fact in said)
    assert isinstance(damaged, events.FileQuarantined)
    assert (damaged.node, damaged.path, damaged.checksum) == ("train-1", PATH, entry.checksum)
    assert "it was not received anew" in damaged.reason
    assert isinstance(needed, events.DataNeeded)
    assert (needed.node, needed.paths) == ("train-1", (PATH,))
    # It is said already: no scan says once more that it is gone.
    assert (await inventory.scan()).removed == ()
    assert await inventory.held() == []


async def test_process_that_dies_before_it_could_say_so_says_later_that_the_file_is_gone(
    inventory: Inventory, tmp_path: Path
) -> None:
    """The catalog must not go on naming a copy that is in quarantine."""
    entry = await received(inventory, tmp_path)
    rot(tmp_path / PATH)
    assert await inventory.scrub(entry.path) is not None
    await inventory.close()
    again = Inventory(tmp_path, "train-1")
    assert (await again.scan()).removed == (PATH,)
    await again.close()


async def test_sound_copy_is_left_alone(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """It is read, counted, and that is all."""
    entry = await received(inventory, tmp_path)
    assert await scrubber.scrub(entry) is None
    assert (scrubber.read, scrubber.bytes_read, scrubber.rotten) == (1, entry.size_bytes, 0)
    assert said == [] and (tmp_path / PATH).exists()


async def test_file_that_somebody_wrote_is_no_rot(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """It looks different: the next scan says what it is."""
    entry = await received(inventory, tmp_path)
    (tmp_path / PATH).write_bytes(b"something else")
    assert await scrubber.scrub(entry) is None
    assert said == [] and (tmp_path / PATH).read_bytes() == b"something else"


async def test_copy_of_another_nodes_file_that_was_changed_in_place_is_replaced(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """The scan has said already that it is gone; the scrubber asks for it anew."""
    entry = await received(inventory, tmp_path)
    (tmp_path / PATH).write_bytes(b"something else")
    found = await inventory.scan()
    assert found.removed == (PATH,)
    await inventory.reported((), found.removed)
    assert inventory.spoiled() == [entry]
    rot_found = await scrubber.scrub(entry)
    assert rot_found is not None and rot_found.set_aside
    assert [type(fact.event) for fact in said] == [events.FileQuarantined, events.DataNeeded]
    assert inventory.spoiled() == [] and (await inventory.scan()).removed == ()


async def test_file_of_the_nodes_own_that_rotted_is_said_once_and_stays(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """Nobody but its owner may touch it."""
    file = tmp_path / "games/hex8_2p.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b'{"moves":[]}\n' * 100)
    (entry,) = (await inventory.scan()).changed
    rot(file)
    for _ in range(2):
        found = await scrubber.scrub(entry)
        assert found is not None and not found.set_aside
    assert [type(fact.event) for fact in said] == [events.FileQuarantined, events.DataNeeded]
    assert file.exists()


@pytest.mark.parametrize("scrubbed", [True, False])
async def test_a_clock_that_was_set_back_keeps_nothing_from_being_read_again(
    inventory: Inventory, scrubber: Scrubber, clock: Clock, tmp_path: Path, scrubbed: bool
) -> None:
    """A machine that began in a wrong year would not read before that comes."""
    entry = await received(inventory, tmp_path)
    if scrubbed:
        await scrubber.scrub(entry)
    clock.now -= 365 * DAY_S
    assert scrubber.due() == []
    clock.now += DAY_S
    assert scrubber.due() == [entry]


async def test_what_was_read_longest_ago_is_due_first_and_only_after_the_interval(
    inventory: Inventory, scrubber: Scrubber, clock: Clock, tmp_path: Path
) -> None:
    """A replica that was read again today is not read again today."""
    entry = await received(inventory, tmp_path)
    assert scrubber.due() == []
    clock.now += DAY_S
    assert scrubber.due() == [entry]
    await scrubber.scrub(entry)
    assert scrubber.due() == []
    clock.now += DAY_S
    assert scrubber.due() == [entry]


async def test_scans_and_proofs_do_not_wait_for_a_large_file_that_is_read_again(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains and deletions would fail for want of an answer."""
    entry = await received(inventory, tmp_path)
    began, go_on = threading.Event(), threading.Event()
    read = rotting.checksum_on_disk

    def slowly(path: Path, *how: Any) -> str:
        began.set()
        go_on.wait()
        return read(path, *how)

    monkeypatch.setattr(rotting, "checksum_on_disk", slowly)
    scrubbing = asyncio.create_task(inventory.scrub(entry.path))
    try:
        await asyncio.to_thread(began.wait)
        async with asyncio.timeout(30):
            await inventory.scan()
            assert (await inventory.prove(entry.path, entry.checksum)).proven
    finally:
        go_on.set()
    assert await scrubbing is None


async def test_file_that_was_received_anew_while_the_old_one_was_read_stays(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its row does not know of it yet: a file gets its name before that."""
    entry = await received(inventory, tmp_path)
    (tmp_path / PATH).write_bytes(b"something else")
    await inventory.scan()
    assert inventory.spoiled() == [entry]
    read = rotting.checksum_on_disk

    def and_then_it_lands(path: Path, *how: Any) -> str:
        found = read(path, *how)
        (tmp_path / "new").write_bytes(b"sound")
        (tmp_path / "new").replace(path)
        return found

    monkeypatch.setattr(rotting, "checksum_on_disk", and_then_it_lands)
    assert await inventory.scrub(entry.path) is None
    assert (tmp_path / PATH).read_bytes() == b"sound"


@pytest.mark.parametrize(
    ("code", "rotten"),
    [
        (errno.EIO, True),
        (errno.EBADMSG, True),
        (errno.EUCLEAN, True),
        (errno.EMFILE, False),
        (errno.ENFILE, False),
        (errno.ENOMEM, False),
        (errno.EACCES, False),
        (errno.ESTALE, False),
    ],
)
async def test_only_what_the_disk_can_not_give_back_is_rot(
    inventory: Inventory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    rotten: bool,
) -> None:
    """A process without handles, memory or permission says nothing of the file."""
    entry = await received(inventory, tmp_path)

    def fail(path: Path, *how: Any) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(rotting, "checksum_on_disk", fail)
    found = await inventory.scrub(entry.path)
    assert (found is not None and found.set_aside) is rotten
    assert (tmp_path / PATH).exists() is not rotten


async def test_copy_that_fails_a_proof_is_found_to_be_rotten_at_once(
    inventory: Inventory, scrubber: Scrubber, said: list[Fact], tmp_path: Path
) -> None:
    """P9: who asks for a proof must not be the only one who knows; it is mended meanwhile."""
    entry = await received(inventory, tmp_path)
    custody = Custody(
        MemoryLog(),
        MemoryBus(),
        "train-1",
        inventory,
        Policy(),
        look_again=scrubber.scrub_at,
    )
    assert (await custody.prove(PATH, entry.checksum)).proven
    assert not (await custody.prove(PATH, "sha256:" + "0" * 64)).proven
    rot(tmp_path / PATH)
    assert not (await custody.prove(PATH, entry.checksum)).proven
    await eventually(lambda: len(said) == 2)
    assert isinstance(said[0].event, events.FileQuarantined)
    assert isinstance(said[1].event, events.DataNeeded)
    await custody.stop()


@pytest.mark.parametrize("decision", [events.DeletionReserved, events.DeletionGranted])
async def test_a_copy_that_is_about_to_be_deleted_is_not_proven(
    inventory: Inventory, tmp_path: Path, decision: type[Any]
) -> None:
    """Whoever asks would rely on what is gone a moment later; another node's is, and one that
    stays after all.
    """
    log, entry = MemoryLog(), await received(inventory, tmp_path)
    chain = copies_chain(entry.path, entry.checksum)
    custody = Custody(log, MemoryBus(), "train-1", inventory, Policy())

    async def proof_after(event: events.Event, *distinct: str) -> Proof:
        await log.publish(chain_fact(event, chain, "d", *distinct))
        return await custody.prove(PATH, entry.checksum)

    same: Any = {"path": entry.path, "checksum": entry.checksum, "request": "d"}
    assert (await proof_after(decision(node="vault", **same), "vault")).proven
    proof = await proof_after(decision(node="train-1", **same), "here")
    assert (proof.proven, proof.reason) == (False, "it is about to be deleted here")
    kept = events.DeletionRefused(node="train-1", rule="unproven", reason="rotten", **same)
    assert (await proof_after(kept)).proven


async def test_a_node_says_what_it_has_not_told_of_and_tells_it_by_that_to_nobody(
    inventory: Inventory, tmp_path: Path
) -> None:
    """A file that was never reported, until it is; and what can't be read."""
    log = MemoryLog()
    custody = Custody(log, MemoryBus(), "train-1", inventory, Policy())
    assert await custody.untold() == Untold()
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "own_hex8_2p.jsonl").write_text('{"game": 1}\n')
    assert (await custody.untold(), await custody.untold()) == (Untold(files=1), Untold(files=1))
    await inventory.reported((await inventory.scan()).changed)
    assert await custody.untold() == Untold()
    assert (await log.state()).last_sequence == 0


async def test_who_can_not_ask_whether_a_copy_is_deleted_proves_nothing(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been granted meanwhile."""
    log, entry = MemoryLog(), await received(inventory, tmp_path)
    custody = Custody(log, MemoryBus(), "train-1", inventory, Policy())

    async def away(subjects: str) -> None:
        raise LogUnavailable("the bus is away")

    monkeypatch.setattr(log, "last", away)
    proof = await custody.prove(PATH, entry.checksum)
    assert not proof.proven
    assert proof.reason.endswith("can't be known: the bus is away")


async def granted(log: MemoryLog, entry: DataEntry) -> DeletionOrder:
    """What is asked of a node once it is said that its copy may go."""
    chain = copies_chain(entry.path, entry.checksum)
    may_go = events.DeletionGranted(
        path=entry.path, checksum=entry.checksum, node="train-1", request="d"
    )
    grant = chain_fact(may_go, chain, "d")
    await log.publish(grant)
    return DeletionOrder("d", entry.path, entry.checksum, grant.id)


async def test_a_copy_that_came_again_is_not_deleted_by_a_grant_that_was_used(
    inventory: Inventory, tmp_path: Path
) -> None:
    """Two may ask by one grant, and in between it is said that the copy is gone: a new one stays.

    After a restart nobody knows here that the grant was used: no removal is silent then, and one
    that only repeats itself is said once.
    """
    log, entry = MemoryLog(), await received(inventory, tmp_path)
    order = await granted(log, entry)

    def started() -> Custody:
        return Custody(log, MemoryBus(), "train-1", inventory, Policy())

    async def removals() -> int:
        last = (await log.state()).last_sequence
        facts = [fact async for batch in log.read(until=last) for fact in batch]
        return sum(isinstance(fact.event, events.FilesRemoved) for fact in facts)

    custody = started()
    first = await custody.delete(order)
    assert first.deleted and first.freed_bytes == entry.size_bytes
    assert await removals() == 1
    await received(inventory, tmp_path)
    assert await custody.delete(order) == first
    assert (tmp_path / PATH).exists()
    assert await removals() == 1
    assert (await started().delete(order)).freed_bytes
    assert not (tmp_path / PATH).exists()
    assert await removals() == 2
    for _ in range(2):
        assert (await started().delete(order)).deleted
    assert await removals() == 3


async def test_what_could_not_be_said_to_be_gone_is_said_when_it_is_asked_for_again(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one fact, whether the first word was stored or not; nothing is deleted a second time."""
    log, entry = MemoryLog(), await received(inventory, tmp_path)
    order = await granted(log, entry)
    custody, publish = Custody(log, MemoryBus(), "train-1", inventory, Policy()), log.publish

    async def stored_and_unheard(fact: Fact) -> Receipt:
        await publish(fact)
        raise LogUnavailable("the answer was lost")

    monkeypatch.setattr(log, "publish", stored_and_unheard)
    with pytest.raises(LogUnavailable):
        await custody.delete(order)
    monkeypatch.setattr(log, "publish", publish)
    await received(inventory, tmp_path)
    assert (await custody.delete(order)).freed_bytes == entry.size_bytes
    assert (tmp_path / PATH).exists()
    assert (await log.state()).last_sequence == 2


MIB = 1 << 20


class Timed(Inventory):
    """Notes when it went on after each block, and how much was read until then."""

    began = 0.0
    went_on: list[tuple[float, int]]

    async def scrub(
        self, path: str, *, pause: Callable[[int], float] | None = None
    ) -> rotting.Rot | None:
        """As `Inventory.scrub`."""
        assert pause is not None
        self.began, self.went_on, read = time.monotonic(), [], 0

        def timed(nbytes: int) -> float:
            nonlocal read
            self.went_on.append((time.monotonic() - self.began, read))
            read += nbytes
            return pause(nbytes)

        found = await super().scrub(path, pause=timed)
        self.went_on.append((time.monotonic() - self.began, read))
        return found


async def test_one_large_file_is_read_no_faster_than_the_budget_all_along(
    said: list[Fact], clock: Clock, tmp_path: Path
) -> None:
    """Not at full speed with a rest at its end: by the clock, after each block."""
    inventory = Timed(tmp_path, "train-1")
    await received(inventory, tmp_path, b"x" * (9 * MIB))

    async def say(fact: Fact) -> None:
        said.append(fact)

    limit_mbps = 160.0
    scrubber = Scrubber(
        "train-1", inventory, say, interval_s=DAY_S, limit_mbps=limit_mbps, clock=clock
    )
    clock.now += 2 * DAY_S
    running = asyncio.create_task(scrubber.run())

    async def is_read() -> bool:
        return scrubber.read == 1

    await eventually(is_read)
    running.cancel()
    assert [read for _, read in inventory.went_on] == [0, 4 * MIB, 8 * MIB, 9 * MIB]
    # The pace is counted from just before the inventory is asked.
    late_s = 0.15
    assert all(at >= read * 8 / (limit_mbps * 1e6) - late_s for at, read in inventory.went_on), (
        inventory.went_on
    )
    assert said == []
    await inventory.close()


def test_a_disk_that_is_slower_than_the_budget_rests_no_longer() -> None:
    """What it could not take it may take later, over one file."""
    now = [100.0]
    pause = pace(8.0, lambda: now[0])
    assert pause(1_000_000) == 1.0
    now[0] += 1.5
    assert pause(1_000_000) == 0.5
    now[0] += 10.0
    assert pause(1_000_000) == 0.0


async def test_what_is_looked_at_again_at_once_does_not_wait_for_what_is_read_slowly(
    tmp_path: Path,
) -> None:
    """Somebody found another content there; and an inventory that is closed rests no more."""
    inventory = Inventory(tmp_path, "train-1")
    entry = await received(inventory, tmp_path, b"x" * (5 * MIB))
    slowly = asyncio.create_task(inventory.scrub(entry.path, pause=lambda nbytes: 3600.0))
    async with asyncio.timeout(60):
        assert await inventory.scrub(entry.path) is None
        assert not slowly.done()
        await inventory.close()
        assert await slowly is None
