"""Merging of databases: what a target lacks comes over, and nothing that it holds goes.

Of game databases these are complete games, with all their rows; of small ones that hold none, such
as ratings and registries, see `records`.

A game comes whole or not at all, and whatever happens in between, merging again completes it: what
identifies a game is its id alone. What the target holds is never changed, nor are its tables; a
writer of it goes on, for it is locked only a moment at a time.

Like everything that writes a database it must not be used in a process that reads the same file
past SQLite, as the inventory does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from adapters.files import sqlite
from adapters.files.gametables import (
    GAMES,
    ID,
    Copying,
    NotMergeable,
    copyings,
    create_missing,
    judged,
)
from adapters.files.places import Reservation
from adapters.files.records import merge_tables
from adapters.files.sqlite import Unsound

#: How long the target's writer is waited for.
PATIENCE_S = 30.0
#: The target is locked about this long at a time, however many games that are.
_HOLD_S = 0.2
#: Then it is free for a little longer than SQLite sleeps between two looks at it.
_PAUSE_S = 0.11
_FIRST_BATCH, _MOST = 16, 4096
_SCRATCH = ".merging-"


class Merged(msgspec.Struct, frozen=True):
    """What came of merging one source."""

    source: str
    added: int = 0
    #: Games whose id the target had, or rows that it had.
    there: int = 0
    #: Rows of the target that a later one took the place of; games are never changed.
    newer: int = 0
    #: Games or rows that stayed behind, by the reason.
    left: dict[str, int] = {}
    #: Rows that came, by table; without those of the games themselves.
    rows: dict[str, int] = {}
    #: Columns, tables and triggers of the source that the target has no place for.
    no_place: tuple[str, ...] = ()
    #: What is counted: ``games`` or ``rows``.
    unit: str = "games"


def merge(
    target: Path,
    source: Path,
    complete_from: Callable[[str], int],
    *,
    patience_s: float = PATIENCE_S,
    progress: Callable[[int, int], None] = lambda done, total: None,
    begins: Callable[[int], None] = lambda there: None,
) -> Merged:
    """Bring the complete games of `source` that `target` lacks there; make it if there is none.

    `complete_from` says for a configuration such as ``hex8_2p``, or "", from how many moves a game
    counts as complete (K4). Both may have writers: of the source a snapshot is taken, which needs
    room beside the target. `progress` is told (games done, games in all); `begins` is told, before
    the first game comes over and if any is to come, how many of the source the target has: whoever
    notes that can still say what came over when this is killed.

    Raises `NotMergeable`, `sqlite.Unsound`, `sqlite.Locked`, `DiskFull` or `OSError`; what came
    over until then are whole games. Blocks.
    """
    with _attached(target, source, patience_s) as db:
        return _Merge(db, target, source, complete_from).run(progress, begins)


def merge_records(target: Path, source: Path, *, patience_s: float = PATIENCE_S) -> Merged:
    """Bring the rows of `source` that `target` lacks there, all or none; make it if there is none.

    For small databases that hold no games: the target is locked while it lasts. Of two rows with
    one key the later one stays; see `records`. Raises as `merge` does. Blocks.
    """
    with _attached(target, source, patience_s) as db, _names(source, target), _transaction(db):
        tables, no_place = merge_tables(db, source.name, target.name)
    left: dict[str, int] = {}
    for tally in tables.values():
        left |= tally.left
    return Merged(
        source=str(source),
        added=sum(tally.added for tally in tables.values()),
        there=sum(tally.there for tally in tables.values()),
        newer=sum(tally.newer for tally in tables.values()),
        left=left,
        rows={name: tally.added for name, tally in tables.items()},
        no_place=tuple(sorted(no_place)),
        unit="rows",
    )


@contextlib.contextmanager
def _attached(target: Path, source: Path, patience_s: float) -> Iterator[sqlite3.Connection]:
    """A connection that writes the target, with a sound snapshot of the source beside it."""
    target = target.resolve()
    if target.exists() and source.resolve().samefile(target):
        raise NotMergeable(f"{target.name} can't be merged into itself")
    if target.exists() and target.stat().st_size and not sqlite.is_sqlite(target):
        raise NotMergeable(f"{target.name} is no SQLite database")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    if not sqlite.is_sqlite(source):
        raise NotMergeable(f"{source.name} is no SQLite database")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(target.parent) as scratch, _room(target.parent, source):
        copy = scratch / "source.db"
        sqlite.snapshot(source, copy)
        if problem := sqlite.check(copy):
            raise Unsound(f"{source.name} is damaged: {problem}")
        with sqlite.writing(target, timeout_s=patience_s) as db:
            db.execute("ATTACH ? AS source", (str(copy),))
            # It is thrown away afterwards.
            db.execute("PRAGMA source.synchronous = OFF")
            yield db


class _Merge:
    """One source, attached as ``source`` to a connection to the target."""

    def __init__(
        self,
        db: sqlite3.Connection,
        target: Path,
        source: Path,
        complete_from: Callable[[str], int],
    ) -> None:
        self._db = db
        self._target = target
        self._source = source
        self._left: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._added = 0
        self._there = 0
        db.create_function("complete_from", 1, complete_from, deterministic=True)

    def run(self, progress: Callable[[int, int], None], begins: Callable[[int], None]) -> Merged:
        """Judge, choose, then copy a batch at a time."""
        with _names(self._source, self._target):
            self._judge()
            with _transaction(self._db):
                no_place = create_missing(self._db, self._target.name)
            tables, nowhere = copyings(self._db, self._target.name)
            if self._choose(tables[0]):
                begins(self._there)
            self._copy_all(tables, progress)
        return Merged(
            source=str(self._source),
            added=self._added,
            there=self._there,
            left=self._left,
            rows={name: count for name, count in self._rows.items() if name != GAMES},
            no_place=tuple(sorted({*no_place, *nowhere})),
        )

    def _judge(self) -> None:
        """Put the games of the source into ``judged``, and count those that are not complete."""
        db, name = self._db, self._source.name
        db.execute(
            "CREATE TEMP TABLE judged AS SELECT *, complete_from(config) AS needed"
            f" FROM ({judged(db, name)})"
        )
        twice = "SELECT id FROM judged WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 LIMIT 1"
        if found := db.execute(twice).fetchone():
            raise NotMergeable(f"{name}: table {GAMES} has {ID} {found[0]!r} more than once")
        short = db.execute(
            "SELECT config, needed, count(*) FROM judged"
            " WHERE id IS NOT NULL AND moves < needed GROUP BY 1, 2 ORDER BY 1"
        )
        for config, needed, count in short.fetchall():
            self._leave(f"{config or 'no configuration'}: fewer than {needed} moves", count)
        nameless = db.execute("SELECT count(*) FROM judged WHERE id IS NULL").fetchone()[0]
        self._leave(f"no {ID}", nameless)

    def _choose(self, games: Copying) -> bool:
        """Put the ids of complete games that the target lacks into ``chosen``; whether any is.

        Before it is locked: what is merged for the second time holds up nobody.
        """
        db, complete = self._db, "id IS NOT NULL AND moves >= needed"
        (total,) = db.execute(f"SELECT count(*) FROM judged WHERE {complete}").fetchone()
        db.execute("CREATE TEMP TABLE chosen (n INTEGER PRIMARY KEY, id)")
        db.execute("CREATE TEMP TABLE batch (id)")
        chosen = db.execute(
            "INSERT INTO chosen (id) SELECT id FROM judged AS batch"
            f" WHERE {complete} AND NOT {games.there} ORDER BY id"
        ).rowcount
        self._there = total - chosen
        db.execute("DROP TABLE judged")
        return bool(chosen)

    def _copy_all(self, tables: list[Copying], progress: Callable[[int, int], None]) -> None:
        total = self._db.execute("SELECT count(*) FROM chosen").fetchone()[0]
        at, size = 0, _FIRST_BATCH
        while at < total:
            began = time.monotonic()
            with _transaction(self._db):
                self._copy(tables, at, size)
            at += size
            held_s = time.monotonic() - began
            progress(min(at, total), total)
            size = max(1, size // 2) if held_s > _HOLD_S else min(_MOST, size * 2)
            if at < total:
                time.sleep(_PAUSE_S)

    def _copy(self, tables: list[Copying], at: int, size: int) -> None:
        """Copy those of the chosen games from `at` on that are not there now."""
        db = self._db
        db.execute("DELETE FROM batch")
        db.execute(
            "INSERT INTO batch SELECT id FROM chosen WHERE n > ? ORDER BY n LIMIT ?", (at, size)
        )
        for table in tables:
            count = db.execute(f"DELETE FROM batch WHERE {table.there}").rowcount
            if table.table == GAMES:
                self._there += count
            else:
                # A writer may be about to add their game; and they may be other rows than ours.
                reason = f"the target has rows of it in {table.table} without the game"
                self._leave(reason, count)
        offsets = {table.table: table.offset(db) for table in tables if table.number}
        for table in tables:
            count = table.copy(db, offsets)
            self._rows[table.table] = self._rows.get(table.table, 0) + count
        self._added += db.execute("SELECT count(*) FROM batch").fetchone()[0]

    def _leave(self, reason: str, count: int) -> None:
        if count:
            self._left[reason] = self._left.get(reason, 0) + count


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextlib.contextmanager
def _names(source: Path, target: Path) -> Iterator[None]:
    """Say which files do not fit where SQLite names only tables."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise NotMergeable(f"{source.name} does not fit into {target.name}: {error}") from error


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A hidden directory that goes at the end; what a killed process left of such goes first."""
    for old in directory.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), _locked(old):
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=directory, prefix=_SCRATCH) as made, _locked(Path(made)):
        yield Path(made)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a directory as one in use. Raises `OSError` if somebody does."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _room(directory: Path, source: Path) -> Iterator[None]:
    """Room for the snapshot and for what comes over, which is at most as much again."""
    wal = sqlite.side_file(source, "-wal")
    size_bytes = source.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    room = Reservation(directory, 2 * size_bytes)
    try:
        yield
    finally:
        room.release()
