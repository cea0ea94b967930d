"""Deleting a replica: only what was just recognised, and nothing half."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.files import removal, sqlite
from adapters.files.inventory import Inventory
from adapters.files.removal import Kept, put_back
from dataplane.demo.gamedb import count_games
from streams.values import DataEntry
from tests.disks import mounted
from tests.unit.test_inventory import NODE, play, put, settle, told
from tests.unit.test_sqlite import written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data root."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
async def inventory(root: Path) -> AsyncIterator[Inventory]:
    """What the node holds."""
    one = Inventory(root, NODE)
    yield one
    await one.close()


def age(*files: Path) -> None:
    """Make files look as if nobody had touched them for an hour."""
    for file in files:
        for path in (file, file.with_name(file.name + "-wal")):
            if path.exists():
                os.utime(path, (time.time() - 3600, time.time() - 3600))


async def only(inventory: Inventory) -> DataEntry:
    """The one entry that is there."""
    [entry] = (await told(inventory)).changed
    return entry


async def test_a_database_goes_with_all_that_stands_beside_it(
    inventory: Inventory, root: Path
) -> None:
    """And is then told as gone by no scan, once that was said."""
    file = root / "games/hex8_2p.db"
    play(file, 12)
    (root / "games/hex8_2p.db-shm").touch()
    age(file)
    entry = await only(inventory)
    size = file.stat().st_size
    assert await inventory.remove(entry.path, entry.checksum) >= size
    assert not list((root / "games").iterdir())
    assert not list((root / ".dataplane/trash").iterdir())
    assert (await inventory.scan()).removed == (entry.path,)
    await inventory.reported((), [entry.path])
    assert (await inventory.scan()).removed == ()
    assert await inventory.remove(entry.path, entry.checksum) == 0, "asked again, it is gone"


async def test_a_file_in_use_stays(inventory: Inventory, root: Path) -> None:
    """K17, P7: one that was changed a moment ago, or that somebody says he writes."""
    file = root / "games/hex8_2p.db"
    play(file, 12)
    settle(file)
    entry = await only(inventory)
    with pytest.raises(Kept, match="in use"):
        await inventory.remove(entry.path, entry.checksum)
    age(file)
    entry = await only(inventory) if (await inventory.scan()).changed else entry
    put(file.with_name(file.name + ".writing"), b"")
    with pytest.raises(Kept, match="being written"):
        await inventory.remove(entry.path, entry.checksum)
    assert file.exists()


async def test_a_file_that_is_not_what_was_read_stays(inventory: Inventory, root: Path) -> None:
    """P22: same size, other content; and a content that nobody meant."""
    file = put(root / "models/x.pth", b"\x80model")
    age(file)
    entry = await only(inventory)
    with pytest.raises(Kept, match="is not sha256"):
        await inventory.remove(entry.path, "sha256:" + "0" * 64)
    put(file, b"\x80other")
    os.utime(file, (time.time() - 3000, time.time() - 3000))
    with pytest.raises(Kept, match="no longer what it was"):
        await inventory.remove(entry.path, entry.checksum)
    assert file.read_bytes() == b"\x80other"


async def test_a_file_of_the_longest_name_goes(inventory: Inventory, root: Path) -> None:
    """Nothing can stand beside it that says it is in use."""
    file = put(root / "models" / ("n" * 251 + ".pth"), b"\x80model")
    os.utime(file, (time.time() - 3600, time.time() - 3600))
    entry = await only(inventory)
    assert await inventory.remove(entry.path, entry.checksum) == 6
    assert not file.exists()


@pytest.fixture
def disk_within(root: Path) -> Iterator[Path]:
    """A disk of its own that is mounted within the data root."""
    with mounted(root / "models", 8) as place:
        yield place


async def test_a_file_on_a_disk_within_the_data_root_goes(
    inventory: Inventory, root: Path, disk_within: Path
) -> None:
    """It is moved aside there: no file can be moved from one disk to another."""
    age(put(disk_within / "x.pth", b"\x80model"))
    entry = await only(inventory)
    assert await inventory.remove(entry.path, entry.checksum) == 6
    assert [path.name for path in (root / "models").iterdir()] == [".dataplane"]
    assert (await inventory.scan()).removed == (entry.path,)


async def test_a_file_on_a_disk_that_can_not_be_written_stays(
    inventory: Inventory, disk_within: Path
) -> None:
    """With a reason, as whatever stays, and with nothing of it anywhere else."""
    age(put(disk_within / "x.pth", b"\x80model"))
    (disk_within / ".dataplane/trash").mkdir(parents=True)
    entry = await only(inventory)
    remount(disk_within, "ro")
    with pytest.raises(Kept, match="Read-only"):
        await inventory.remove(entry.path, entry.checksum)
    remount(disk_within, "rw")
    assert list((disk_within / ".dataplane/trash").iterdir()) == []
    assert await inventory.remove(entry.path, entry.checksum) == 6


def remount(disk: Path, how: str) -> None:
    """Let a disk be read only, or written again."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


async def test_what_was_moved_aside_on_a_disk_within_comes_back(
    root: Path, disk_within: Path
) -> None:
    """Wherever it is aside, who was killed there puts it back."""
    put(disk_within / ".dataplane/trash/one/models/x.pth", b"\x80model")
    put_back(root)
    assert (disk_within / "x.pth").read_bytes() == b"\x80model"
    assert not list((disk_within / ".dataplane/trash").iterdir())


def test_what_another_agent_has_aside_is_its_own(root: Path, disk_within: Path) -> None:
    """Its data root may lie within this one, on a disk of its own or not."""
    for place in (root / "games", disk_within):
        put(place / ".dataplane/trash/one/x.pth", b"\x80model")
    put(disk_within / ".dataplane/lock", b"process 1")
    put_back(root)
    assert not (root / "x.pth").exists()
    for place in (root / "games", disk_within):
        assert (place / ".dataplane/trash/one/x.pth").exists()


async def test_a_file_that_changes_at_the_last_moment_comes_back(
    inventory: Inventory, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at once more when nobody can find it under its name any more."""
    file = put(root / "models/x.pth", b"\x80model")
    age(file)
    entry = await only(inventory)
    move = removal._move

    def write_into_it(root: Path, aside: Path, local: str) -> None:
        move(root, aside, local)
        with (aside / local).open("ab") as open_still:
            open_still.write(b" and more")

    monkeypatch.setattr(removal, "_move", write_into_it)
    with pytest.raises(Kept, match="last moment"):
        await inventory.remove(entry.path, entry.checksum)
    assert file.read_bytes() == b"\x80model and more"


def test_what_a_killed_process_had_moved_aside_comes_back(root: Path) -> None:
    """What it had recognised and was deleting goes; a name that is taken is left alone."""
    trash = root / ".dataplane/trash"
    put(trash / "one/games/a.db", b"a")
    put(trash / "one/games/a.db-wal", b"w")
    put(trash / "two.doomed/games/b.db", b"b")
    put(trash / "three/games/c.db", b"old")
    put(root / "games/c.db", b"new")
    put_back(root)
    assert (root / "games/a.db").read_bytes() == b"a"
    assert (root / "games/a.db-wal").read_bytes() == b"w"
    assert not (root / "games/b.db").exists()
    assert (root / "games/c.db").read_bytes() == b"new"
    assert [path.name for path in trash.iterdir()] == ["three"]


def test_journal_never_comes_back_beside_another_database(root: Path) -> None:
    """SQLite would play it into the new one, which it knows nothing of."""
    trash = root / ".dataplane/trash"
    for suffix in ("", "-wal", "-journal"):
        put(trash / f"one/games/a.db{suffix}", b"old")
    put(root / "games/a.db", b"new")
    put_back(root)
    assert [file.name for file in (root / "games").iterdir()] == ["a.db"]
    assert (root / "games/a.db").read_bytes() == b"new"
    assert len(list((trash / "one/games").iterdir())) == 3, "nothing of it is lost"


def test_database_does_not_come_back_to_the_journal_of_another(root: Path) -> None:
    """All of it comes back, or nothing."""
    trash = root / ".dataplane/trash"
    for suffix in ("", "-journal", "-wal"):
        put(trash / f"one/games/a.db{suffix}", b"old")
    put(root / "games/a.db-wal", b"new")
    put_back(root)
    assert [file.name for file in (root / "games").iterdir()] == ["a.db-wal"]
    assert len(list((trash / "one/games").iterdir())) == 3


def test_putting_back_goes_on_where_it_was_killed(root: Path) -> None:
    """A file that has its name again has all; before that, what has its name already is kept."""
    trash = root / ".dataplane/trash"
    for name in ("one/games/a.db", "one/games/a.db-wal", "two/games/b.db", "two/games/b.db-wal"):
        put(trash / name, b"old")
    (root / "games").mkdir()
    os.link(trash / "one/games/a.db-wal", root / "games/a.db-wal")
    # All of b was back, and its writer has already done with its journal.
    os.link(trash / "two/games/b.db", root / "games/b.db")
    put_back(root)
    names = sorted(file.name for file in (root / "games").iterdir())
    assert names == ["a.db", "a.db-wal", "b.db"]
    assert not list(trash.iterdir())


class Killed(BaseException):
    """What a kill -9 is to the code it hits."""


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("begun_anew", [False, True], ids=["left alone", "begun anew"])
def test_killed_while_it_moves_a_database_aside_it_loses_no_journal(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: int, begun_anew: bool
) -> None:
    """What is committed is in the journal alone: all of it is in one place whenever it was killed,
    also if somebody begins a new database under its name, for which SQLite clears old journals.
    """
    file = written(root / "a.db", "WAL", 3, killed=True)
    sqlite.snapshot(file, root / "before.db")
    committed = count_games(root / "before.db")
    assert sqlite.side_file(file, "-wal").stat().st_size
    aside = root / ".dataplane/trash/one"
    aside.mkdir(parents=True)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        killed_at(step, patched)
        removal._move(root, aside, "a.db")
        raise Killed
    begun_anew = begun_anew and not file.exists()
    if begun_anew:
        play(file, 1)
    put_back(root)
    there = aside / "a.db" if begun_anew else file
    sqlite.snapshot(there, root / "seen.db")
    assert count_games(root / "seen.db") == committed
    assert there is not file or not list((root / ".dataplane/trash").iterdir())


def killed_at(step: int, patched: pytest.MonkeyPatch) -> None:
    """The process dies at a call that changes the disk, after so many."""
    calls = itertools.count()

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def die(*arguments: Any, **named: Any) -> Any:
            if next(calls) >= step:
                raise Killed
            return call(*arguments, **named)

        return die

    patched.setattr(os, "link", dying(os.link))
    for name in ("rename", "unlink"):
        patched.setattr(Path, name, dying(getattr(Path, name)))
