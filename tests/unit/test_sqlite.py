"""Snapshots of live databases: consistent, and without a trace in the source."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.files import sqlite
from adapters.files.digest import Stopped

#: Writes transactions of ten games for ever; a counter in each transaction says how many.
WRITER = """
import random, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
db.execute("CREATE TABLE IF NOT EXISTS games (id INTEGER PRIMARY KEY, moves TEXT)")
db.execute("CREATE TABLE IF NOT EXISTS counter (n INTEGER)")
db.execute("INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter)")
for _ in range(int(sys.argv[3])):
    db.execute("BEGIN IMMEDIATE")
    for _ in range(10):
        db.execute("INSERT INTO games (moves) VALUES (?)", (random.randbytes(200).hex(),))
    db.execute("UPDATE games SET moves = moves || 'x' WHERE id % 7 = 0 AND id > 50")
    db.execute("UPDATE counter SET n = n + 10")
    db.execute("COMMIT")
    print(flush=True)
if "stay" in sys.argv:
    sys.stdin.read()
db.close()
"""

#: Up to which size a database is checked whole: more than those here, and less.
LARGEST = (sqlite.FULL_CHECK_BYTES, 0)


def written(path: Path, mode: str, transactions: int, *, killed: bool = False) -> Path:
    """A database that a process wrote and then left, by closing it or by being killed."""
    with writer(path, mode, transactions, "stay") as process:
        if not killed:
            process.communicate(timeout=60)
    return path


@contextlib.contextmanager
def writer(
    path: Path, mode: str, transactions: int, *more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes, from its last transaction on if it has a number, else its first."""
    arguments = [sys.executable, "-c", WRITER, str(path), mode, str(transactions), *more]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        try:
            for _ in range(transactions if more else 1):
                process.stdout.readline()
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)


def trace(path: Path) -> dict[str, tuple[int, int, str]]:
    """All that is in a database's directory, apart from what SQLite's readers share."""
    return {
        one.name: (one.stat().st_size, one.stat().st_mtime_ns, digest(one))
        for one in path.parent.iterdir()
        if not one.name.endswith("-shm")
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_and_counter(path: Path) -> tuple[int, int]:
    """Games in a copy, and what its counter says; the copy is sound."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        (rows,) = db.execute("SELECT count(*) FROM games").fetchone()
        (counter,) = db.execute("SELECT n FROM counter").fetchone()
    return rows, counter


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_p7_every_snapshot_under_a_writer_is_a_committed_prefix(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process commits on, each of many copies is sound and holds whole transactions."""
    monkeypatch.setattr(sqlite, "_STEP_PAGES", 3)
    source = tmp_path / "live.db"
    with writer(source, mode, 1_000_000) as process:
        assert process.stdout is not None
        seen = [0]
        while len(seen) <= 30 or len(set(seen)) < 10:
            for _ in range(3):
                process.stdout.readline()
            try:
                sqlite.snapshot(source, tmp_path / "copy.db")
            except sqlite.Locked:
                # On a busy machine a writer may never let go for as long as it is waited for.
                continue
            rows, counter = rows_and_counter(tmp_path / "copy.db")
            assert rows == counter >= seen[-1]
            seen.append(rows)
        assert process.poll() is None


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_p7_a_snapshot_leaves_no_trace_in_the_source(
    tmp_path: Path, mode: str, killed: bool
) -> None:
    """Neither a database at rest nor one left by a killed writer changes, or gets a new file."""
    source = written(tmp_path / "x.db", mode, 20, killed=killed)
    before, target = trace(source), tmp_path / "out" / "copy.db"
    target.parent.mkdir()
    sqlite.snapshot(source, target)
    sqlite.snapshot(source, target)
    assert rows_and_counter(target) == (200, 200)
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]
    target.unlink()
    target.parent.rmdir()
    assert trace(source) == before


def test_p7_what_a_killed_writer_left_is_repaired_in_the_copy_only(tmp_path: Path) -> None:
    """A WAL without its index is read through a private copy; the original stays unrepaired."""
    source = written(tmp_path / "x.db", "WAL", 20, killed=True)
    (tmp_path / "x.db-shm").unlink()
    before = trace(source)
    sqlite.snapshot(source, tmp_path / "copy.db")
    assert rows_and_counter(tmp_path / "copy.db") == (200, 200)
    (tmp_path / "copy.db").unlink()
    assert trace(source) == before
    assert not (tmp_path / "x.db-shm").exists()


def test_p7_a_half_written_transaction_is_rolled_back_in_the_copy_only(tmp_path: Path) -> None:
    """A hot journal is applied to a private copy; the original keeps it."""
    source = tmp_path / "x.db"
    crash = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE games (moves TEXT)")
db.executemany("INSERT INTO games VALUES (?)", [("x" * 500,)] * 300)
db.execute("PRAGMA cache_size = 5")
db.execute("BEGIN")
db.executemany("INSERT INTO games VALUES (?)", [("y" * 500,)] * 3000)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", crash, str(source)], check=False)
    assert (tmp_path / "x.db-journal").stat().st_size > 0
    before = trace(source)
    sqlite.snapshot(source, tmp_path / "copy.db")
    assert sqlite.count_games(tmp_path / "copy.db") == 300
    (tmp_path / "copy.db").unlink()
    assert trace(source) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("killed", [True, False])
def test_a_snapshot_needs_no_permission_to_write(tmp_path: Path, killed: bool) -> None:
    """A database on a read-only disk can be copied, even if a killed writer left it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], check=True)
    try:
        source = written(disk / "x.db", "WAL", 20, killed=killed)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        sqlite.snapshot(source, tmp_path / "copy.db")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert rows_and_counter(tmp_path / "copy.db") == (200, 200)


def test_the_same_committed_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whether it lies in the WAL or in the file, and in whichever journal mode, changes nothing."""
    source = written(tmp_path / "x.db", "WAL", 20, killed=True)
    copies = []
    for number, statement in enumerate(
        ["SELECT 1", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode = DELETE"]
    ):
        with contextlib.closing(sqlite3.connect(source)) as db:
            db.execute(statement).fetchall()
        sqlite.snapshot(source, tmp_path / f"{number}.copy")
        copies.append(digest(tmp_path / f"{number}.copy"))
    assert len(set(copies)) == 1


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_locked_database_is_not_a_damaged_one(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds a database alone makes us wait; nobody calls it damaged."""
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    hold = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA locking_mode = EXCLUSIVE")
db.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
db.execute("CREATE TABLE games (moves TEXT)")
print(flush=True)
sys.stdin.read()
"""
    source, pipe = tmp_path / "x.db", subprocess.PIPE
    command = [sys.executable, "-c", hold, str(source), mode]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(sqlite.Locked):
            sqlite.snapshot(source, tmp_path / "copy.db")
        for largest in LARGEST:
            monkeypatch.setattr(sqlite, "FULL_CHECK_BYTES", largest)
            with pytest.raises(sqlite.Locked):
                sqlite.check(source)
        process.communicate(timeout=60)
    assert not (tmp_path / "copy.db").exists()
    assert sqlite.check(source) is None


def test_a_database_that_moves_while_it_is_read_is_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one at rest, pages of before and of after a checkpoint fit together in no way."""
    source = written(tmp_path / "x.db", "WAL", 50)
    whole, copied = source.read_bytes(), sqlite._copy

    def half_written(*given: Any) -> None:
        monkeypatch.setattr(sqlite, "_copy", copied)
        source.write_bytes(whole[:100] + bytes(4096 - 100) + whole[4096:])
        try:
            copied(*given)
        finally:
            source.write_bytes(whole)

    monkeypatch.setattr(sqlite, "_copy", half_written)
    sqlite.snapshot(source, tmp_path / "copy.db")
    assert rows_and_counter(tmp_path / "copy.db") == (500, 500)


@pytest.mark.parametrize("largest", LARGEST)
def test_a_damaged_database_is_named_as_such(
    tmp_path: Path, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwritten pages are found, and garbage under a database's name is none."""
    monkeypatch.setattr(sqlite, "FULL_CHECK_BYTES", largest)
    source = written(tmp_path / "x.db", "DELETE", 50)
    with source.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(4 * 4096))
    assert sqlite.check(source)
    source.write_bytes(b"SQLite format 3\x00" + os.urandom(9000))
    assert sqlite.check(source)
    with pytest.raises(sqlite.Unsound):
        sqlite.snapshot(source, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_a_large_database_is_checked_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails under it ends that process, not us, and says nothing of the database."""
    source = written(tmp_path / "x.db", "DELETE", 5)
    monkeypatch.setattr(sqlite, "FULL_CHECK_BYTES", 0)
    assert sqlite.check(source) is None
    fails = tmp_path / "fails.py"
    fails.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGBUS)\n")
    monkeypatch.setattr(sqlite.apart, "__file__", str(fails))
    with pytest.raises(OSError, match="signal"):
        sqlite.check(source)


def test_games_are_counted_only_where_there_is_a_table_of_games(tmp_path: Path) -> None:
    """A database without that table has no game count, not a count of none."""
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.execute("CREATE TABLE elo (player TEXT)")
        assert sqlite.count_games(tmp_path / "x.db") is None
        db.execute("CREATE TABLE games (moves TEXT)")
        assert sqlite.count_games(tmp_path / "x.db") == 0


def test_a_snapshot_stops_when_asked(tmp_path: Path) -> None:
    """A copy that is no longer wanted ends between two steps and leaves nothing."""
    source = written(tmp_path / "x.db", "WAL", 5)
    with pytest.raises(Stopped):
        sqlite.snapshot(source, tmp_path / "copy.db", stopped=lambda: True)
    assert not (tmp_path / "copy.db").exists()


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ([], None),
        ([None, None], None),
        ([0.5], 0.5),
        ([0.9, 0.1], (0.9 * 2.0 + 0.1 * 0.5) / 2.5),
        ([0.1] * 5 + [0.65] * 20, 0.65),
        ([7.0], 1.0),
        (["good"], None),
    ],
)
def test_k3_quality_is_the_weighted_mean_of_the_newest_twenty(
    tmp_path: Path, scores: list[object], mean: float | None
) -> None:
    """Good games count more, games without a judgement are left out, words are none."""
    path = tmp_path / "games.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE games (id INTEGER PRIMARY KEY, quality_score REAL)")
        db.executemany("INSERT INTO games (quality_score) VALUES (?)", [(s,) for s in scores])
        db.commit()
    assert sqlite.mean_quality(path) == (None if mean is None else pytest.approx(mean))


def test_k3_missing_quality_column_is_no_error(tmp_path: Path) -> None:
    """Most databases have none."""
    path = tmp_path / "games.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE games (id INTEGER PRIMARY KEY)")
        db.commit()
    assert sqlite.mean_quality(path) is None
