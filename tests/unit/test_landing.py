"""Landing: the only way a file appears, and all the ways in which none does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import pickle
import sqlite3
import stat
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import msgspec
import pytest

from adapters.errors import (
    CheckFailed,
    DigestMismatch,
    DiskFull,
    Interrupted,
    InUse,
    NeverReplaced,
    PathEscapes,
    Regression,
)
from adapters.files import places
from adapters.files.blocks import BlockMap, Mapping
from adapters.files.digest import checksum_of
from adapters.files.landing import Landed, Landing, partial_name
from adapters.files.scattered import notes_of
from adapters.workers import DIGESTS, DISK
from streams.identity import PathRules
from streams.values import DataEntry, DataType
from tests.damaged import unreadable_archive
from tests.disks import mounted
from tests.turns import turns_during


def entry_of(data: bytes, path: str = "data/x.bin", **known: float) -> DataEntry:
    """An entry that means exactly `data`."""
    return DataEntry(
        path=path,
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(data),
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        **known,  # type: ignore[arg-type]
    )


async def land(
    root: Path, data: bytes, path: str = "data/x.bin", *, entry: DataEntry | None = None
) -> Landed:
    """Land `data` in one piece."""
    landing = await Landing.open(root, entry or entry_of(data, path), "t-1", path)
    await landing.write(data[landing.offset :])
    return await landing.commit()


def map_of_bytes(data: bytes) -> BlockMap:
    """The map of a content."""
    mapping = Mapping(len(data))
    mapping.add(memoryview(data))
    made = mapping.made()
    assert made is not None
    return made


@contextlib.contextmanager
def busy(executor: Executor, threads: int) -> Iterator[None]:
    """No thread of an executor is free meanwhile."""
    enough = threading.Event()
    for _ in range(threads):
        executor.submit(enough.wait)
    try:
        yield
    finally:
        enough.set()


def files_in(root: Path) -> dict[str, bytes]:
    """All files outside the data plane's own directory."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and places.OWN_DIRECTORY not in path.parts
    }


def partials_in(root: Path) -> list[Path]:
    """All partial files."""
    return list(root.rglob("*.partial"))


def quarantined_in(root: Path) -> list[Path]:
    """All that was set aside."""
    return list(root.glob(".dataplane/quarantine/*"))


def database(path: Path, games: int) -> bytes:
    """The bytes of a database of so many games."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE games (moves TEXT)")
        db.executemany("INSERT INTO games VALUES (?)", [("m" * 300,)] * games)
    db.close()
    return path.read_bytes()


def archive(samples: int) -> bytes:
    """The bytes of an ``.npz`` whose first array is as long as `samples`."""
    head = str({"descr": "<f4", "fortran_order": False, "shape": (samples, 3)}).encode()
    array = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(12 * samples)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("features.npy", array)
    return file.getvalue()


async def test_p6_a_partial_never_has_the_final_name(tmp_path: Path) -> None:
    """Until all bytes are proven nothing appears; a commit without all of them is refused."""
    data = os.urandom(3_000_000)
    landing = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await landing.write(data[:2_000_000])
    assert files_in(tmp_path) == {}
    with pytest.raises(Interrupted):
        await landing.commit()
    assert files_in(tmp_path) == {}
    assert await land(tmp_path, data) == Landed(bytes=len(data))
    assert files_in(tmp_path) == {"data/x.bin": data}
    assert partials_in(tmp_path) == []


async def test_p15_a_landing_counts_what_came_and_not_what_was_there(tmp_path: Path) -> None:
    """Pieces add up, and what an earlier attempt brought is no byte that moved in this one."""
    data = os.urandom(1_000_000)
    first = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert (first.received, first.offset) == (0, 0)
    await first.write(data[:300_000])
    await first.write(data[300_000:600_000])
    assert (first.received, first.offset) == (600_000, 600_000)
    await first.abort()
    again = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert (again.received, again.offset) == (0, 600_000)
    await again.write(data[600_000:])
    assert again.received == 400_000
    await again.abort()


async def test_p6_a_partial_whose_notes_are_lost_begins_anew(tmp_path: Path) -> None:
    """Its blocks came in any order: which of them are there, nobody knows."""
    data = os.urandom(1_000_000)
    first = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await first.write(data[:600_000])
    await first.abort()
    (partial,) = partials_in(tmp_path)
    notes_of(partial).write_bytes(b"no notes")
    again = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert again.offset == 0
    assert (partial.stat().st_size, notes_of(partial).exists()) == (0, False)
    await again.write(data)
    assert await again.commit() == Landed(bytes=len(data))
    assert files_in(tmp_path) == {"data/x.bin": data}


async def test_p6_of_what_was_forgotten_nothing_is_continued(tmp_path: Path) -> None:
    """The next attempt goes on behind what came since, not behind what lay there before."""
    data = os.urandom(1_000_000)
    first = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await first.write(os.urandom(600_000))
    await first.reset()
    await first.write(data[:1_000])
    await first.abort()
    again = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert again.offset == 1_000
    await again.write(data[1_000:])
    assert await again.commit() == Landed(bytes=len(data))
    assert files_in(tmp_path) == {"data/x.bin": data}


async def test_p6_a_partial_that_is_larger_than_its_entry_begins_anew(tmp_path: Path) -> None:
    """It can't be the beginning of it."""
    data = os.urandom(100_000)
    first = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await first.write(data[:1_000])
    await first.abort()
    (partial,) = partials_in(tmp_path)
    partial.write_bytes(data + b"and more")
    again = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert again.offset == 0
    await again.write(data)
    assert await again.commit() == Landed(bytes=len(data))


async def test_a_source_fills_the_memory_it_is_given_and_no_more(tmp_path: Path) -> None:
    """Room for what is lacking at most; pieces of any size add up to the file."""
    data = os.urandom(3_000_000)
    landing = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await landing.write(data[:10_000])

    def receive(room: memoryview) -> int:
        at = landing.offset
        assert len(room) <= min(700_000, len(data) - at)
        count = min(len(room), 333_333)
        room[:count] = data[at : at + count]
        return count

    while landing.offset < len(data):
        before = landing.offset
        assert await landing.fill(receive, 700_000) == landing.offset - before > 0
    assert landing.received == len(data)
    assert await landing.commit() == Landed(bytes=len(data))
    assert files_in(tmp_path) == {"data/x.bin": data}


async def test_what_another_program_appends_is_taken_in_as_far_as_it_was_followed(
    tmp_path: Path,
) -> None:
    """The rest is forgotten once the program has ended; its name for the file is gone then."""
    data, name = os.urandom(1_000_000), tmp_path / "of-the-program"
    landing = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await landing.write(data[:100_000])
    async with landing.shared(name):
        with name.open("ab", buffering=0) as file:
            file.write(data[100_000:400_000])
            assert await landing.follow() == 300_000
            assert await landing.follow() == 0
            file.write(b"what nobody took in")
    (partial,) = partials_in(tmp_path)
    assert (landing.offset, partial.stat().st_size, name.exists()) == (400_000, 400_000, False)
    await landing.write(data[400_000:])
    assert landing.received == len(data)
    assert await landing.commit() == Landed(bytes=len(data))
    assert files_in(tmp_path) == {"data/x.bin": data}


def test_a_partial_is_called_by_its_transfer_and_content_whatever_they_are_called() -> None:
    """Two transfers never write one file, and no name of theirs is too long for a disk."""
    first, second = entry_of(b"first"), entry_of(b"second")
    names = [
        partial_name(t, e) for t in ("t-1", "t-2", "x/../y", "z" * 999) for e in (first, second)
    ]
    assert len(set(names)) == 8
    assert names[0] == f"t-1.{first.checksum.removeprefix('sha256:')}.partial"
    assert all("/" not in name and len(name) <= 255 for name in names)


async def test_p6_a_resume_never_mixes_two_versions(tmp_path: Path) -> None:
    """What came of one version is not continued with bytes of another under the same path."""
    old, new = os.urandom(1_000_000), os.urandom(1_000_000)
    landing = await Landing.open(tmp_path, entry_of(old), "t-1", "data/x.bin")
    await landing.write(old[:600_000])
    await landing.abort()
    assert await land(tmp_path, new) == Landed(bytes=len(new))
    assert files_in(tmp_path) == {"data/x.bin": new}
    again = await Landing.open(tmp_path, entry_of(old), "t-1", "data/x.bin")
    assert again.offset == 600_000
    await again.abort()


async def test_p6_a_resume_digests_what_is_there_again(tmp_path: Path) -> None:
    """A partial that was damaged in between is found out, and nothing of it is kept."""
    data = os.urandom(1_000_000)
    landing = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    await landing.write(data[:600_000])
    await landing.abort()
    (partial,) = partials_in(tmp_path)
    with partial.open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(DigestMismatch):
        await land(tmp_path, data)
    assert files_in(tmp_path) == {}
    assert partials_in(tmp_path) == []
    assert await land(tmp_path, data) == Landed(bytes=len(data))


async def test_p22_same_size_is_not_same_content(tmp_path: Path) -> None:
    """Bytes of the right number that are not the entry's never appear and are not kept."""
    await land(tmp_path, b"old content")
    with pytest.raises(DigestMismatch):
        await land(tmp_path, b"x" * 1000, entry=entry_of(b"y" * 1000))
    assert files_in(tmp_path) == {"data/x.bin": b"old content"}
    assert partials_in(tmp_path) == []


async def test_p22_what_is_inside_other_bytes_counts_for_nothing(tmp_path: Path) -> None:
    """They are looked into while they are digested; they are forgotten, and not quarantined."""
    entry = entry_of(b"right" * 1000, "games/x.db")
    with pytest.raises(DigestMismatch):
        await land(tmp_path, b"wrong" * 1000, "games/x.db", entry=entry)
    assert not files_in(tmp_path)
    assert not partials_in(tmp_path)
    assert not quarantined_in(tmp_path)


async def test_more_bytes_than_the_entry_has_are_refused(tmp_path: Path) -> None:
    """A source that sends on and on neither fills the disk nor lands."""
    landing = await Landing.open(tmp_path, entry_of(b"short"), "t-1", "data/x.bin")
    with pytest.raises(DigestMismatch):
        await landing.write(b"short and more")
    assert landing.offset == 0
    await landing.abort()


async def test_p4_two_producers_never_write_one_name(tmp_path: Path) -> None:
    """Databases of the same name from two producers land as two files, each with its own bytes."""
    rules = PathRules()
    (tmp_path / "root").mkdir()
    for node, games in (("gpu-1", 3), ("gpu-2", 5)):
        data = database(tmp_path / f"{node}.source", games)
        path = rules.logical("games/hex8_2p.db", node)
        landed = await land(tmp_path / "root", data, rules.local(path, "trainer"))
        assert landed.games == games
    assert sorted(files_in(tmp_path / "root")) == [
        "games/gpu-1/hex8_2p.db",
        "games/gpu-2/hex8_2p.db",
    ]


async def test_p5_a_much_smaller_training_set_never_replaces_a_larger(tmp_path: Path) -> None:
    """An ``.npz`` below four fifths of what it would replace is refused before a byte moves."""
    large, less, small = archive(1000), archive(850), archive(700)
    await land(tmp_path, large, "npz/hex8_2p.npz")
    with pytest.raises(Regression):
        await Landing.open(tmp_path, entry_of(small, "npz/hex8_2p.npz"), "t-1", "npz/hex8_2p.npz")
    assert files_in(tmp_path) == {"npz/hex8_2p.npz": large}
    assert (await land(tmp_path, less, "npz/hex8_2p.npz")).samples == 850


async def test_p5_a_training_set_that_grew_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """The rule is asked again at the very end."""
    small = archive(700)
    landing = await Landing.open(
        tmp_path, entry_of(small, "npz/hex8_2p.npz"), "t-1", "npz/hex8_2p.npz"
    )
    await landing.write(small)
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz/hex8_2p.npz").write_bytes(archive(1000))
    with pytest.raises(Regression):
        await landing.commit()
    assert files_in(tmp_path) == {"npz/hex8_2p.npz": archive(1000)}


async def test_p21_a_merged_database_is_never_replaced(tmp_path: Path) -> None:
    """An Elo database lands where there is none, and never where there is one."""
    first = database(tmp_path / "one", 1)
    (tmp_path / "root").mkdir()
    await land(tmp_path / "root", first, "elo.db")
    with pytest.raises(NeverReplaced):
        await land(tmp_path / "root", database(tmp_path / "two", 2), "elo.db")
    late = entry_of(first, "registry.db")
    landing = await Landing.open(tmp_path / "root", late, "t-1", "registry.db")
    await landing.write(first)
    (tmp_path / "root/registry.db").write_bytes(b"merged here")
    with pytest.raises(NeverReplaced):
        await landing.commit()
    assert files_in(tmp_path / "root") == {"elo.db": first, "registry.db": b"merged here"}


async def test_p21_a_merged_database_that_appears_at_the_last_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even between the last look and the naming nothing is replaced."""
    data = database(tmp_path / "one", 1)
    (tmp_path / "root").mkdir()
    landing = await Landing.open(tmp_path / "root", entry_of(data, "elo.db"), "t-1", "elo.db")
    await landing.write(data)
    monkeypatch.setattr("adapters.files.landing.refuse_replacement", lambda *_: None)
    (tmp_path / "root/elo.db").write_bytes(b"merged here")
    with pytest.raises(NeverReplaced):
        await landing.commit()
    assert files_in(tmp_path / "root") == {"elo.db": b"merged here"}


async def test_p7_a_new_database_never_meets_an_old_journal(tmp_path: Path) -> None:
    """What a former database left beside the final name is gone before the new one has it."""
    data = database(tmp_path / "source", 4)
    home = tmp_path / "root/games/gpu-1"
    home.mkdir(parents=True)
    for suffix in ("", "-wal", "-shm", "-journal"):
        (home / f"x.db{suffix}").write_bytes(b"of a former database")
    assert (await land(tmp_path / "root", data, "games/gpu-1/x.db")).games == 4
    assert files_in(tmp_path / "root") == {"games/gpu-1/x.db": data}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.db", b"SQLite format 3\x00" + bytes(5000)),
        ("x.db", b"no database at all"),
        ("x.npz", b"PK\x03\x04 but not much more"),
        ("x.npz", b""),
        ("x.pth", b"<html>not found</html>"),
        ("x.pt", b"PK\x03\x04 cut off"),
        ("x.onnx", b""),
        ("x.npz", unreadable_archive()),
        ("x.pt", unreadable_archive()),
    ],
)
async def test_p6_an_unsound_file_goes_to_quarantine(
    tmp_path: Path, name: str, data: bytes
) -> None:
    """The right bytes of a broken file are set aside and never get their final name."""
    with pytest.raises(CheckFailed):
        await land(tmp_path, data, f"data/{name}")
    assert files_in(tmp_path) == {}
    (kept,) = (tmp_path / ".dataplane/quarantine").iterdir()
    assert kept.read_bytes() == data


@pytest.mark.parametrize(
    ("name", "data", "games", "samples"),
    [
        ("x.npz", archive(12), None, 12),
        ("x.jsonl", b"{}\n{}\n{}", 3, None),
        ("x.jsonl", b"", 0, None),
        ("x.pth", pickle.dumps([1, 2]), None, None),
        ("x.onnx", b"\x08\x07", None, None),
        ("x.bin", b"", None, None),
        ("x.db", b"", None, None),
    ],
)
async def test_sound_files_land_with_what_is_counted_in_them(
    tmp_path: Path, name: str, data: bytes, games: int | None, samples: int | None
) -> None:
    """Counts are read from the copy; empty files land like others."""
    landed = await land(tmp_path, data, f"data/{name}")
    assert landed == Landed(bytes=len(data), games=games, samples=samples)
    assert files_in(tmp_path) == {f"data/{name}": data}


@pytest.mark.parametrize(
    "local",
    ["../x", "/etc/x", "a/../../x", "a//x", "a\\x", "", "out/x", "out/deep/x", ".dataplane/x"],
)
async def test_p19_no_path_leads_out_of_the_root(tmp_path: Path, local: str) -> None:
    """Neither dots nor absolute paths nor symlinked directories lead out, or into our own files."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/out").symlink_to(tmp_path / "outside")
    with pytest.raises(PathEscapes):
        await Landing.open(tmp_path / "root", entry_of(b"x"), "t-1", local)
    assert list((tmp_path / "outside").iterdir()) == []


async def test_p19_a_directory_swapped_for_a_symlink_meanwhile_leads_nowhere(
    tmp_path: Path,
) -> None:
    """Where a path leads is asked again when the file gets its name."""
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    landing = await Landing.open(root, entry_of(b"x"), "t-1", "data/x.bin")
    await landing.write(b"x")
    (root / "data").rmdir()
    (root / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(PathEscapes):
        await landing.commit()
    assert list((tmp_path / "outside").iterdir()) == []


async def test_a_symlink_within_the_root_is_fine_and_one_at_the_end_is_replaced(
    tmp_path: Path,
) -> None:
    """Landing writes through a directory symlink that stays inside, never through a file's."""
    (tmp_path / "store").mkdir()
    (tmp_path / "models").symlink_to("store")
    (tmp_path / "store/old.bin").write_bytes(b"old")
    (tmp_path / "store/x.bin").symlink_to("old.bin")
    await land(tmp_path, b"new", "models/x.bin")
    assert not (tmp_path / "store/x.bin").is_symlink()
    assert (tmp_path / "store/x.bin").read_bytes() == b"new"
    assert (tmp_path / "store/old.bin").read_bytes() == b"old"


async def test_names_may_be_as_long_as_the_disk_allows_and_in_any_script(tmp_path: Path) -> None:
    """A name of 255 bytes has room for no suffix, so the partial must not need one."""
    for name in (
        "ü" * 125 + ".onnx",
        "棋譜/ゲーム 1.bin",
        "a b'c\"d;$(e)\n.bin",
        "n" * 252 + ".db",
    ):
        await land(tmp_path, b"", name) if name.endswith("db") else await land(tmp_path, b"x", name)
        assert (tmp_path / name).exists()
    assert len(partial_name("t" * 64, entry_of(b"x"))) < 255
    assert len(partial_name("no token " * 100, entry_of(b"x"))) < 255


async def test_a_landed_file_has_the_time_and_mode_it_should(tmp_path: Path) -> None:
    """The time is the entry's, the mode is 0644 whatever the mask."""
    mask = os.umask(0o077)
    try:
        await land(tmp_path, b"x", entry=entry_of(b"x", mtime=1_700_000_000.5))
    finally:
        os.umask(mask)
    found = (tmp_path / "data/x.bin").stat()
    assert found.st_mtime == 1_700_000_000.5
    assert stat.S_IMODE(found.st_mode) == 0o644


async def test_what_a_file_replaces_is_freed_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long to free a large file; nobody waits for it, and nobody keeps it."""
    await land(tmp_path, b"old")
    old, close = (tmp_path / "data/x.bin").stat().st_ino, os.close
    enough, freed = threading.Event(), threading.Event()

    def slow(handle: int) -> None:
        is_old = os.fstat(handle).st_ino == old
        if is_old:
            enough.wait()
        close(handle)
        if is_old:
            freed.set()

    monkeypatch.setattr(os, "close", slow)
    try:
        await land(tmp_path, b"new")
        assert files_in(tmp_path) == {"data/x.bin": b"new"}
        assert not freed.is_set()
    finally:
        enough.set()
    assert await asyncio.to_thread(freed.wait, 60)


async def test_a_directory_in_the_way_is_refused(tmp_path: Path) -> None:
    """A file never takes the place of a directory."""
    (tmp_path / "data/x.bin").mkdir(parents=True)
    with pytest.raises(NeverReplaced):
        await land(tmp_path, b"x")


async def test_two_attempts_at_one_transfer_never_write_at_once(tmp_path: Path) -> None:
    """The second is told so, and may begin once the first has let go."""
    first = await Landing.open(tmp_path, entry_of(b"x"), "t-1", "data/x.bin")
    with pytest.raises(InUse):
        await Landing.open(tmp_path, entry_of(b"x"), "t-1", "data/x.bin")
    await first.abort()
    assert await land(tmp_path, b"x") == Landed(bytes=1)


@pytest.mark.parametrize("in_any_order", [False, True])
async def test_cancelled_while_it_is_let_go_of_nothing_stays_locked(
    tmp_path: Path, in_any_order: bool
) -> None:
    """The next attempt can begin, with the bytes of this one."""
    data = os.urandom(6 << 20)
    landing = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    with contextlib.ExitStack() as stack:
        stack.enter_context(busy(DIGESTS, 2))
        if in_any_order:
            scattered = await landing.scatter(map_of_bytes(data))
            assert not scattered.put(0, memoryview(data))
        else:
            stack.enter_context(busy(DISK, 6))
            await landing.write(data)
        ending = asyncio.create_task(landing.abort())
        for _ in range(3):
            await asyncio.sleep(0)
            ending.cancel()
        assert not ending.done()
    with pytest.raises(asyncio.CancelledError):
        await ending
    again = await Landing.open(tmp_path, entry_of(data), "t-1", "data/x.bin")
    assert again.offset == len(data)
    await again.commit()


async def test_cancelled_while_it_is_opened_nothing_stays_locked(tmp_path: Path) -> None:
    """Nobody else would ever close it."""
    entry = entry_of(b"x" * 1000)
    with busy(DISK, 6):
        opening = asyncio.create_task(Landing.open(tmp_path, entry, "t-1", "data/x.bin"))
        await asyncio.sleep(0)
        opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await land(tmp_path, b"x" * 1000)


async def test_k21_room_is_promised_to_one_landing_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open landings count with what they still need, and give it back when they end."""
    free = 1000
    usage = type("Usage", (), {"free": property(lambda _: free)})
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage())
    first = await Landing.open(tmp_path, entry_of(b"a" * 600), "t-1", "data/a.bin")
    with pytest.raises(DiskFull):
        await Landing.open(tmp_path, entry_of(b"b" * 400), "t-2", "data/b.bin")
    await first.write(b"a" * 600)
    free = 500
    second = await Landing.open(tmp_path, entry_of(b"b" * 400), "t-2", "data/b.bin")
    await first.abort()
    await second.abort()
    free = 1000
    third = await Landing.open(tmp_path, entry_of(b"c" * 900), "t-3", "data/c.bin")
    await third.abort()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 24 MiB, mounted below the test's directory."""
    with mounted(tmp_path / "disk", 24) as path:
        yield path


async def test_a_disk_that_fills_up_ends_the_landing_with_its_bytes_kept(disk: Path) -> None:
    """When others take the room after all, it is DiskFull, and the next attempt goes on."""
    data = os.urandom(18 << 20)
    landing = await Landing.open(disk, entry_of(data), "t-1", "data/x.bin")
    (disk / "other").write_bytes(bytes(12 << 20))
    with pytest.raises(DiskFull):
        await landing.write(data)
        await landing.commit()
    await landing.abort()
    (disk / "other").unlink()
    again = await Landing.open(disk, entry_of(data), "t-1", "data/x.bin")
    assert again.offset > 0
    await again.write(data[again.offset :])
    assert await again.commit() == Landed(bytes=len(data))


async def test_a_file_lands_on_a_disk_mounted_within_the_root(disk: Path) -> None:
    """A rename cannot cross disks, so the partial lies where the file will."""
    await land(disk.parent, b"x" * 1000, "disk/games/x.bin")
    assert (disk / "games/x.bin").read_bytes() == b"x" * 1000


async def test_reset_begins_anew(tmp_path: Path) -> None:
    """After a reset the first byte written is the file's first."""
    landing = await Landing.open(tmp_path, entry_of(b"right"), "t-1", "data/x.bin")
    await landing.write(b"wron")
    await landing.reset()
    assert landing.offset == 0
    await landing.write(b"right")
    await landing.commit()
    assert files_in(tmp_path) == {"data/x.bin": b"right"}


async def test_p20_digesting_a_large_partial_never_holds_up_the_event_loop(tmp_path: Path) -> None:
    """Two gigabytes (a hole) are digested before a resume, while the loop goes on."""
    entry = msgspec.structs.replace(entry_of(b"x"), size_bytes=2 << 30)
    partial = tmp_path / ".dataplane/partial" / partial_name("t-1", entry)
    partial.parent.mkdir(parents=True)
    partial.touch()
    os.truncate(partial, (2 << 30) - 1)
    landing, turns = await turns_during(Landing.open(tmp_path, entry, "t-1", "data/x.bin"))
    await landing.abort()
    assert landing.offset == (2 << 30) - 1
    assert turns > 30


async def test_the_digest_of_a_file_is_that_of_all_its_bytes(tmp_path: Path) -> None:
    """Never of a sample: one byte at the end of several blocks changes it."""
    data = bytes(9_000_000)
    (tmp_path / "x").write_bytes(data)
    assert checksum_of(tmp_path / "x") == entry_of(data).checksum
    (tmp_path / "x").write_bytes(data[:-1] + b"1")
    assert checksum_of(tmp_path / "x") == entry_of(data[:-1] + b"1").checksum


@pytest.mark.parametrize("mtime", [1e13, 1e30, float("inf")])
async def test_a_time_that_no_clock_shows_keeps_no_file_out(tmp_path: Path, mtime: float) -> None:
    """Its bytes land; the time is what the disk makes of it, or that of its landing."""
    landed = await land(tmp_path, b"bytes", entry=entry_of(b"bytes", mtime=mtime))
    assert landed == Landed(bytes=5)
    assert (tmp_path / "data/x.bin").read_bytes() == b"bytes"
