"""Named, ordered key-value tables in LMDB, and the only module that imports `lmdb`.

One environment per process and path, one writing thread, short read transactions. It must never
interpret a value. Everything in it can be rebuilt from the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec

_PACK = msgspec.msgpack.Encoder()
T = TypeVar("T")
#: Address space, not disk: growing later must wait for every reading of the process to end.
_FIRST_MAP_BYTES = 1 << 36
_MAX_DATABASES = 64
_MAX_READERS = 512


class StoreError(Exception):
    """Base of all that a store may raise."""


class StoreFull(StoreError):
    """The disk refuses to grow the store. Make room; nothing was written."""


class StoreCorrupt(StoreError):
    """The files are no sound store: they are refolded from the log by who writes them next."""


class StoreMissing(StoreError):
    """There is no store at this path yet."""


#: Has a byte for each who opened the store and has not worked with it for a while yet.
_OPENED = "opened"
#: LMDB's words for pages that are not what they should be.
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError, lmdb.BadTxnError)


def _damaged(path: Path, why: object) -> StoreCorrupt:
    text = str(why).removeprefix(f"{path}: ")
    return StoreCorrupt(
        f"the views in {path} are damaged ({text}): "
        "a coordinator that is started with this directory folds them anew"
    )


def _none_at(path: Path) -> str:
    return (
        f"no views at {path}: has a coordinator run with this directory? "
        "One that has just been started needs a moment; a machine with only an agent has none"
    )


class Reader:
    """A consistent reading of all tables at one moment. Keep it short; never across an await."""

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self._txn = txn
        self._tables = tables
        #: Values asked for so far: how far a reading is that takes long.
        self.steps = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of a key; None if there is none."""
        self.steps += 1
        value: bytes | None = self._txn.get(key, db=self._tables[table])
        return value

    def row(self, table: str, key: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        """A row, unpacked; None if there is none."""
        value = self.get(table, key)
        return None if value is None else decoder.decode(value)

    def scan(
        self, table: str, prefix: bytes = b"", *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys under `prefix` in byte order, from `start` on (a full key) if it is given."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if reverse:
                yield from self._scan_back(cursor, prefix)
                return
            if not cursor.set_range(start or prefix) if (start or prefix) else not cursor.first():
                return
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    return
                yield key, value

    def any(self, table: str, prefix: bytes) -> bool:
        """Whether a key under `prefix` is there."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            return bool(cursor.set_range(prefix) and cursor.key().startswith(prefix))

    @staticmethod
    def _scan_back(cursor: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        found = cursor.set_range(prefix + b"\xff" * 8) if prefix else False
        if not (cursor.prev() if found else cursor.last()):
            return
        for key, value in cursor.iterprev():
            if not key.startswith(prefix):
                return
            yield key, value

    def count(self, table: str) -> int:
        """How many keys a table has."""
        return int(self._txn.stat(self._tables[table])["entries"])

    def digest(self, tables: Sequence[str]) -> str:
        """SHA-256 over all keys and values of these tables, in order."""
        total = hashlib.sha256()
        for name in tables:
            total.update(name.encode() + b"\x00")
            for key, value in self.scan(name):
                total.update(b"%d:%d:" % (len(key), len(value)))
                total.update(key)
                total.update(value)
        return "sha256:" + total.hexdigest()


class Writer(Reader):
    """A transaction: all of it is stored, or nothing.

    What is put into a table is kept aside and written in order of keys at the end, or before the
    table is scanned: most of what a batch of facts writes is written again by the next fact.
    """

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        super().__init__(txn, tables)
        #: Table to key to new value: bytes, a row that is not packed yet, or None if it is gone.
        self._late: dict[str, dict[bytes, Any]] = {name: {} for name in tables}

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of a key as this transaction has it; None if there is none."""
        late = self._late[table]
        if key in late:
            return _packed(late[key])
        return super().get(table, key)

    def row(self, table: str, key: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        """A row as this transaction has it; None if there is none."""
        late = self._late[table]
        if key in late:
            value = late[key]
            return decoder.decode(value) if type(value) is bytes else value
        return super().row(table, key, decoder)

    def put(self, table: str, key: bytes, value: bytes | msgspec.Struct = b"") -> None:
        """Set a key, to bytes or to a row."""
        self._late[table][key] = value

    def add(self, table: str, key: bytes, value: bytes = b"") -> bool:
        """Set a key unless it is there; whether it was set."""
        if self._has(table, key):
            return False
        self._late[table][key] = value
        return True

    def delete(self, table: str, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        there = self._has(table, key)
        if there:
            self._late[table][key] = None
        return there

    def _has(self, table: str, key: bytes) -> bool:
        late = self._late[table]
        # Only whether it is there is asked: a row that waits is not packed for that.
        return late[key] is not None if key in late else super().get(table, key) is not None

    def scan(
        self, table: str, prefix: bytes = b"", *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As `Reader.scan`, of the table as this transaction has it."""
        self._flush_table(table)
        return super().scan(table, prefix, start=start, reverse=reverse)

    def any(self, table: str, prefix: bytes) -> bool:
        """As `Reader.any`, of the table as this transaction has it."""
        self._flush_table(table)
        return super().any(table, prefix)

    def count(self, table: str) -> int:
        """How many keys a table has in this transaction."""
        self._flush_table(table)
        return super().count(table)

    def flush(self) -> None:
        """Give everything to the transaction."""
        for table in self._late:
            self._flush_table(table)

    def _flush_table(self, table: str) -> None:
        late, handle = self._late[table], self._tables[table]
        if not late:
            return
        for key in sorted(late):
            value = _packed(late[key])
            if value is None:
                self._txn.delete(key, db=handle)
            else:
                self._txn.put(key, value, db=handle)
        late.clear()


def _packed(value: Any) -> bytes | None:
    return value if value is None or type(value) is bytes else _PACK.encode(value)


class _Environment:
    """An open LMDB environment and who uses it: LMDB allows one per path and process."""

    def __init__(self, path: Path, env: Any, handles: dict[str, Any], writable: bool) -> None:
        self.path = path
        self.env = env
        self.handles = handles
        self.writable = writable
        self._file = _id_of(path)
        #: Whether damage was met.
        self.damaged = False
        self.users = 1
        #: Readings under way in this process; the map may only be replaced while there are none.
        self.readings = 0
        self.changed = threading.Condition()

    @property
    def in_place(self) -> bool:
        """Whether the file that is open is the one that others would open."""
        return _id_of(self.path) == self._file

    def begin(self) -> Any:
        """A reading; `end` it."""
        with self.changed:
            try:
                txn = self.env.begin()
            except lmdb.MapResizedError:
                self._wait_until_unread()
                self.env.set_mapsize(0)
                txn = self.env.begin()
            self.readings += 1
            return txn

    def end(self, txn: Any) -> None:
        """A reading is over."""
        with self.changed:
            txn.abort()
            self.readings -= 1
            self.changed.notify_all()

    def remap(self, map_bytes: int) -> None:
        """Give the map another size, or with 0 the one that another process gave it."""
        with self.changed:
            self._wait_until_unread()
            self.env.set_mapsize(map_bytes)

    def _wait_until_unread(self) -> None:
        self.changed.wait_for(lambda: self.readings == 0)


def _id_of(path: Path) -> tuple[int, int] | None:
    try:
        found = (path / "data.mdb").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lacks(path: Path, env: Any) -> int:
    """By how many bytes the file is too short for its pages.

    To read a page that is not there ends a process by a signal, without a word.
    """
    pages = int(env.info()["last_pgno"]) + 1
    return pages * int(env.stat()["psize"]) - (path / "data.mdb").stat().st_size


_environments: dict[Path, _Environment] = {}
_environments_lock = threading.Lock()


class Store:
    """The tables of one directory. Use `open` and `close`."""

    def __init__(self, shared: _Environment, path: Path) -> None:
        self._shared = shared
        self._env = shared.env
        self._tables = shared.handles
        self._write_lock = threading.Lock()
        self.path = path

    @classmethod
    def open(
        cls, path: Path, tables: Sequence[str], *, writable: bool = True, durable: bool = True
    ) -> Store:
        """Open, or with `writable` make, the store in directory `path`.

        `durable=False` leaves syncing to `sync`: for a rebuild, which is worthless until it is
        whole. Raises StoreMissing if there is nothing to read, StoreCorrupt if it can't be read.
        """
        if not writable and not (path / "data.mdb").exists():
            raise StoreMissing(_none_at(path))
        path.mkdir(parents=True, exist_ok=True)
        place = path.resolve()
        with _environments_lock:
            shared = _environments.get(place)
            if shared is None or (writable and not shared.writable):
                if shared is not None:
                    raise StoreError(f"{path} is open for reading in this process; close it first")
                shared = cls._open_environment(place, tables, writable, durable)
                _environments[place] = shared
            else:
                shared.users += 1
        return cls(shared, place)

    @staticmethod
    def _open_environment(
        path: Path, tables: Sequence[str], writable: bool, durable: bool
    ) -> _Environment:
        try:
            env = lmdb.open(
                str(path),
                map_size=_FIRST_MAP_BYTES if writable else 0,
                max_dbs=_MAX_DATABASES,
                max_readers=_MAX_READERS,
                readonly=not writable,
                sync=durable,
                metasync=durable,
            )
            handles = {}
            if (lacks := _lacks(path, env)) > 0:
                env.close()
                raise _damaged(path, f"the file was cut short by {lacks} bytes")
            for name in tables:
                with contextlib.suppress(lmdb.NotFoundError, lmdb.ReadonlyError):
                    handles[name] = env.open_db(name.encode(), create=writable)
            env.reader_check()
        except lmdb.Error as error:
            raise _damaged(path, error) from error
        return _Environment(path, env, handles, writable)

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A short reading."""
        txn = self._shared.begin()
        try:
            yield Reader(txn, self._tables)
        except _DAMAGE as error:
            raise self._met(error) from error
        finally:
            self._shared.end(txn)

    def _met(self, why: object) -> StoreCorrupt:
        self._shared.damaged = True
        return _damaged(self.path, why)

    def write(self, work: Callable[[Writer], T]) -> T:
        """Run `work` in a transaction and commit it; run it again in a larger map if it is full.

        Blocks for a disk sync: call it from the one thread that writes. If `work` raises, nothing
        was stored.
        """
        with self._write_lock:
            while True:
                try:
                    if (lacks := self._lacks()) > 0:
                        # To grow would fill what was cut off with zeros.
                        raise self._met(f"the file was cut short by {lacks} bytes")
                    with self._env.begin(write=True) as txn:
                        writer = Writer(txn, self._tables)
                        result = work(writer)
                        writer.flush()
                    self._fill()
                    return result
                except _DAMAGE as error:
                    raise self._met(error) from error
                except lmdb.MapFullError:
                    self._shared.remap(self._env.info()["map_size"] * 2)
                except lmdb.MapResizedError:
                    self._shared.remap(0)
                except lmdb.DiskError as error:
                    raise StoreFull(f"{self.path}: {error}") from error

    def _lacks(self) -> int:
        # Whoever removed the file under who uses it is found out by `in_place`.
        return _lacks(self.path, self._env) if self.in_place else 0

    def _fill(self) -> None:
        """A page at the end that was freed in the transaction that took it is never written."""
        if self._lacks() > 0:
            pages = int(self._env.info()["last_pgno"]) + 1
            os.truncate(self.path / "data.mdb", pages * int(self._env.stat()["psize"]))

    @contextlib.contextmanager
    def trial(self) -> Iterator[Writer]:
        """A transaction that is never committed: what is written in it can be read, and is gone.

        Only in the thread that began it, and nobody else can write meanwhile. Its end leaves the
        store as it was. Raises StoreFull.
        """
        with self._write_lock:
            txn = self._env.begin(write=True)
            try:
                yield Writer(txn, self._tables)
            except (lmdb.MapFullError, lmdb.DiskError) as error:
                raise StoreFull(f"{self.path}: {error}") from error
            finally:
                txn.abort()

    @property
    def in_place(self) -> bool:
        """Whether the files are still those that others open."""
        return self._shared.in_place

    @property
    def damaged(self) -> bool:
        """Whether damage was met since it was opened."""
        return self._shared.damaged

    @property
    def size_bytes(self) -> int:
        """What its files take on the disk."""
        return sum(file.stat().st_blocks * 512 for file in self.path.iterdir())

    def clear_stale_readers(self) -> int:
        """Free the pages that killed readers pin; how many there were."""
        return int(self._env.reader_check())

    def sync(self) -> None:
        """Put everything written onto the disk."""
        self._env.sync(True)

    def copy(self, target: Path) -> None:
        """A compacted copy, consistent with its own checkpoint."""
        target.mkdir(parents=True, exist_ok=True)
        self._env.copy(str(target), compact=True)

    def close(self) -> None:
        """Let go of the files, once nothing is written; no reading of this process may go on."""
        with self._write_lock, _environments_lock:
            self._shared.users -= 1
            if self._shared.users == 0:
                del _environments[self.path]
                self._env.close()


class StoreDirectory:
    """Where the current generation of a store lives, so that a rebuild can switch in one step.

    <root>/current -> gen-3        a symlink, replaced by rename
    <root>/gen-3/data.mdb
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def current(self) -> Path | None:
        """The directory of the current generation; None before the first."""
        link = self.root / "current"
        return self.root / link.readlink() if link.is_symlink() else None

    def next(self) -> Path:
        """A new, empty directory for the next generation."""
        numbers = [int(p.name[4:]) for p in self.root.glob("gen-*") if p.name[4:].isdigit()]
        path = self.root / f"gen-{max(numbers, default=0) + 1}"
        path.mkdir(parents=True)
        return path

    def switch(self, path: Path) -> None:
        """Make `path` the current generation; readers see the old or the new, never neither."""
        link = self.root / f".current-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(self.root / "current")

    def opened(self) -> int:
        """It is opened to be written; how many who did so before did not say `sound` since."""
        file = self.root / _OPENED
        try:
            before = len(file.read_bytes())
        except OSError:
            before = 0
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"." * (before + 1))
        return before

    def sound(self) -> None:
        """Who opened it works with it, or rebuilt it."""
        with contextlib.suppress(OSError):
            (self.root / _OPENED).unlink(missing_ok=True)

    def remove_others(self) -> None:
        """Delete all generations but the current one."""
        current = self.current()
        for path in self.root.glob("gen-*"):
            if path != current:
                shutil.rmtree(path, ignore_errors=True)


class StoreReader:
    """The current generation of a store, for readers in any process.

    Works while nothing writes it, and follows a switch to a rebuilt generation by itself.
    """

    def __init__(self, root: Path, tables: Sequence[str]) -> None:
        self._directory = StoreDirectory(root)
        self._tables = tables
        self._store: Store | None = None

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A short reading. Raises StoreMissing before the first fold."""
        current = self._directory.current()
        if current is None:
            raise StoreMissing(_none_at(self._directory.root))
        if self._store is None or self._store.path != current.resolve():
            self.close()
            self._store = Store.open(current, self._tables, writable=False)
        with self._store.read() as reader:
            yield reader

    def copy(self, target: Path) -> None:
        """A compacted copy of the current generation. Raises StoreMissing before the first fold."""
        with self.read():
            assert self._store is not None
            self._store.copy(target)
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        if self._store is not None:
            self._store.close()
            self._store = None
