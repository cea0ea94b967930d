"""What the inventory remembers across restarts, in a small SQLite file of its own.

It holds nothing that cannot be found out again, and never decides anything. One thread uses it.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from adapters.files.sqlite import remove_side_files
from adapters.files.walk import Print
from streams.values import DataEntry

#: Raise it when `Row` changes its shape: an older file is then thrown away.
SHAPE = 1


#: What says nothing of the file: there is no room, or the disk does not do what it should.
_OF_THE_DISK = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
}


class State(enum.StrEnum):
    """Whether a known file is still what it was."""

    HERE = "here"
    #: It was said to be here and no longer is.
    GONE = "gone"
    #: A received file that somebody changed in place: neither its entry nor a file of our own.
    SPOILED = "spoiled"


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file: how it looked, what it is, what was said of it."""

    local: str
    print: Print
    entry: DataEntry
    #: The file that holds the entry's content, relative to the root: itself or a snapshot of it.
    holder: str
    holder_print: Print
    state: State = State.HERE
    #: Whether it came by a transfer; its entry is then the assignment's.
    received: bool = False
    #: The checksum that was last reported; "" if none was.
    said: str = ""
    #: Seconds it took to read, and when that was.
    read_s: float = 0.0
    read_at: float = 0.0
    #: Where in the log the content that was reported last was reported first; 0: nobody knows.
    said_at: int = 0


class Superseded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A snapshot that is no longer the newest of its database."""

    name: str
    local: str
    since: float


class Expected(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry that is about to appear under a local path."""

    local: str
    entry: DataEntry


class Disk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A directory of the root on which a disk of its own is mounted."""

    local: str


class Index:
    """Tables of small records, each change durable once a method returns.

    One that is not `kept` forgets all, until it is recreated.
    """

    def __init__(self, path: Path, *, kept: bool = True) -> None:
        self._path = path
        self._db = self._opened() if kept else _sound(":memory:")

    def rows(self) -> list[Row]:
        """All rows."""
        return [msgspec.msgpack.decode(blob, type=Row) for blob in self._all("rows")]

    def superseded(self) -> list[Superseded]:
        """All superseded snapshots."""
        return [msgspec.msgpack.decode(blob, type=Superseded) for blob in self._all("superseded")]

    def expected(self) -> list[Expected]:
        """All entries that are about to appear."""
        return [msgspec.msgpack.decode(blob, type=Expected) for blob in self._all("expected")]

    def disks(self) -> list[Disk]:
        """All disks that are mounted within the root."""
        return [msgspec.msgpack.decode(blob, type=Disk) for blob in self._all("disks")]

    def change(self, tables: Mapping[str, Mapping[str, msgspec.Struct | None]]) -> None:
        """Write records of each table by key, or remove those that are None, all or nothing."""
        with self._db:
            for table, changes in tables.items():
                gone = [(key,) for key, one in changes.items() if one is None]
                kept = [(key, msgspec.msgpack.encode(one)) for key, one in changes.items() if one]
                self._db.executemany(f"DELETE FROM {table} WHERE key = ?", gone)
                self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", kept)

    def recreate(self, tables: Mapping[str, Mapping[str, msgspec.Struct]]) -> None:
        """Put a file that is written anew from what is known in the place of this one.

        Until it is whole, this one stays: a full disk must not cost what was remembered.
        """
        fresh = self._path.with_name(self._path.name + ".new")
        _remove(fresh)
        try:
            with contextlib.closing(Index(fresh)) as other:
                other.change(tables)
                other._db.execute("PRAGMA journal_mode = DELETE").fetchone()
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(fresh)
            raise
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        remove_side_files(self._path)
        fresh.replace(self._path)
        self._db = self._opened()

    def exists(self) -> bool:
        """Whether the file is still where it was opened."""
        return self._path.exists()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _all(self, table: str) -> Iterable[bytes]:
        for row in self._db.execute(f"SELECT record FROM {table}"):
            yield row[0]

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _sound(self._path)
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _OF_THE_DISK:
                raise
            _remove(self._path)
            return _sound(self._path)


def _sound(path: Path | str) -> sqlite3.Connection:
    """A connection to a sound file of the present shape. Raises if the file is neither."""
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        (shape,) = db.execute("PRAGMA user_version").fetchone()
        if shape not in (0, SHAPE):
            raise sqlite3.DatabaseError("another shape")
        if [row[0] for row in db.execute("PRAGMA quick_check(1)")] != ["ok"]:
            raise sqlite3.DatabaseError("damaged")
        for table in ("rows", "superseded", "expected", "disks"):
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, record BLOB)")
        if shape != SHAPE:
            db.execute(f"PRAGMA user_version = {SHAPE}")
        db.commit()
        _decode_first(db)
    except BaseException:
        db.close()
        raise
    return db


def _decode_first(db: sqlite3.Connection) -> None:
    for (blob,) in db.execute("SELECT record FROM rows LIMIT 1"):
        msgspec.msgpack.decode(blob, type=Row)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    remove_side_files(path)
