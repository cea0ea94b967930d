"""Reads one file of a data root: its digest, its counts, whose it is.

A database is read only as a consistent snapshot, which is then what its entry means and what is
served. It must never call a locked or a growing file damaged, nor a changed copy of another node's
file our own.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from adapters.errors import DiskFull
from adapters.files import checks, sqlite
from adapters.files.blocks import Mapping
from adapters.files.digest import Stopped, checksum_of, hex_of
from adapters.files.durable import fsync_directories
from adapters.files.index import Row, State
from adapters.files.maps import MapStore
from adapters.files.places import OWN_DIRECTORY, Reservation
from adapters.files.walk import Print, print_of
from streams.identity import PathRules, data_type_of
from streams.values import DataEntry, DataType, config_key_in

logger = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
#: The block map of a larger file is made while it is read for its digest: others will ask for it.
MAPPED_FROM_BYTES = 8 << 20
#: A file changed this recently may change again without looking different.
_TOO_FRESH_NS = 100_000_000
_NEVER = -1


class Reading(msgspec.Struct, frozen=True):
    """What came of reading one file: a row, or a reason to wait, or a problem."""

    local: str
    #: What was known of the file when it was read.
    old: Row | None = None
    row: Row | None = None
    waiting: str = ""
    problem: str = ""
    #: How the file looked; a problem stands until it looks different.
    print: Print | None = None


class _Changing(Exception):
    """The file changed while it was read."""


class Reader:
    """Reads files of one root for one node. Blocks; belongs in a thread."""

    def __init__(
        self, root: Path, node: str, rules: PathRules, stopped: Callable[[], bool]
    ) -> None:
        self._root = root
        self._node = node
        self._rules = rules
        self._stopped = stopped
        self._maps = MapStore(root)

    def read(self, local: str, old: Row | None, expected: DataEntry | None) -> Reading:
        """Read the file at `local`, of which `old` is known and where `expected` may have landed.

        Raises `Stopped` only: whatever a file does to its reading is told of this file.
        """
        seen: Print | None = None
        try:
            seen = print_of(self._root / local)
            row = self._row(local, seen, old, expected)
        except _Changing:
            return Reading(local, old, waiting=f"{local} changes while it is read")
        except sqlite.Locked as error:
            return Reading(local, old, waiting=f"{local} is busy: {error}")
        except sqlite.Unsound as error:
            return Reading(local, old, problem=f"{local} is damaged: {error}", print=seen)
        except FileNotFoundError:
            return Reading(local, old, waiting=f"{local} went away while it was read")
        except (OSError, DiskFull) as error:
            return Reading(local, old, problem=f"{local} cannot be read: {error}")
        except Stopped:
            raise
        except Exception as error:
            # One file must not keep all others from being read.
            logger.exception("%s cannot be read", local)
            what = f"{type(error).__name__}: {error}"
            return Reading(local, old, problem=f"{local} cannot be read: {what}", print=seen)
        if isinstance(row, str):
            return Reading(local, old, problem=f"{local} {row}", print=seen)
        return Reading(local, old, row)

    def received(self, local: str, entry: DataEntry, seen: Print) -> Row:
        """The row of a file that came by a transfer."""
        return Row(
            local=local,
            print=seen,
            entry=entry,
            holder=local,
            holder_print=seen,
            received=True,
            said=entry.checksum,
        )

    def is_foreign(self, local: str, entry: DataEntry) -> bool:
        """Whether a file is another node's, so that our own changes to it mean nothing."""
        return self._rules.logical(local, self._node) != entry.path

    def claimed(self, local: str, seen: Print, claims: Iterable[DataEntry]) -> DataEntry | None:
        """Which of `claims` the file holds byte for byte; None if none."""
        fitting = [claim for claim in claims if claim.size_bytes == seen.size]
        # With a ``-wal`` beside it, a database holds more than its file does.
        if not fitting or seen.wal_size:
            return None
        checksum = self._stable_checksum(local, seen)
        return next((claim for claim in fitting if claim.checksum == checksum), None)

    def adopted(self, local: str, entry: DataEntry) -> Row | None:
        """The row of a file of which the log says that it was received; None if it is not here,
        or is our own to change. Raises `OSError` or `Stopped`.
        """
        try:
            seen = print_of(self._root / local)
            if self.claimed(local, seen, [entry]):
                return self.received(local, entry, _wary(seen))
        except (FileNotFoundError, _Changing):
            return None
        if not self.is_foreign(local, entry):
            return None
        row = self.received(local, entry, _wary(seen))
        return msgspec.structs.replace(row, state=State.SPOILED)

    def _row(
        self, local: str, seen: Print, old: Row | None, expected: DataEntry | None
    ) -> Row | str:
        claims = [expected] if expected else []
        if old and (old.received or old.state is State.SPOILED):
            claims.append(old.entry)
        if claim := self.claimed(local, seen, claims):
            came = self.received(local, claim, _wary(seen))
            mended = old is not None and old.state is State.SPOILED and claim is old.entry
            # It was said to be gone while it was spoiled: then it is said to be here again.
            return msgspec.structs.replace(came, said=old.said) if old and mended else came
        if old and self.is_foreign(local, old.entry):
            return msgspec.structs.replace(old, print=_wary(seen), state=State.SPOILED)
        began = time.monotonic()
        row = self._own(local, seen, old)
        if isinstance(row, str):
            return row
        took = time.monotonic() - began
        said, said_at = (old.said, old.said_at) if old else ("", 0)
        return msgspec.structs.replace(
            row, said=said, said_at=said_at, read_s=took, read_at=time.time()
        )

    def _own(self, local: str, seen: Print, old: Row | None) -> Row | str:
        path = self._root / local
        if checks.is_database(local) and seen.size:
            if not sqlite.is_sqlite(path):
                return "is named like a database and is none"
            return self._own_database(local, seen, old)
        checksum = self._stable_checksum(local, seen)
        problem, games, samples = checks.look_inside(path, local)
        if problem:
            return problem
        if not seen.same_file(path.stat()):
            raise _Changing
        entry = self._entry(local, seen, seen.size, checksum, games, samples)
        return Row(local, _wary(seen), entry, holder=local, holder_print=seen)

    def _own_database(self, local: str, seen: Print, old: Row | None) -> Row:
        directory = self._root / OWN_DIRECTORY / SNAPSHOTS
        directory.mkdir(parents=True, exist_ok=True)
        fresh = directory / f"{uuid.uuid4().hex}.tmp"
        room = Reservation(directory, seen.size + seen.wal_size)
        try:
            sqlite.snapshot(self._root / local, fresh, self._stopped)
            checksum = self._checksum(fresh)
            games, _ = checks.counts_of(fresh, local)
            quality = sqlite.mean_quality(fresh) if games else None
            kept = directory / f"{hex_of(checksum)}.db"
            if not self._is_kept(kept, checksum, old):
                fresh.replace(kept)
                fsync_directories(directory, directory)
        finally:
            room.release()
            fresh.unlink(missing_ok=True)
        holder_print = print_of(kept)
        entry = self._entry(local, seen, holder_print.size, checksum, games, None)
        entry = msgspec.structs.replace(entry, quality=quality)
        holder = kept.relative_to(self._root).as_posix()
        return Row(local, _wary(seen), entry, holder=holder, holder_print=holder_print)

    def _is_kept(self, kept: Path, checksum: str, old: Row | None) -> bool:
        """Whether a snapshot with this content is there already, perhaps that of another database.

        It stays then: who knows it by its size, time and inode would not find it any more.
        """
        try:
            there = kept.stat()
            if old and old.entry.checksum == checksum and old.holder_print.same_file(there):
                return True
            return checksum_of(kept, self._stopped) == checksum
        except OSError:
            return False

    def _entry(
        self,
        local: str,
        seen: Print,
        size_bytes: int,
        checksum: str,
        games: int | None,
        samples: int | None,
    ) -> DataEntry:
        data_type = data_type_of(local) or DataType.METADATA
        if data_type is DataType.GAMES and checks.is_database(local) and games is None:
            data_type = DataType.METADATA
        return DataEntry(
            path=self._rules.logical(local, self._node),
            data_type=data_type,
            config_key=config_key_in(local),
            size_bytes=size_bytes,
            checksum=checksum,
            mtime=seen.mtime,
            games=games,
            samples=samples,
        )

    def _stable_checksum(self, local: str, seen: Print) -> str:
        """The digest of a file that looked the same before and after. Raises `_Changing`."""
        checksum = self._checksum(self._root / local)
        if not seen.same_file((self._root / local).stat()):
            raise _Changing
        return checksum

    def _checksum(self, path: Path) -> str:
        """The digest of a file, and its block map along with it."""
        size_bytes = path.stat().st_size
        if size_bytes < MAPPED_FROM_BYTES:
            return checksum_of(path, self._stopped)
        mapping = Mapping(size_bytes)
        checksum = checksum_of(path, self._stopped, mapping.add)
        if (made := mapping.made()) is not None:
            self._maps.put(checksum, made)
        return checksum


def remove_unfinished(root: Path) -> None:
    """Remove what a killed process left half made among the snapshots."""
    directory = root / OWN_DIRECTORY / SNAPSHOTS
    for pattern in ("*.tmp*", ".repair-*/*", ".repair-*"):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()


def _wary(seen: Print) -> Print:
    """A print that no file has if it was changed only just now, so that it is read once more.

    File times advance in ticks: a second change within the same tick would go unnoticed.
    """
    if 0 <= time.time_ns() - max(seen.mtime_ns, seen.wal_mtime_ns) < _TOO_FRESH_NS:
        return msgspec.structs.replace(seen, ctime_ns=_NEVER)
    return seen
