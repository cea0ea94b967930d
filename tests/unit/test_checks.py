"""What is said of damaged files: always a problem in words, and never a count that is none."""

from __future__ import annotations

import contextlib
import errno
import random
import sqlite3
import struct
import zipfile
from pathlib import Path

import pytest

from adapters.files import checks, sqlite
from tests.damaged import unreadable_archive


def array(shape: str, *, version: int = 1) -> bytes:
    """An array as NumPy writes it, of any shape one can spell."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + length + head


def archive(path: Path, *arrays: bytes, how: int = zipfile.ZIP_DEFLATED) -> Path:
    """A training set of some arrays."""
    with zipfile.ZipFile(path, "w", how) as made:
        for number, data in enumerate(arrays):
            made.writestr(f"{number}.npy", data)
    return path


def damaged(data: bytes, how: str) -> bytes:
    """The bytes of an archive, spoiled in the middle of what it holds."""
    at = len(data) // 3
    return {
        "a bit": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "a hole": data[:at] + bytes(at) + data[2 * at :],
        "a gap": data[:at] + data[2 * at :],
    }[how]


def database(path: Path) -> Path:
    """A small database of games."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE games (moves TEXT, quality)")
        db.execute("INSERT INTO games VALUES ('e2e4', 0.5)")
    return path


def with_a_schema_that_is_no_text(path: Path) -> Path:
    """A database whose schema SQLite can't read, and quotes when it says so."""
    data = database(path).read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE games", b"CREATE TAB\xff\xff games"))
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.pth"])
def test_a_name_that_is_no_text_makes_an_archive_unreadable(tmp_path: Path, name: str) -> None:
    """It is said of this file, as of any other damaged one."""
    path = tmp_path / name
    path.write_bytes(unreadable_archive())
    found = checks.look_inside(path, name)
    assert found == (found.problem, None, None)
    assert "no readable archive" in str(found.problem)


def test_an_archive_that_says_it_begins_before_its_beginning_is_the_files_fault(
    tmp_path: Path,
) -> None:
    """The system objects to such a place, and yet the disk is well."""
    path = archive(tmp_path / "a.npz", array("(3,)"))
    data = bytearray(path.read_bytes())
    # The length of the directory at the end, as its last record says it.
    data[-10:-6] = struct.pack("<I", len(data) + 100)
    path.write_bytes(data)
    assert "no readable archive" in str(checks.problem_in(path, "a.npz"))


def test_a_disk_that_fails_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a file whose bytes were read can be damaged."""
    path = archive(tmp_path / "a.npz", array("(3,)"))

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(zipfile, "ZipFile", fails)
    with pytest.raises(OSError, match="the disk is broken"):
        checks.look_inside(path, "a.npz")
    with pytest.raises(OSError, match="the disk is broken"):
        checks.counts_of(path, "a.npz")


@pytest.mark.parametrize(
    ("arrays", "samples"),
    [
        ([array("(100, 5)")], 100),
        ([array("(7,)", version=2)], 7),
        ([array("(10L, 5)")], 10),
        ([array("()"), array("(4, 5)")], 4),
        ([array("(0, 5)")], 0),
        ([array("(-1, 5)")], None),
        ([array("()")], None),
        ([b"no array"], None),
        ([array(f"({10**12},)")], 10**12),
        ([array(f"({10**15},)")], None),
        ([array(f"({10**30},)")], None),
    ],
)
def test_samples_are_counted_only_where_there_can_be_so_many(
    tmp_path: Path, arrays: list[bytes], samples: int | None
) -> None:
    """A number that no file can hold, and no event carry, is no count."""
    path = archive(tmp_path / "a.npz", *arrays)
    assert checks.look_inside(path, "a.npz") == (None, None, samples)


def test_what_numpy_never_writes_is_not_unpacked_for_a_count(tmp_path: Path) -> None:
    """A few bytes of it may become gigabytes."""
    path = archive(tmp_path / "a.npz", array("(3,)"), how=zipfile.ZIP_LZMA)
    assert checks.look_inside(path, "a.npz") == (None, None, None)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("damage", ["a bit", "a hole", "a gap"])
def test_k16_a_training_set_with_a_damaged_array_is_a_problem(
    tmp_path: Path, how: int, damage: str
) -> None:
    """Its directory, at its end, is whole; NumPy would fail in the middle of it."""
    path = archive(tmp_path / "a.npz", array("(3,)") + random.Random(1).randbytes(300_000), how=how)
    assert checks.problem_in(path, "a.npz") is None
    path.write_bytes(damaged(path.read_bytes(), damage))
    assert "no readable archive" in str(checks.problem_in(path, "a.npz"))


def test_k16_a_model_whose_members_are_not_where_they_should_be_is_a_problem(
    tmp_path: Path,
) -> None:
    """Their checksums say nothing: where PyTorch is told so, it writes none that fit."""
    path = archive(tmp_path / "a.pth", bytes(100_000), bytes(100_000), how=zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, "a bit"))
    assert checks.problem_in(path, "a.pth") is None
    path.write_bytes(damaged(whole, "a gap"))
    assert "no readable archive" in str(checks.problem_in(path, "a.pth"))


def test_what_swells_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file is made of says nothing of how long it takes to read all that becomes of it."""
    monkeypatch.setattr(checks, "_MOST_READ_BYTES", 1 << 20)
    path = archive(tmp_path / "a.npz", bytes(1 << 20), array("(3,)") + bytes(1 << 20))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"NUMPY", b"NUMPI"))
    assert checks.problem_in(path, "a.npz") is None


@pytest.mark.parametrize("largest", [sqlite.FULL_CHECK_BYTES, 0])
def test_a_schema_that_is_no_text_makes_a_database_damaged(
    tmp_path: Path, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is read, and also in a process of its own."""
    monkeypatch.setattr(sqlite, "FULL_CHECK_BYTES", largest)
    path = with_a_schema_that_is_no_text(tmp_path / "hex8_2p.db")
    assert "no text" in str(checks.look_inside(path, path.name).problem)
    with pytest.raises(sqlite.Unsound):
        sqlite.count_games(path)
    with pytest.raises(sqlite.Unsound):
        sqlite.snapshot(path, tmp_path / "copy.db")


@pytest.mark.parametrize("largest", [sqlite.FULL_CHECK_BYTES, 0])
def test_a_copy_that_sqlite_can_not_make_sense_of_is_no_fault_of_the_disk(
    tmp_path: Path, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be fetched again and again, for the disk to take it one day."""
    monkeypatch.setattr(sqlite, "FULL_CHECK_BYTES", largest)
    path = database(tmp_path / "hex8_2p.db")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.create_collation("ours", lambda a, b: (a > b) - (a < b))
        db.execute("CREATE TABLE players (name TEXT COLLATE ours PRIMARY KEY)")
        db.execute("INSERT INTO players VALUES ('a'), ('b')")
    assert "no such collation" in str(checks.look_inside(path, path.name).problem)


def test_a_copy_that_says_it_is_only_read_with_a_wal_needs_none(tmp_path: Path) -> None:
    """SQLite goes by one of two bytes, which nothing keeps from being different."""
    path = database(tmp_path / "hex8_2p.db")
    data = bytearray(path.read_bytes())
    data[18:20] = b"\x01\x02"
    path.write_bytes(data)
    assert checks.look_inside(path, path.name) == (None, 1, None)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_database_that_is_sound_and_can_not_be_counted_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large one only pages are looked at: what is wrong in an index shows when it is used."""
    path = database(tmp_path / "hex8_2p.db")

    def damaged(path: Path) -> int:
        raise sqlite.Unsound("an index is malformed")

    monkeypatch.setattr(sqlite, "count_games", damaged)
    assert "an index is malformed" in str(checks.look_inside(path, path.name).problem)


@pytest.mark.parametrize("word", ["nan", float("nan"), "good", b"\xff"])
def test_k3_a_quality_that_is_no_number_is_none(tmp_path: Path, word: object) -> None:
    """Nobody has judged such games."""
    path = tmp_path / "hex8_2p.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE games (moves TEXT, quality)")
        db.execute("INSERT INTO games VALUES ('e2e4', ?)", (word,))
    assert sqlite.mean_quality(path) is None
