"""Several that come to one path: by whichever way, the newest stays, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import Overtaken, Superseded, TransportError
from adapters.files import inventory as of_files
from adapters.files.arrivals import Arrivals
from adapters.files.group import Group, Wanted
from adapters.files.inventory import Inventory
from adapters.files.landing import Landed, Landing
from adapters.files.turns import Turns
from streams.identity import PathRules
from streams.values import DataEntry, DataType
from tests.held import Held

#: Nothing here takes long; whoever waits so long would wait for ever.
PATIENCE_S = 20.0


def entry_of(path: str, version: int) -> DataEntry:
    """A version of a path, whose content names it."""
    data = content(version)
    return DataEntry(
        path=path,
        data_type=DataType.MODELS,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        version=version,
    )


def content(version: int) -> bytes:
    """What a version holds."""
    return b"version %d" % version


OLDER, NEWER = entry_of("models/x.bin", 7), entry_of("models/x.bin", 9)


class Asked(Inventory):
    """An inventory that counts how often somebody wanted to be alone."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "train-1")
        self.asked = asyncio.Semaphore(0)

    def alone(self, local_paths: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """As `Inventory.alone`."""
        self.asked.release()
        return super().alone(local_paths)


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Asked]:
    """The inventory of the node to which all comes."""
    inventory = Asked(tmp_path)
    yield inventory
    await inventory.close()


async def alone(root: Path, inventory: Inventory, entry: DataEntry) -> object:
    """Let one come by itself."""
    landing = await Landing.open(root, entry, f"t-{entry.version}", entry.path)
    try:
        await landing.write(content(entry.version))
        return await arrivals(inventory).land(landing)
    except TransportError as error:
        return error
    finally:
        await landing.abort()


async def together(root: Path, inventory: Inventory, *entries: DataEntry) -> Sequence[object]:
    """Let several come as a group."""
    group = Group(root, [Wanted(entry, entry.path) for entry in entries])
    for number, entry in enumerate(entries):
        group.put([(number, content(entry.version))])
    await arrivals(inventory).land_all(group)
    group.close()
    return group.outcomes


async def in_a_group(root: Path, inventory: Inventory, entry: DataEntry) -> object:
    """Let one come as a group."""
    return (await together(root, inventory, entry))[0]


def arrivals(inventory: Inventory) -> Arrivals:
    """One of several that share an inventory, as what is fetched and what is pushed do."""
    return Arrivals("train-1", inventory, PathRules())


WAYS = [alone, in_a_group]


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
async def test_p5_who_is_about_to_name_one_is_not_overtaken(
    tmp_path: Path,
    inventory: Asked,
    monkeypatch: pytest.MonkeyPatch,
    first: object,
    second: object,
) -> None:
    """A later version that is ready then gets its name afterwards, by whichever way both come."""
    owner, method = (Landing, "_publish") if first is alone else (Group, "commit")
    held = Held(monkeypatch, owner, method, lambda _: True)
    older = asyncio.create_task(first(tmp_path, inventory, OLDER))  # type: ignore[operator]
    await held.reached()
    newer = asyncio.create_task(second(tmp_path, inventory, NEWER))  # type: ignore[operator]
    async with asyncio.timeout(PATIENCE_S):
        await inventory.asked.acquire()
        await inventory.asked.acquire()
    assert inventory.asked.locked() and not newer.done()
    held.let_go()
    assert isinstance(await older, Landed)
    assert isinstance(await newer, Landed)
    assert (tmp_path / NEWER.path).read_bytes() == content(9)
    assert await inventory.arrived([NEWER.path]) == [NEWER]


async def test_p5_who_is_let_in_is_expected_only_if_nothing_later_comes_meanwhile(
    tmp_path: Path, inventory: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be expected in its place would be taken for it after a crash."""
    held = Held(monkeypatch, Landing, "_publish", lambda _: True)
    newer = asyncio.create_task(alone(tmp_path, inventory, NEWER))
    await held.reached()
    older = asyncio.create_task(arrivals(inventory).ready(OLDER))
    async with asyncio.timeout(PATIENCE_S):
        await inventory.asked.acquire()
        await inventory.asked.acquire()
    held.let_go()
    assert isinstance(await newer, Landed)
    with pytest.raises(Superseded):
        await older


@pytest.mark.parametrize("goes", ["remove", "set_aside"])
async def test_what_lands_where_an_older_one_just_went_stays_known(
    tmp_path: Path, inventory: Asked, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """The older one was deleted, or had rotted, and that it went is noted only after the other
    came.
    """
    await alone(tmp_path, inventory, OLDER)
    gone, goes_on = threading.Event(), threading.Event()
    original = getattr(of_files, goes)

    def went(*arguments: Any, **more: Any) -> Any:
        done = original(*arguments, **more)
        gone.set()
        goes_on.wait(PATIENCE_S)
        return done

    monkeypatch.setattr(of_files, goes, went)
    if goes == "set_aside":
        rot(tmp_path / OLDER.path)
        going = asyncio.create_task(inventory.scrub(OLDER.path))
    else:
        going = asyncio.create_task(inventory.remove(OLDER.path, OLDER.checksum))
    await asyncio.to_thread(gone.wait, PATIENCE_S)
    assert not (tmp_path / OLDER.path).exists()
    assert isinstance(await alone(tmp_path, inventory, NEWER), Landed)
    goes_on.set()
    assert await going
    assert await inventory.arrived([NEWER.path]) == [NEWER]


def rot(file: Path) -> None:
    """Change a byte as a disk does: neither size nor time nor inode tell."""
    stat = file.stat()
    with file.open("r+b") as open_file:
        open_file.write(b"V")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


OLD_MODEL, NEW_MODEL = (entry_of("models/x.onnx", version) for version in (7, 9))


async def test_p4_what_the_node_has_written_itself_stays_unless_what_comes_is_later(
    tmp_path: Path, inventory: Asked
) -> None:
    """Of a path that many may write: by where both were said. What is not said yet is later."""
    arrivals = Arrivals("train-1", inventory, PathRules())
    own = tmp_path / OLD_MODEL.path
    own.parent.mkdir()
    own.write_bytes(b"of our own")
    said = (await inventory.scan()).changed
    with pytest.raises(Overtaken, match="yet to be told"):
        await arrivals.there(NEW_MODEL)
    await inventory.reported(said, sequence=8)
    with pytest.raises(Superseded, match=r"own at 8, .* newer than 7"):
        await arrivals.there(OLD_MODEL)
    assert await arrivals.there(NEW_MODEL) is None
    # Said again, it is no newer for that.
    await inventory.reported(said, sequence=30)
    assert await arrivals.there(NEW_MODEL) is None
    own.write_bytes(b"written anew")
    with pytest.raises(Overtaken):
        await arrivals.there(NEW_MODEL)
    await inventory.reported((await inventory.scan()).changed, sequence=12)
    with pytest.raises(Superseded):
        await arrivals.there(NEW_MODEL)
    await inventory.close()
    anew = Asked(tmp_path)
    with pytest.raises(Superseded):
        await Arrivals("train-1", anew, PathRules()).there(NEW_MODEL)
    # In another log that is true no more.
    await anew.forget_where()
    assert await Arrivals("train-1", anew, PathRules()).there(NEW_MODEL) is None
    await anew.close()


async def test_what_can_not_be_read_here_is_replaced(tmp_path: Path, inventory: Asked) -> None:
    """What somebody left half written under a shared name keeps no model out, nor what nobody has
    looked at.
    """
    entry, arrivals = entry_of("models/canonical_x.db", 9), Arrivals("t", inventory, PathRules())
    file = tmp_path / entry.path
    file.parent.mkdir()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE t (n)")
    db.close()
    assert await arrivals.there(entry) is None
    assert (await inventory.scan()).changed
    with pytest.raises(Overtaken):
        await arrivals.there(entry)
    file.write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(Overtaken):
        await arrivals.there(entry)
    assert (await inventory.scan()).problems
    assert await arrivals.there(entry) is None


async def test_p4_what_was_received_and_then_written_here_is_the_nodes_own(
    tmp_path: Path, inventory: Asked
) -> None:
    """A trainer writes its new model over the one it was sent."""
    assert isinstance(await alone(tmp_path, inventory, OLD_MODEL), Landed)
    assert await Arrivals("train-1", inventory, PathRules()).there(NEW_MODEL) is None
    (tmp_path / OLD_MODEL.path).write_bytes(b"a new model")
    outcome = await alone(tmp_path, inventory, NEW_MODEL)
    assert isinstance(outcome, Overtaken)
    assert (tmp_path / OLD_MODEL.path).read_bytes() == b"a new model"


async def test_groups_that_want_the_same_paths_in_another_order_both_come(
    tmp_path: Path, inventory: Asked
) -> None:
    """Each would have what the other waits for: all take their turns in one order."""
    paths = ["models/a.bin", "models/b.bin", "models/c.bin"]
    older = [entry_of(path, 7) for path in paths]
    newer = [entry_of(path, 9) for path in reversed(paths)]
    async with asyncio.timeout(PATIENCE_S):
        async with inventory.alone(["models/b.bin"]):
            both = asyncio.gather(
                together(tmp_path, inventory, *older), together(tmp_path, inventory, *newer)
            )
            for _ in range(3):
                await inventory.asked.acquire()
        outcomes = await both
    assert all(isinstance(one, Landed | Superseded) for some in outcomes for one in some)
    assert {(tmp_path / path).read_bytes() for path in paths} == {content(9)}


async def test_a_turn_is_at_one_name_and_is_forgotten_when_nobody_wants_it() -> None:
    """Others don't wait for it; who gives up waiting leaves nothing, also not to who comes next."""
    turns, order = Turns(), list[str]()

    async def take(name: str) -> None:
        async with turns.at([name]):
            order.append(name)

    async with asyncio.timeout(PATIENCE_S):
        async with turns.at(["x", "x"]):
            await take("y")
            gives_up, stays = (asyncio.create_task(take("x")) for _ in range(2))
            await asyncio.sleep(0)
            gives_up.cancel()
            await asyncio.wait([gives_up])
            assert (len(turns), order) == (1, ["y"])
        await stays
    assert (len(turns), order) == (0, ["y", "x"])


async def test_who_gives_up_half_way_lets_go_of_what_it_had() -> None:
    """It had its turn at one path, and waited for another."""
    turns = Turns()
    async with asyncio.timeout(PATIENCE_S):
        async with turns.at(["b"]):
            gives_up = asyncio.create_task(turns.at(["a", "b"]).__aenter__())
            await asyncio.sleep(0)
            gives_up.cancel()
            await asyncio.wait([gives_up])
            async with turns.at(["a"]):
                pass
        async with turns.at(["a", "b"]):
            pass
