"""A database is copied by every transport, both ways, while a process writes to it (P7).

Three copies by each in the suite; ``make slow`` makes ten, sixty in all, and as many pushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory
from adapters.files.landing import Landing
from adapters.s3 import layout
from adapters.throttle import Throttle
from adapters.transport import Request
from streams.values import DataEntry
from tests.contract.rigs import FAR, Rig
from tests.unit.test_sqlite import writer

PATIENCE_S = 60.0
COPIES = int(os.environ.get("DATAPLANE_COPIES", "3"))
LOCAL = "games/selfplay_hex8_2p.db"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Inventory]:
    """The inventory of a node on which a process writes games, ten a transaction."""
    data = tmp_path / "live"
    (data / "games").mkdir(parents=True)
    inventory = Inventory(data, FAR)
    with writer(data / LOCAL, "WAL", 1_000_000):
        yield inventory
    await inventory.close()


async def observed(inventory: Inventory) -> DataEntry:
    """The database's entry as its node says it now: of an immutable snapshot."""
    [entry] = (await inventory.scan("hex8_2p")).changed
    return entry


async def grown(path: Path, beyond: int) -> None:
    """Wait until the writer has committed more games than so many."""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            while db.execute("SELECT n FROM counter").fetchone()[0] <= beyond:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def committed(path: Path) -> int:
    """How many games a copy holds, after a check that they are whole transactions, in order."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count, last = db.execute("SELECT count(*), max(id) FROM games").fetchone()
        assert db.execute("SELECT n FROM counter").fetchone() == (count,)
    assert last == count
    assert count % 10 == 0
    assert [name.name for name in path.parent.iterdir()] == [path.name]
    return int(count)


async def pushed_copy(rig: Rig, request: Request, snapshot: Path, base: Path) -> int:
    """Push the snapshot; how many games the copy holds at the far end."""
    await rig.pushes.push(request, snapshot, Throttle(), lambda *_: None)
    if rig.lands:
        return committed(rig.root / LOCAL)
    copy = base / "object" / "copy.db"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(rig.here()[layout.object_key(request.entry.checksum)])
    return committed(copy)


async def test_p7_every_copy_of_a_live_database_holds_a_committed_prefix(
    rig: Rig, live: Inventory, tmp_path: Path, root: Path
) -> None:
    """Each opens, is sound, and ends with a transaction; and the writer was never held up."""
    counts: list[int] = []
    for number in range(COPIES):
        await grown(tmp_path / "live" / LOCAL, counts[-1] if counts else 0)
        entry = await observed(live)
        snapshot = live.locate(entry.checksum)
        assert snapshot is not None
        request = rig.request(entry, f"t-{number}", LOCAL, 30.0, 10.0)
        pushed = await pushed_copy(rig, request, snapshot, tmp_path)
        rig.hold(entry, snapshot)
        landing = await Landing.open(root, entry, f"t-{number}", LOCAL)
        request = rig.request(entry, f"t-{number}", LOCAL, 30.0, 10.0)
        await rig.fetches.fetch(request, landing, Throttle(), lambda *_: None)
        landed = await landing.commit()
        counts.append(committed(root / LOCAL))
        assert landed.games in (None, counts[-1])
        assert pushed == counts[-1]
    assert counts == sorted(set(counts)), "the writer wrote on between the copies"
