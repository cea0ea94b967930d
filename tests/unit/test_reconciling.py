"""Log against disk: what was lost and what nobody knew of is said, and nothing else."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from adapters.files.inventory import Inventory
from dataplane.agent import reconciling
from dataplane.agent.reconciling import Reconciler
from dataplane.held import HeldPage
from streams import events
from streams.codec import node_fact
from streams.memory import MemoryBus, MemoryLog
from tests.spec import entry
from tests.unit.test_inventory import NODE, play, put, received, told


class Node:
    """One node: its disk, its index and the log."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = MemoryLog()
        self.bus = MemoryBus()
        self.inventory = Inventory(root, NODE)
        self._said = 0

    async def say(self, event: events.Event, by: str = NODE) -> None:
        """Something is in the log."""
        self._said += 1
        await self.log.publish(node_fact(event, by, f"said-{self._said}"))

    async def scanned(self) -> None:
        """A scan, and what it found is said."""
        found = await told(self.inventory)
        if found.changed:
            await self.say(events.FilesObserved(node=NODE, entries=found.changed))
        if found.removed:
            await self.say(events.FilesRemoved(node=NODE, paths=found.removed))

    async def lose_index(self) -> None:
        """The agent's own directory is thrown away, and it starts anew."""
        await self.inventory.close()
        for file in (self.root / ".dataplane").glob("inventory.sqlite*"):
            file.unlink()
        self.inventory = Inventory(self.root, NODE)


@pytest.fixture
async def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """A node with two models, said and known."""
    monkeypatch.setattr(reconciling, "SETTLE_S", 0.0)
    root = tmp_path / "root"
    root.mkdir()
    node = Node(root)
    for name in ("a", "b"):
        file = put(root / f"models/{name}.pth", b"\x80" + name.encode())
        os.utime(file, (time.time() - 60, time.time() - 60))
    await node.scanned()
    yield node
    await node.inventory.close()


async def test_where_log_and_disk_agree_nothing_is_said(there: Node) -> None:
    """Own files and received ones."""
    entry = received(b"games", "games/gpu-1/x.jsonl")
    put(there.root / entry.path, b"games")
    await there.inventory.landed({entry.path: entry})
    await there.say(_arrived(entry.path, entry.checksum, said_by="gpu-1"), by="gpu-1")
    before = (await there.log.state()).last_sequence
    assert not await Reconciler(there.log, there.bus, NODE, there.inventory).reconcile()
    assert (await there.log.state()).last_sequence == before


async def test_files_that_went_with_the_index_are_lost(there: Node) -> None:
    """No scan would miss them; they are said to be gone, once."""
    (there.root / "models/a.pth").unlink()
    await there.lose_index()
    await there.scanned()
    reconciler = Reconciler(there.log, there.bus, NODE, there.inventory)
    found = await reconciler.reconcile()
    assert {path for path, _ in found.lost} == {"models/a.pth"}
    last = await there.log.last("dp.node.gpu-7.FILES_REMOVED.>")
    assert last is not None
    assert last.event == events.FilesRemoved(node=NODE, paths=("models/a.pth",))
    assert not await reconciler.reconcile()


async def test_p17_what_an_inventory_that_forgot_all_can_not_read_is_not_lost(
    there: Node, tmp_path: Path
) -> None:
    """Where a database is held by its writer, a model is being written, or a directory leads
    nowhere; what was read and is damaged is lost, though a file is there.
    """
    for name in ("busy", "damaged"):
        play(there.root / f"games/{name}.db", 3)
    put(there.root / "npz/x.jsonl", b"{}\n")
    await there.scanned()
    held = sqlite3.connect(there.root / "games/busy.db")
    held.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
    held.execute("BEGIN IMMEDIATE")
    (there.root / "games/damaged.db").write_bytes(b"SQLite format 3\0" + bytes(8000))
    (there.root / "models/a.pth.writing").touch()
    (there.root / "npz/x.jsonl").unlink()
    (there.root / "npz").rmdir()
    (there.root / "npz").symlink_to("npz")
    await there.lose_index()
    await there.scanned()
    found = await Reconciler(there.log, there.bus, NODE, there.inventory).reconcile()
    assert {path for path, _ in found.lost} == {"games/gpu-7/damaged.db"}
    held.close()


async def test_files_of_which_this_log_never_heard_are_dark(there: Node) -> None:
    """The index says they were told: that was another log."""
    there.log = MemoryLog()
    reconciler = Reconciler(there.log, there.bus, NODE, there.inventory)
    found = await reconciler.reconcile()
    assert {path for path, _ in found.dark} == {"models/a.pth", "models/b.pth"}
    assert not await reconciler.reconcile()


async def test_a_difference_that_passes_is_not_said(there: Node) -> None:
    """A file that has just landed is in the index before it is in the log."""
    entry = received(b"games", "games/gpu-1/x.jsonl")
    put(there.root / entry.path, b"games")
    await there.inventory.landed({entry.path: entry})
    reconciler = Reconciler(there.log, there.bus, NODE, there.inventory)
    first = await reconciler._difference()
    assert {path for path, _ in first.dark} == {entry.path}
    await there.say(_arrived(entry.path, entry.checksum))
    assert not first.still(await reconciler._difference())


def _arrived(path: str, checksum: str, said_by: str = NODE) -> events.TransferSucceeded:
    what = msgspec.structs.replace(entry(path), size_bytes=5, checksum=checksum)
    return events.TransferSucceeded(
        transfer="t", node=said_by, source="gpu-1", target=NODE, entry=what, attempt=1
    )


async def test_what_the_log_no_longer_holds_a_coordinator_knows(there: Node) -> None:
    """Neither is a file that was said long ago said again, nor is one that is lost overlooked."""
    said = await there.inventory.held()
    end = (await there.log.state()).last_sequence
    for n in range(3):
        await there.say(events.NodeRecovered(node="gpu-9", reason=str(n)))
    await there.log.remove_before(end + 2)
    pages = {"": ((said[0],), "00aa"), "00aa": ((said[1], entry("models/c.pth")), "")}

    async def answer(subject: str, body: bytes) -> bytes:
        entries, after = pages[msgspec.json.decode(body)["after"]]
        return msgspec.json.encode(HeldPage(end + 1, entries, after))

    await there.bus.answer("dp.query.held", answer)
    difference = await Reconciler(there.log, there.bus, NODE, there.inventory).reconcile()
    assert difference.lost == {("models/c.pth", entry("models/c.pth").checksum)}
    assert not difference.dark
