"""Live SQLite databases: consistent copies, soundness, counts.

The source of a snapshot is only ever read: its journal mode, its pages, its ``-wal`` stay as they
are, and no file appears beside it. SQLite alone would leave ``-wal`` and ``-shm`` behind even when
it opens read-only, owned by whoever reads; where it would, the database is read as immutable, or
from a private copy, and the reading is thrown away if the files moved meanwhile.

Must not be used in the process that writes the database: closing any handle of a file drops all
locks which that process has on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters.files import apart
from adapters.files.digest import Stopped

SIDE_FILES = ("-wal", "-shm", "-journal")
#: Up to here every row and index is checked; above only pages are.
FULL_CHECK_BYTES = 100_000_000
#: Names under which a quality of a game is kept; how many of the newest games are looked at; and
#: from which quality a game counts how much in the mean, the first that fits.
QUALITY_COLUMNS = ("quality_score", "quality")
NEWEST_GAMES = 20
QUALITY_WEIGHTS = ((0.8, 2.0), (0.7, 1.5), (0.6, 1.0), (0.0, 0.5))
BUSY_S = 5.0
_MAGIC = b"SQLite format 3\x00"
_STEP_PAGES = 2000
_FLUSH_PAGES = 50_000
_COPY_BYTES = 8 << 20
#: File times advance in ticks of up to 10 ms: what was written within one looks unchanged.
_TICK_NS = 20_000_000
_ATTEMPTS = 3
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_NEEDS_WRITING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_UNSOUND = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
#: What says nothing of the file.
_OF_THE_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
}
#: Where POSIX locks of SQLite lie in a file.
_LOCK_BYTE, _LOCK_LENGTH = 0x40000000, 512
_FLOCK = "hhqqi4x"


class Locked(Exception):
    """Somebody holds the database, or writes too fast to be read. It is sound; ask again later."""


class Unsound(Exception):
    """The file is no database, or a damaged one."""


class Unanswered(OSError):
    """SQLite can't make sense of what it finds, though the disk gives it: it is no disk's fault."""


class _OnlyByWriting(Locked):
    """A killed writer left something that SQLite must first repair, in place."""


class _Moved(Exception):
    """The files changed while they were read without a lock."""


def is_sqlite(path: Path) -> bool:
    """Whether a file begins like a SQLite database."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def snapshot(source: Path, target: Path, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write what is committed in `source` now to `target`, as one plain file, and flush it.

    The same committed content gives the same bytes. Writers go on; those of a database in WAL mode
    do not wait. Raises `Locked`, `Unsound`, `OSError`, or `Stopped` soon after `stopped` says so;
    then there is no `target`. Blocks; belongs in a thread.
    """
    source = source.resolve()
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _snapshot_once(source, target, stopped)
                return
            except _Moved:
                if attempt == _ATTEMPTS:
                    raise Locked(f"{source.name} changes faster than it can be read") from None
    except BaseException:
        _remove(target)
        raise


def check(path: Path) -> str | None:
    """What is wrong with a database, in words; None if nothing is.

    Raises `Locked` if somebody holds it, and `OSError` where the disk fails: that says nothing
    about its soundness.
    """
    try:
        if path.stat().st_size > FULL_CHECK_BYTES:
            found = _asked_apart(path, "quick_check(3)")
        else:
            with _reading(path, immutable=_needs_no_lock(path)) as db:
                found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(3)")]
    except (Unsound, Unanswered) as error:
        return str(error)
    return None if found == ["ok"] else "; ".join(found)


def count_games(path: Path) -> int | None:
    """Rows of the table ``games``; None if there is no such table.

    Raises `Locked`, `Unsound` or `OSError`.
    """
    with _reading(path, immutable=_needs_no_lock(path)) as db:
        named = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND lower(name) = 'games'"
        if db.execute(named).fetchone() is None:
            return None
        return int(db.execute("SELECT count(*) FROM games").fetchone()[0])


def mean_quality(path: Path) -> float | None:
    """How good the newest games of a database are, 0 to 1, good ones counting more (K3).

    None where no game has a quality. Raises `Locked`, `Unsound` or `OSError`.
    """
    with _reading(path, immutable=_needs_no_lock(path)) as db:
        columns = {str(row[1]).lower() for row in db.execute("PRAGMA table_info(games)")}
        column = next((name for name in QUALITY_COLUMNS if name in columns), None)
        if column is None:
            return None
        newest = f"SELECT {column} FROM games ORDER BY rowid DESC LIMIT {NEWEST_GAMES}"
        try:
            found = [float(row[0]) for row in db.execute(newest) if row[0] is not None]
        except (ValueError, sqlite3.OperationalError):
            # A table without row ids, or words in the column: nobody has judged these games.
            return None
    scores = [min(max(score, 0.0), 1.0) for score in found if not math.isnan(score)]
    weights = [next(w for limit, w in QUALITY_WEIGHTS if score >= limit) for score in scores]
    if not scores:
        return None
    return sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights)


@contextlib.contextmanager
def writing(path: Path, *, timeout_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """A connection that may write, without a transaction; a file that is not there is made.

    A new database is in WAL mode, any other stays in its own. What SQLite says is raised as
    `Locked`, `Unsound` or `OSError`. For processes that only write: see the module's first words.
    """
    new = not path.exists() or not path.stat().st_size
    with (
        _errors_named(path),
        contextlib.closing(_connect(path.resolve().as_uri(), timeout_s)) as db,
    ):
        if new:
            db.execute("PRAGMA journal_mode = WAL").fetchone()
        yield db


def side_file(path: Path, suffix: str) -> Path:
    """The file SQLite keeps beside a database, such as its ``-wal``."""
    return path.with_name(path.name + suffix)


def remove_side_files(path: Path) -> None:
    """Remove what a former database of this name left beside it. Never call it on a live one."""
    for suffix in SIDE_FILES:
        # A name too long to have a side file has none.
        with contextlib.suppress(OSError):
            side_file(path, suffix).unlink()


def _snapshot_once(source: Path, target: Path, stopped: Callable[[], bool]) -> None:
    if _needs_no_lock(source):
        with _unmoved(source), _reading(source, immutable=True) as db:
            _copy(db, target, stopped)
        return
    if side_file(source, "-wal").exists() and not side_file(source, "-shm").exists():
        _snapshot_privately(source, target, stopped)
        return
    try:
        with _reading(source, immutable=False) as db:
            _copy(db, target, stopped)
    except _OnlyByWriting:
        _snapshot_privately(source, target, stopped)


def _snapshot_privately(source: Path, target: Path, stopped: Callable[[], bool]) -> None:
    """Repair a copy of what a killed writer left, instead of the original."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".repair-") as private:
        copy = Path(private) / "copy.db"
        with _unmoved(source):
            if _is_locked(source):
                raise Locked(f"{source.name} is held by its writer")
            _copy_file(source, copy, stopped)
            for suffix in ("-wal", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    _copy_file(side_file(source, suffix), side_file(copy, suffix), stopped)
        with _errors_named(source), contextlib.closing(_connect(copy.as_uri())) as db:
            _copy(db, target, stopped)


def _copy_file(source: Path, copy: Path, stopped: Callable[[], bool]) -> None:
    with source.open("rb") as read, copy.open("wb") as written:
        while data := read.read(_COPY_BYTES):
            if stopped():
                raise Stopped
            written.write(data)


def _copy(source: sqlite3.Connection, target: Path, stopped: Callable[[], bool]) -> None:
    flushed = 0

    def step(_: int, left: int, pages: int) -> None:
        nonlocal flushed
        if stopped():
            raise Stopped
        # Else all of a large one is flushed at its end, for minutes in which nothing seems to move.
        if pages - left - flushed >= _FLUSH_PAGES:
            flushed = pages - left
            with target.open("rb") as file:
                os.fdatasync(file.fileno())

    _remove(target)
    # Without a transaction of our own every commit of a writer would start the copy over.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    with contextlib.closing(_connect(target.absolute().as_uri())) as copy:
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=_STEP_PAGES, progress=step)
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
    remove_side_files(target)
    _make_header_plain(target)


def _make_header_plain(copy: Path) -> None:
    """Fix the header's change counter and the version of the library that wrote it last.

    They depend on how the copy was made and say nothing about its content; nobody has opened the
    copy yet, so nobody can have a page cache that the counter would have to invalidate.
    """
    with copy.open("r+b") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            file.seek(24)
            file.write(struct.pack(">I", 1))
            file.seek(92)
            file.write(struct.pack(">II", 1, 3_000_000))
        file.flush()
        os.fsync(file.fileno())


def _needs_no_lock(path: Path) -> bool:
    """Whether a database in WAL mode lies at rest: nobody has it open, or has written to it.

    Only then may it be read without a lock, and only then would a lock leave files beside it.
    """
    with path.open("rb") as file:
        header = file.read(20)
    # How it is to be read is what SQLite goes by; the byte before says how it is to be written.
    in_wal_mode = header[:16] == _MAGIC and header[19:20] == b"\x02"
    return in_wal_mode and not _size(side_file(path, "-wal"))


@contextlib.contextmanager
def _unmoved(source: Path) -> Iterator[None]:
    """Raise `_Moved` unless the database and what lies beside it are the same before and after.

    What was wrong with a database that moved meanwhile says nothing of it: half of what was read
    may be from before a checkpoint, and half from after it.
    """
    before = _state(source)
    while 0 <= time.time_ns() - max(mtime_ns for _, mtime_ns, _ in before) < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        before = _state(source)
    try:
        yield
    except (Unsound, OSError):
        if _state(source) != before:
            raise _Moved from None
        raise
    if _state(source) != before:
        raise _Moved


def _state(source: Path) -> tuple[tuple[int, int, int], ...]:
    states = []
    for path in (source, side_file(source, "-wal"), side_file(source, "-journal")):
        try:
            stat = path.stat()
        except FileNotFoundError:
            states.append((0, 0, 0))
        else:
            states.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(states)


@contextlib.contextmanager
def _reading(path: Path, *, immutable: bool) -> Iterator[sqlite3.Connection]:
    with (
        _errors_named(path),
        contextlib.closing(_connect(_to_read(path, immutable=immutable))) as db,
    ):
        yield db


def _to_read(path: Path, *, immutable: bool) -> str:
    return path.resolve().as_uri() + "?mode=ro" + ("&immutable=1" if immutable else "")


def _asked_apart(path: Path, pragma: str) -> list[str]:
    """What a pragma says of a database, asked by a process of its own; see `apart`."""
    uri = _to_read(path, immutable=_needs_no_lock(path))
    ended = subprocess.run(
        [sys.executable, "-I", "-S", apart.__file__, uri, pragma, str(BUSY_S)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    said = ended.stdout.rstrip("\n")
    if ended.returncode < 0:
        raise OSError(f"{path.name}: signal {-ended.returncode} ended the reading of it")
    if ended.returncode:
        raise _named(path, ended.returncode, said or ended.stderr.strip())
    return said.split("\n")


def _connect(uri: str, timeout_s: float = BUSY_S) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _named(path, getattr(error, "sqlite_errorcode", 0) & 0xFF, str(error)) from error
    except UnicodeDecodeError as error:
        # So ends a complaint of SQLite that quotes what it found, as of a damaged schema.
        raise Unsound(f"{path.name}: what it holds is no text: {error}") from error


def _named(path: Path, code: int, said: str) -> Exception:
    """The exception that an error of SQLite means."""
    what = f"{path.name}: {said}"
    if code in _LOCKED:
        return Locked(what)
    if code in _NEEDS_WRITING:
        return _OnlyByWriting(what)
    if code in _UNSOUND:
        return Unsound(what)
    return OSError(what) if code in _OF_THE_DISK else Unanswered(what)


def _is_locked(path: Path) -> bool:
    """Whether another process holds SQLite's lock for writing. Asks only, takes none."""
    with path.open("rb") as file:
        question = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, _LOCK_BYTE, _LOCK_LENGTH, 0)
        answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    remove_side_files(path)
