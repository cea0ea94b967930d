"""What a node says it holds: all of it, in order, once, and nothing that is not so."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from adapters.files import checks, sqlite
from adapters.files.digest import Stopped
from adapters.files.index import Index
from adapters.files.inventory import Inventory, Scan
from adapters.files.landing import Landing
from adapters.files.walk import not_mounted, walk
from streams.values import DataEntry, DataType
from tests.damaged import unreadable_archive
from tests.disks import mounted
from tests.turns import turns_during

NODE = "gpu-7"
Make = Callable[..., Inventory]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes inventories of one root, one process's life each; all are closed in the end."""
    made: list[Inventory] = []

    def make_one(node: str = NODE, **options: float | Callable[[], float]) -> Inventory:
        made.append(Inventory(tmp_path / "root", node, **options))  # type: ignore[arg-type]
        return made[-1]

    (tmp_path / "root").mkdir()
    yield make_one
    for one in made:
        await one.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The data root."""
    return tmp_path / "root"


def put(path: Path, data: bytes) -> Path:
    """Write a file, with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def play(path: Path, games: int, table: str = "games") -> None:
    """Add games to a live database, in WAL mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} (moves TEXT)")
        db.executemany(f"INSERT INTO {table} VALUES (?)", [(os.urandom(100).hex(),)] * games)


def settle(*paths: Path) -> None:
    """Make files look as if nobody had touched them for a minute."""
    for path in paths:
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 60_000_000_000))


def sha(data: bytes) -> str:
    """The checksum of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def received(data: bytes, path: str, version: int = 1) -> DataEntry:
    """An entry as an assignment gives it."""
    return DataEntry(
        path=path,
        data_type=DataType.GAMES,
        config_key="hex8_2p",
        size_bytes=len(data),
        checksum=sha(data),
        version=version,
    )


def swap_for_an_empty_directory(root: Path) -> None:
    """What a disk looks like that is no longer mounted."""
    root.rename(root.with_name("elsewhere"))
    root.mkdir()


async def told(inventory: Inventory) -> Scan:
    """What a scan finds, which is then marked as reported."""
    found = await inventory.scan()
    await inventory.reported(found.changed, found.removed)
    return found


def paths(found: Scan) -> list[str]:
    """The logical paths of what changed, in order."""
    return sorted(entry.path for entry in found.changed)


async def test_everything_is_found_with_its_name_and_counts(make: Make, root: Path) -> None:
    """Owned paths carry the node, shared ones don't; counts are read from the files."""
    play(root / "games/hex8_2p.db", 12)
    play(root / "meta.db", 3, table="players")
    put(root / "games/square8_3p.jsonl", b"{}\n{}\n")
    put(root / "models/canonical_hex8_2p.pth", b"\x80model")
    put(root / "a/b/c/d/hex8_2p_checkpoints/checkpoints/hexagonal_4p.pt", b"\x80state")
    found = await make().scan()
    by_path = {entry.path: entry for entry in found.changed}
    games = by_path["games/gpu-7/hex8_2p.db"]
    assert (games.data_type, games.config_key, games.games) == (DataType.GAMES, "hex8_2p", 12)
    meta = by_path["gpu-7/meta.db"]
    assert (meta.data_type, meta.config_key, meta.games) == (DataType.METADATA, "all", None)
    assert by_path["games/gpu-7/square8_3p.jsonl"].games == 2
    assert by_path["models/canonical_hex8_2p.pth"].data_type is DataType.MODELS
    deep = by_path["a/b/c/d/hex8_2p_checkpoints/checkpoints/hexagonal_4p.pt"]
    assert (deep.data_type, deep.config_key) == (DataType.CHECKPOINT, "hexagonal_4p")
    assert not found.problems
    assert not found.waiting


async def test_what_was_reported_is_not_said_again(make: Make, root: Path) -> None:
    """Nor after a restart; and nothing is read again."""
    play(root / "games/hex8_2p.db", 12)
    settle(put(root / "models/canonical_x.pth", b"\x80model"), root / "games/hex8_2p.db")
    first = make()
    assert len((await told(first)).changed) == 2
    assert (await first.scan()).changed == ()
    await first.close()
    (root / "models/canonical_x.pth").chmod(0o000)
    assert (await make().scan()).changed == ()


async def test_what_was_not_reported_is_said_again(make: Make, root: Path) -> None:
    """A crash between publishing and marking publishes again, and loses nothing."""
    put(root / "models/canonical_x.pth", b"\x80one")
    first = make()
    said = (await first.scan()).changed
    assert (await first.scan()).changed == said
    await first.close()
    second = make()
    assert (await second.scan()).changed == said
    await second.reported(said)
    put(root / "models/canonical_x.pth", b"\x80two")
    newer = (await second.scan()).changed
    await second.reported(said)
    assert (await second.scan()).changed == newer != said


async def test_p22_same_size_is_not_same_content(make: Make, root: Path) -> None:
    """Other bytes of the same number are noticed, even if someone puts the old time back."""
    path = put(root / "models/canonical_x.pth", b"\x80one")
    settle(path)
    inventory = make()
    await told(inventory)
    before = path.stat()
    path.write_bytes(b"\x80two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (entry,) = (await inventory.scan()).changed
    assert entry.checksum == sha(b"\x80two")


async def test_a_game_written_to_the_wal_only_is_noticed(make: Make, root: Path) -> None:
    """A database changes in its ``-wal`` long before its own size or time do."""
    path, wal = root / "games/hex8_2p.db", root / "games/hex8_2p.db-wal"
    play(path, 5)
    inventory = make()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        for games in (6, 7, 8):
            before = path.stat()
            with db:
                db.execute("INSERT INTO games VALUES ('m')")
            assert path.stat() == before
            (entry,) = (await told(inventory)).changed
            assert entry.games == games
            settle(path, wal)
            assert (await told(inventory)).changed == ()


async def test_a_file_that_changes_while_it_is_read_waits(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No digest is announced that no version of the file ever had."""
    path = put(root / "models/canonical_x.pth", b"\x80one")

    def meanwhile(read: Path, *_: object) -> str:
        assert read == path
        put(path, b"\x80other")
        return sha(b"\x80oher")

    monkeypatch.setattr("adapters.files.reading.checksum_of", meanwhile)
    inventory = make()
    found = await inventory.scan()
    assert found.changed == ()
    assert found.waiting == ("models/canonical_x.pth changes while it is read",)
    monkeypatch.undo()
    (entry,) = (await inventory.scan()).changed
    assert entry.checksum == sha(b"\x80other")


async def test_p20_a_file_that_becomes_a_pipe_is_not_waited_for(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who opened it would wait for its other end, and all other files with it."""
    file = put(root / "models/canonical_x.pth", b"\x80one")
    put(root / "models/canonical_y.pth", b"\x80two")

    def replaced(*args: object) -> object:
        seen = walk(*args)  # type: ignore[arg-type]
        file.unlink()
        os.mkfifo(file)
        return seen

    monkeypatch.setattr("adapters.files.inventory.walk", replaced)
    scanning = asyncio.create_task(make().scan())
    await asyncio.wait([scanning], timeout=30)
    if not scanning.done():
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
    assert paths(await scanning) == ["models/canonical_y.pth"]


async def test_p7_a_database_is_served_as_an_unchanging_snapshot(make: Make, root: Path) -> None:
    """While the original goes on, what was reported can be fetched byte for byte."""
    path = root / "games/hex8_2p.db"
    play(path, 5)
    inventory = make()
    (entry,) = (await told(inventory)).changed
    located = inventory.locate(entry.checksum)
    assert located is not None
    assert located != path
    play(path, 5)
    (newer,) = (await told(inventory)).changed
    assert newer.checksum != entry.checksum
    for one, games in ((entry, 5), (newer, 10)):
        located = inventory.locate(one.checksum)
        assert located is not None
        assert sha(located.read_bytes()) == one.checksum
        assert located.stat().st_size == one.size_bytes
        assert sqlite.count_games(located) == games == one.games


async def test_databases_of_one_content_share_a_snapshot_and_both_are_served(
    make: Make, root: Path
) -> None:
    """Whichever is read or said last, also after a restart: such as those with no games yet."""
    play(root / "games" / "hex8_2p.db", 3)
    settle(root / "games" / "hex8_2p.db")
    first = make()
    (entry,) = (await first.scan()).changed
    shutil.copy(root / "games" / "hex8_2p.db", root / "games" / "square8_2p.db")
    settle(root / "games" / "square8_2p.db")
    found = await first.scan()
    assert {one.checksum for one in found.changed} == {entry.checksum}
    await first.reported([entry])
    assert first.locate(entry.checksum) is not None
    await first.close()
    again = make()
    await told(again)
    assert again.locate(entry.checksum) is not None


async def test_a_snapshot_that_was_taken_away_is_made_again(make: Make, root: Path) -> None:
    """By who starts next: what it holds could not be had any more."""
    play(root / "games" / "hex8_2p.db", 3)
    settle(root / "games" / "hex8_2p.db")
    first = make()
    (entry,) = (await told(first)).changed
    await first.close()
    shutil.rmtree(root / ".dataplane" / "snapshots")
    again = make()
    await told(again)
    assert again.locate(entry.checksum) is not None


async def test_a_clock_that_was_set_back_keeps_no_database_from_being_read(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its last reading lies ahead says nothing of how long it may rest, also after a restart:
    a machine may have begun in a wrong year.
    """
    monkeypatch.setattr("adapters.files.inventory._LONG_READ_S", -1.0)
    play(root / "games/hex8_2p.db", 3)
    await told(make())
    play(root / "games/hex8_2p.db", 4)
    back = make(clock=lambda: time.time() - 86_400)
    assert [entry.games for entry in (await back.scan()).changed] == [7]


async def test_old_snapshots_go_after_a_while_and_the_newest_never(make: Make, root: Path) -> None:
    """Not before something newer was reported, and not while they are fetched."""
    now = time.time()
    inventory = make(clock=lambda: now, keep_snapshots_s=900)
    entries = []
    for _ in range(3):
        play(root / "games/hex8_2p.db", 5)
        entries += (await told(inventory)).changed
    now += 1000
    play(root / "games/hex8_2p.db", 5)
    unreported = await inventory.scan()
    assert inventory.locate(entries[0].checksum) is not None
    await inventory.reported(unreported.changed)
    await inventory.scan()
    assert inventory.locate(entries[0].checksum) is not None
    assert inventory.locate(entries[1].checksum) is None
    assert inventory.locate(unreported.changed[0].checksum) is not None
    now += 10_000
    await inventory.scan()
    assert inventory.locate(unreported.changed[0].checksum) is not None


async def test_a_busy_database_does_not_fill_the_disk_with_snapshots(
    make: Make, root: Path
) -> None:
    """Of many within a moment only a few of the old ones stay."""
    inventory = make()
    for _ in range(12):
        play(root / "games/hex8_2p.db", 1)
        await told(inventory)
    await inventory.scan()
    assert len(list((root / ".dataplane/snapshots").iterdir())) <= 6


async def test_a_plain_file_is_located_only_as_long_as_it_is_unchanged(
    make: Make, root: Path
) -> None:
    """The moment it is touched it is no longer offered under its old digest."""
    path = put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    (entry,) = (await inventory.scan()).changed
    assert inventory.locate(entry.checksum) == path
    put(path, b"\x80two")
    settle(path)
    assert inventory.locate(entry.checksum) is None
    assert inventory.locate("sha256:" + "0" * 64) is None


async def test_what_is_gone_is_told_until_it_was_reported(make: Make, root: Path) -> None:
    """Deleted files that were reported are removed ones; those nobody heard of are nothing."""
    path = put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    await told(inventory)
    put(root / "models/canonical_y.pth", b"\x80never reported")
    await inventory.scan()
    path.unlink()
    (root / "models/canonical_y.pth").unlink()
    assert (await inventory.scan()).removed == ("models/canonical_x.pth",)
    await inventory.close()
    again = make()
    assert (await told(again)).removed == ("models/canonical_x.pth",)
    assert (await again.scan()).removed == ()
    put(path, b"\x80one")
    assert paths(await again.scan()) == ["models/canonical_x.pth"]


async def test_a_file_that_came_back_unchanged_is_no_news(make: Make, root: Path) -> None:
    """If nobody was told that it was gone, nobody needs to hear that it is here."""
    path = put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    await told(inventory)
    path.unlink()
    assert (await inventory.scan()).removed
    put(path, b"\x80one")
    assert await inventory.scan() == Scan()


async def test_p17_nothing_is_lost_because_it_could_not_be_looked_at(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be read is a problem, and its files are not said to be gone."""
    put(root / "games/deep/hex8_2p.jsonl", b"{}\n")
    inventory = make()
    await told(inventory)
    scandir = os.scandir

    def failing(path: Path) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("adapters.files.walk.os.scandir", failing)
    found = await inventory.scan()
    assert found.removed == ()
    assert found.problems == ("games/deep cannot be read: Permission denied",)
    monkeypatch.undo()
    assert await inventory.scan() == Scan()


async def test_p17_a_root_whose_disk_is_gone_holds_no_news(make: Make, root: Path) -> None:
    """An empty mount point is not an empty data root."""
    put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    await told(inventory)
    swap_for_an_empty_directory(root)
    found = await inventory.scan()
    assert found.removed == ()
    assert "mounted" in found.problems[0]


async def test_p17_a_root_whose_disk_goes_while_it_is_walked_holds_no_news(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not there any more was not looked at."""
    put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    await told(inventory)

    def unmounted(*args: object) -> object:
        swap_for_an_empty_directory(root)
        return walk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("adapters.files.inventory.walk", unmounted)
    found = await inventory.scan()
    assert found.removed == ()
    assert "mounted" in found.problems[0]


def unmount(place: Path) -> None:
    """Take a disk away, whoever is at it."""
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def within(root: Path) -> Iterator[Path]:
    """A disk that is mounted within the data root."""
    with mounted(root / "games", 8) as place:
        yield place


async def test_p17_of_a_disk_within_that_is_gone_there_is_no_news(
    make: Make, root: Path, within: Path
) -> None:
    """Its mount point is no empty directory, also for who begins anew, and nothing that belongs on
    it may appear there. Who means it removes the mount point.
    """
    put(within / "hex8_2p.jsonl", b"{}\n")
    put(root / "models/canonical_x.pth", b"\x80one")
    inventory = make()
    await told(inventory)
    unmount(within)
    put(within / "square8_2p.jsonl", b"{}\n")
    for unmounted in (inventory, make()):
        found = await unmounted.scan()
        assert (found.changed, found.removed) == ((), ())
        assert found.problems == (not_mounted("games"),)
        assert unmounted.counts().missing == found.problems[0]
        with pytest.raises(OSError, match="is it mounted"):
            await unmounted.expect({"games/gpu-1/x.jsonl": received(b"", "games/gpu-1/x.jsonl")})
        await unmounted.expect({"models/x.pth": received(b"", "models/x.pth")})
        await unmounted.close()
    shutil.rmtree(within)
    found = await (again := make()).scan()
    assert found.removed == ("games/gpu-7/hex8_2p.jsonl",)
    assert again.counts().missing == ""


async def test_p17_nothing_appears_where_the_root_was(make: Make, root: Path) -> None:
    """It would fill another disk, and be gone once the right one is there again."""
    inventory = make()
    await inventory.scan()
    swap_for_an_empty_directory(root)
    with pytest.raises(OSError, match="is its disk mounted"):
        await inventory.expect({"models/x.pth": received(b"", "models/x.pth")})


async def test_p17_symlinked_models_are_found_and_files_of_unknown_kinds_counted(
    make: Make, root: Path
) -> None:
    """Links within the root are followed; what has no word is not lost silently."""
    put(root / "models/versions/v3.pth", b"\x80model")
    (root / "models/hex8_2p_best.pth").symlink_to("versions/v3.pth")
    (root / "models/latest").symlink_to("versions")
    put(root / "models/notes.xyz", b"?")
    inventory = make()
    found = await inventory.scan()
    assert paths(found) == ["models/hex8_2p_best.pth", "models/versions/v3.pth"]
    assert not found.problems
    assert inventory.counts().unknown == {".xyz": 1}


async def test_p19_a_symlink_that_leads_out_is_a_problem_and_never_read(
    make: Make, root: Path, tmp_path: Path
) -> None:
    """Neither a file nor a directory outside of the root is announced or served."""
    secret = put(tmp_path / "outside/secret.pth", b"\x80secret")
    put(root / "models/canonical_x.pth", b"\x80model")
    (root / "models/leak.pth").symlink_to(secret)
    (root / "leak").symlink_to(secret.parent)
    (root / "models/nothing.pth").symlink_to("nowhere.pth")
    inventory = make()
    found = await inventory.scan()
    assert paths(found) == ["models/canonical_x.pth"]
    assert sorted(found.problems) == [
        "leak is a symlink that leads out of the data root",
        "models/leak.pth is a symlink that leads out of the data root",
        "models/nothing.pth is a symlink to nothing",
    ]
    assert inventory.locate(sha(b"\x80secret")) is None


async def test_k17_a_file_marked_as_being_written_waits(make: Make, root: Path) -> None:
    """Until the marker is gone, or so old that its writer must be dead; one of a wrong clock, which
    would never be, is none.
    """
    put(root / "npz/hex8_2p.jsonl", b"{}")
    marker = put(root / "npz/hex8_2p.jsonl.writing", b"")
    inventory = make()
    found = await inventory.scan()
    assert found.changed == ()
    assert found.waiting == ("npz/hex8_2p.jsonl is being written",)
    assert await inventory.held() == []
    for wrong in (-301, 3600):
        os.utime(marker, (time.time() + wrong, time.time() + wrong))
        assert len((await inventory.scan()).changed) == 1
        os.utime(marker)
        assert (await inventory.scan()).changed == ()


async def test_temporary_and_hidden_files_are_no_data(make: Make, root: Path) -> None:
    """Nothing unfinished is announced."""
    for name in (".hidden.pth", "x.pth.tmp", "x.db-wal", "x.db-shm", "x.npz.partial", "y.pth~"):
        put(root / "models" / name, b"\x80")
    put(root / ".cache/x.pth", b"\x80")
    put(root / "lost+found/x.pth", b"\x80")
    assert (await make().scan()).changed == ()


async def test_a_busy_database_waits_and_a_false_one_is_a_problem(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked is not damaged; and damage is told in every scan until the file is another."""
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    put(root / "games/broken.db", b"this is no database")
    play(root / "games/hex8_2p.db", 5)
    inventory = make()
    with contextlib.closing(sqlite3.connect(root / "games/hex8_2p.db")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        found = await inventory.scan()
    assert found.changed == ()
    assert len(found.waiting) == 1
    assert found.problems == ("games/broken.db is named like a database and is none",)
    reads: list[Path] = []
    is_sqlite = sqlite.is_sqlite
    monkeypatch.setattr(sqlite, "is_sqlite", lambda path: reads.append(path) or is_sqlite(path))
    assert (await inventory.scan()).problems == found.problems
    assert [path.name for path in reads] == ["hex8_2p.db"]
    play(root / "games/other.db", 1)
    (root / "games/other.db").replace(root / "games/broken.db")
    found = await inventory.scan()
    assert found.problems == ()
    assert len(found.changed) == 2


async def test_a_damaged_file_is_named_and_all_others_are_told(make: Make, root: Path) -> None:
    """What no reader understands is the problem of this file, and nobody else's."""
    put(root / "npz/hex8_2p.npz", unreadable_archive())
    put(root / "games/hex8_2p.jsonl", b"{}\n")
    found = await make().scan()
    assert paths(found) == ["games/gpu-7/hex8_2p.jsonl"]
    [problem] = found.problems
    assert problem.startswith("npz/hex8_2p.npz is no readable archive")


async def test_a_surprise_while_a_file_is_read_is_told_of_this_file(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, until it looks different; whatever the surprise is, the others are told."""
    put(root / "games/hex8_2p.jsonl", b"{}\n")
    put(root / "models/hex8_2p.onnx", b"odd")
    settle(root / "games/hex8_2p.jsonl", root / "models/hex8_2p.onnx")
    look_inside, looked = checks.look_inside, []

    def surprised(path: Path, name: str) -> checks.Inside:
        looked.append(name)
        if path.read_bytes() == b"odd":
            raise KeyError("what nobody thought of")
        return look_inside(path, name)

    monkeypatch.setattr(checks, "look_inside", surprised)
    inventory = make()
    for _ in range(2):
        found = await inventory.scan()
        assert paths(found) == ["games/gpu-7/hex8_2p.jsonl"]
        [problem] = found.problems
        assert problem.startswith("models/hex8_2p.onnx cannot be read: KeyError")
    assert sorted(looked) == ["games/hex8_2p.jsonl", "models/hex8_2p.onnx"]
    put(root / "models/hex8_2p.onnx", b"good")
    found = await inventory.scan()
    assert not found.problems
    assert paths(found) == ["games/gpu-7/hex8_2p.jsonl", "models/hex8_2p.onnx"]


async def test_only_the_configuration_asked_for_is_read(make: Make, root: Path) -> None:
    """Boards are matched whole, and the others are told by the next full scan."""
    for name in ("hex8_2p", "hexagonal_2p", "square8_2p"):
        put(root / f"games/{name}.jsonl", b"{}\n")
    inventory = make()
    assert paths(await inventory.scan("hex8_2p")) == ["games/gpu-7/hex8_2p.jsonl"]
    assert len((await inventory.scan()).changed) == 3


async def landed(inventory: Inventory, root: Path, data: bytes, entry: DataEntry) -> None:
    """Land an entry under its logical path, as the daemon does."""
    landing = await Landing.open(root, entry, "t-1", entry.path)
    await landing.write(data)
    await inventory.expect({entry.path: entry})
    await landing.commit()
    await inventory.landed({entry.path: entry})


async def test_p4_a_received_file_keeps_its_producers_name(make: Make, root: Path) -> None:
    """It is held and served, and never announced as the receiver's own."""
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl", version=42)
    inventory = make("t1")
    await landed(inventory, root, b"{}\n", entry)
    assert await inventory.scan() == Scan()
    assert await inventory.held() == [entry]
    (there,) = await inventory.arrived([entry.path])
    assert there and (there.checksum, there.version) == (entry.checksum, 42)
    assert inventory.locate(entry.checksum) == root / entry.path
    await inventory.close()
    again = make("t1")
    assert await again.scan() == Scan()
    assert await again.held() == [entry]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "killed before that"])
async def test_p4_what_landed_through_a_symlinked_directory_is_no_file_of_our_own(
    make: Make, root: Path, recorded: bool
) -> None:
    """It is here under its name, and neither said to be gone nor to be anything else; once it is
    gone that is said.
    """
    (root / "large").mkdir()
    (root / "games").symlink_to("large")
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl")
    inventory = make()
    await inventory.expect({entry.path: entry})
    settle(put(root / entry.path, b"{}\n"))
    if recorded:
        await inventory.landed({entry.path: entry})
    for one in (inventory, make()):
        assert await one.scan() == Scan()
        assert [here.path for here in await one.held()] == [entry.path]
        await one.close()
    (root / entry.path).unlink()
    assert (await make().scan()).removed == (entry.path,)


async def test_p4_a_crash_between_commit_and_record_makes_nobody_its_owner(
    make: Make, root: Path
) -> None:
    """What was expected and is there is a received file, though nobody recorded it."""
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl", version=42)
    first = make("t1")
    await first.expect({entry.path: entry})
    put(root / entry.path, b"{}\n")
    await first.close()
    again = make("t1")
    assert await again.scan() == Scan()
    (there,) = await again.arrived([entry.path])
    assert there and (there.checksum, there.version) == (entry.checksum, 42)


async def test_p4_a_changed_copy_of_a_producers_file_is_a_problem_and_not_served(
    make: Make, root: Path
) -> None:
    """It is no longer a replica, and not a new file of our own either."""
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl")
    inventory = make("t1")
    await landed(inventory, root, b"{}\n", entry)
    put(root / entry.path, b"[]\n")
    found = await told(inventory)
    assert found.changed == ()
    assert found.removed == (entry.path,)
    assert "is no longer" in found.problems[0]
    assert inventory.locate(entry.checksum) is None
    assert await inventory.held() == []
    again = await inventory.scan()
    assert (again.removed, again.problems) == ((), found.problems)
    await landed(inventory, root, b"{}\n", entry)
    assert await inventory.scan() == Scan()
    assert await inventory.held() == [entry]


async def test_a_deleted_replica_is_removed(make: Make, root: Path) -> None:
    """So that nobody counts on a copy that is not there."""
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl")
    inventory = make("t1")
    await landed(inventory, root, b"{}\n", entry)
    (root / entry.path).unlink()
    assert (await told(inventory)).removed == (entry.path,)
    assert await inventory.arrived([entry.path]) == [None]


async def test_a_shared_file_changed_where_it_was_received_is_news(make: Make, root: Path) -> None:
    """Whoever promotes a model may have received the one before."""
    entry = received(b"\x80one", "models/canonical_hex8_2p.pth", version=7)
    inventory = make("t1")
    await landed(inventory, root, b"\x80one", entry)
    put(root / entry.path, b"\x80two")
    (changed,) = (await told(inventory)).changed
    assert (changed.path, changed.checksum) == (entry.path, sha(b"\x80two"))
    assert await inventory.arrived([entry.path]) == [None]


async def test_a_producer_goes_on_with_its_own_file_that_was_restored_to_it(
    make: Make, root: Path
) -> None:
    """A database that came back to its producer is that producer's to write."""
    play(root / "games/hex8_2p.db", 5)
    data = (root / "games/hex8_2p.db").read_bytes()
    entry = received(data, "games/gpu-7/hex8_2p.db")
    inventory = make()
    await inventory.landed({"games/hex8_2p.db": entry})
    assert (await inventory.scan()).changed == ()
    play(root / "games/hex8_2p.db", 5)
    (changed,) = (await inventory.scan()).changed
    assert (changed.path, changed.games) == ("games/gpu-7/hex8_2p.db", 10)


async def test_p11_what_was_received_is_learned_again_after_the_index_was_lost(
    make: Make, root: Path
) -> None:
    """From the log, by reading the files; what is not as the log says is told."""
    right = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl", version=3)
    wrong = received(b"{}\n", "games/gpu-2/hex8_2p.jsonl", version=4)
    absent = received(b"{}\n", "games/gpu-3/hex8_2p.jsonl", version=5)
    put(root / right.path, b"{}\n")
    put(root / wrong.path, b"[]\n")
    inventory = make("t1")
    assert await inventory.adopt([right, wrong, absent]) == (right,)
    found = await inventory.scan()
    assert found.changed == ()
    assert found.removed == (wrong.path,)
    (there,) = await inventory.arrived([right.path])
    assert there and (there.checksum, there.version) == (right.checksum, 3)


async def test_p4_a_received_file_that_can_not_be_read_is_never_taken_for_ours(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is lost, and where the file lies the disk fails: its producer's name stays."""
    entry = received(b"{}\n", "games/gpu-1/hex8_2p.jsonl", version=3)
    put(root / entry.path, b"{}\n")

    def fails(*_: object) -> str:
        raise OSError(errno.EIO, "the disk is broken")

    inventory = make("t1")
    with monkeypatch.context() as broken:
        broken.setattr("adapters.files.reading.checksum_of", fails)
        assert await inventory.adopt([entry]) == ()
        found = await inventory.scan()
        assert not found.changed
        assert "the disk is broken" in found.problems[0]
    found = await inventory.scan()
    assert found.changed == ()
    assert await inventory.arrived([entry.path]) == [entry]


@pytest.mark.parametrize("damage", [b"", b"no index", b"SQLite format 3\x00" + bytes(8000)])
async def test_a_damaged_index_is_built_anew(make: Make, root: Path, damage: bytes) -> None:
    """Nothing in it is needed: everything is found and told again."""
    put(root / "models/canonical_x.pth", b"\x80one")
    first = make()
    await told(first)
    await first.close()
    for path in (root / ".dataplane").glob("inventory.sqlite*"):
        path.unlink()
    put(root / ".dataplane/inventory.sqlite", damage)
    again = make()
    assert len((await told(again)).changed) == 1
    assert (await again.scan()).changed == ()


async def test_p18_an_index_that_can_not_be_written_ends_nothing_and_is_said(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: scans go on, health is told, and once there is room nothing was forgotten."""
    settle(put(root / "models/canonical_x.pth", b"\x80one"))
    inventory = make()
    await told(inventory)
    settle(put(root / "models/canonical_y.pth", b"\x80two"))
    with monkeypatch.context() as full:
        full.setattr(Index, "change", takes_nothing)
        assert paths(await told(inventory)) == ["models/canonical_y.pth"]
        assert (await inventory.scan()).changed == ()
        assert "disk is full" in inventory.counts().forgetful
        with pytest.raises(OSError, match="disk is full"):
            await inventory.expect({"games/x.db": received(b"games", "games/gpu-1/hex8_2p.db")})
    assert (await inventory.scan()).changed == ()
    assert inventory.counts().forgetful == ""
    await inventory.close()
    assert (await make().scan()).changed == ()


async def test_an_index_that_can_not_be_written_anew_stays_as_it_was(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was remembered before the disk was full is remembered after a restart."""
    settle(put(root / "models/canonical_x.pth", b"\x80one"))
    inventory = make()
    await told(inventory)
    settle(put(root / "models/canonical_y.pth", b"\x80two"))
    with monkeypatch.context() as full:
        full.setattr(Index, "change", takes_nothing)
        await told(inventory)
        await inventory.close()
    assert paths(await make().scan()) == ["models/canonical_y.pth"]


def takes_nothing(*_: object) -> None:
    """What SQLite raises on a full disk."""
    raise sqlite3.OperationalError("database or disk is full")


async def test_an_index_that_is_deleted_while_in_use_is_written_again(
    make: Make, root: Path
) -> None:
    """A running node forgets nothing."""
    put(root / "models/canonical_x.pth", b"\x80one")
    first = make()
    await told(first)
    for path in (root / ".dataplane").glob("inventory.sqlite*"):
        path.unlink()
    assert (await first.scan()).changed == ()
    await first.close()
    assert (await make().scan()).changed == ()


async def test_p20_digesting_large_files_never_holds_up_the_event_loop(
    make: Make, root: Path
) -> None:
    """Two gigabytes (a hole) are read while the loop goes on."""
    os.truncate(put(root / "models/canonical_x.onnx", b""), 2 << 30)
    found, turns = await turns_during(make().scan())
    assert len(found.changed) == 1
    assert turns > 30


async def test_a_cancelled_scan_stops_in_the_middle_of_a_file(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives up does not wait for gigabytes to be read."""
    put(root / "models/canonical_x.onnx", b"x")
    begun, ended = threading.Event(), threading.Event()

    def endless(_: Path, stopped: Callable[[], bool]) -> str:
        begun.set()
        while not stopped():
            time.sleep(0.001)
        ended.set()
        raise Stopped

    monkeypatch.setattr("adapters.files.reading.checksum_of", endless)
    inventory = make()
    scanning = asyncio.create_task(inventory.scan())
    await asyncio.to_thread(begun.wait, 30)
    scanning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(scanning, 30)
    assert ended.is_set()
    monkeypatch.undo()
    assert len((await inventory.scan()).changed) == 1


async def test_many_files_are_scanned_again_without_being_read(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thousand unchanged files cost a look each, not a reading."""
    for number in range(2000):
        settle(put(root / f"games/{number % 20}/g{number}.jsonl", b"{}\n" * number))
    inventory = make()
    assert len((await told(inventory)).changed) == 2000
    reads: list[Path] = []
    monkeypatch.setattr("adapters.files.reading.checksum_of", lambda path, _: reads.append(path))
    assert await inventory.scan() == Scan()
    assert reads == []
    counts = inventory.counts()
    assert (counts.files, counts.bytes) == (2000, 3 * sum(range(2000)))
    assert counts.scan_s < 5


async def test_watching_notices_changes_and_ends_when_told(make: Make, root: Path) -> None:
    """A new game in a live database is noticed at once; what the inventory itself does is not."""
    play(root / "games/hex8_2p.db", 1)
    inventory = make(rescan_s=3600)
    stop, noticed = asyncio.Event(), asyncio.Queue[None]()

    async def watch() -> None:
        async for _ in inventory.watch(stop):
            noticed.put_nowait(None)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(30):
        while noticed.empty():
            await asyncio.to_thread(play, root / "games/hex8_2p.db", 1)
        stop.set()
        await watching


async def test_watching_looks_again_after_a_while_even_if_nothing_was_noticed(
    make: Make, root: Path
) -> None:
    """On disks that tell nothing (a network's), the clock is enough."""
    stop = asyncio.Event()
    async with asyncio.timeout(30):
        async for _ in make(rescan_s=0.05).watch(stop):
            stop.set()


async def test_p7_scanning_leaves_no_trace_beside_a_database(make: Make, root: Path) -> None:
    """A database at rest in WAL mode gets no ``-wal`` and no ``-shm`` from being read."""
    play(root / "games/hex8_2p.db", 5)
    before = sorted(path.name for path in (root / "games").iterdir())
    await told(make())
    assert sorted(path.name for path in (root / "games").iterdir()) == before == ["hex8_2p.db"]


async def test_a_proof_reads_the_file_again(make: Make, root: Path) -> None:
    """K22: a file that was changed without looking changed is no longer proven."""
    file = put(root / "models/canonical_x.pth", b"\x80model")
    settle(file)
    inventory = make()
    [entry] = (await told(inventory)).changed
    proof = await inventory.prove(entry.path, entry.checksum)
    assert (proof.proven, proof.checksum, proof.size_bytes) == (True, entry.checksum, 6)
    seen = file.stat()
    file.write_bytes(b"\x80other")
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    proof = await inventory.prove(entry.path, entry.checksum)
    other = sha(b"\x80other")
    assert not proof.proven
    assert (proof.checksum, proof.reason) == (other, f"the disk holds {other}")


async def test_a_proof_of_a_database_is_of_the_snapshot_and_needs_the_database(
    make: Make, root: Path
) -> None:
    """A snapshot whose database was deleted is nobody's copy."""
    database = root / "games/hex8_2p.db"
    play(database, 12)
    settle(database)
    inventory = make()
    [entry] = (await told(inventory)).changed
    assert (await inventory.prove(entry.path, entry.checksum)).proven
    database.unlink()
    proof = await inventory.prove(entry.path, entry.checksum)
    assert (proof.proven, "is gone" in proof.reason) == (False, True)


async def test_what_is_not_here_or_is_another_version_is_not_proven(make: Make, root: Path) -> None:
    """P22: neither a path nor a size is a proof."""
    settle(put(root / "models/canonical_x.pth", b"\x80model"))
    inventory = make()
    [entry] = (await told(inventory)).changed
    assert (await inventory.prove("models/other.pth", entry.checksum)).reason.startswith("nothing")
    proof = await inventory.prove(entry.path, sha(b"\x80other"))
    assert (proof.proven, proof.checksum) == (False, entry.checksum)


async def test_a_spoiled_copy_that_was_mended_is_said_to_be_here_again(
    make: Make, root: Path
) -> None:
    """It had been said to be gone: without a word it would stay unknown for ever."""
    entry = received(b"games", "games/gpu-1/x.jsonl")
    file = put(root / entry.path, b"games")
    inventory = make()
    await inventory.landed({entry.path: entry})
    file.write_bytes(b"spoil")
    assert (await told(inventory)).removed == (entry.path,)
    file.write_bytes(b"games")
    assert paths(await told(inventory)) == [entry.path]
    assert paths(await told(inventory)) == []


@pytest.fixture
def full(make: Make, root: Path) -> Iterator[Callable[[], None]]:
    """The data root is a small disk with one model, and full to the last byte; makes room."""
    with mounted(root, 8):
        settle(put(root / "models/canonical_x.pth", b"\x80one"))
        filler = root / "filler.tmp"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield filler.unlink


async def test_p18_a_disk_without_any_room_keeps_no_agent_from_beginning(
    make: Make, full: Callable[[], None]
) -> None:
    """It could neither give away what it has nor delete; what it forgot it reads again."""
    inventory = make()
    assert paths(await told(inventory)) == ["models/canonical_x.pth"]
    assert "disk is full" in inventory.counts().forgetful
    full()
    assert (await inventory.scan()).changed == ()
    assert inventory.counts().forgetful == ""
    await inventory.close()
    assert (await make().scan()).changed == ()
