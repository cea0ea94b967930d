"""What is known of the files of a data root: in memory, and in the index for after a restart.

It never looks at data files itself and decides nothing. Where the index can't be written, what is
known stays in memory and is written once it can be; `problem` says so meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from adapters.files.contents import Contents
from adapters.files.index import Disk, Expected, Index, Row, State, Superseded
from adapters.files.places import OWN_DIRECTORY
from adapters.files.reading import remove_unfinished
from adapters.files.removal import put_back
from adapters.workers import finish
from streams.values import DataEntry

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Known:
    """Rows, expected entries and contents. Lives on one event loop; one thread uses the index."""

    def __init__(self, root: Path, keep_snapshots_s: float, clock: Callable[[], float]) -> None:
        self.rows: dict[str, Row] = {}
        self.contents = Contents(root, keep_snapshots_s)
        self.expected: dict[str, Expected] = {}
        #: Where within the root disks are mounted, or should be.
        self.disks: frozenset[str] = frozenset()
        #: Why a restart would forget what is known; "" if it would not.
        self.problem = ""
        self._root = root
        self._clock = clock
        self._local_of: dict[str, str] = {}
        self._index: Index | None = None
        self._opening = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")

    async def ready(self) -> None:
        """Open the index, once."""
        if self._index is not None:
            return
        async with self._opening:
            if self._index is None:
                self._index = await self._in_thread(self._open)

    async def close(self) -> None:
        """Let go of the index."""
        async with self._opening:
            if self._index is not None:
                index, self._index = self._index, None
                await self._in_thread(index.close)
        self._thread.shutdown(wait=False)

    def row_of(self, path: str) -> Row | None:
        """The row of a logical path; None if there is none."""
        return self.rows.get(self._local_of.get(path, ""))

    def here(self) -> Iterator[Row]:
        """Rows of files that are here as their entry says."""
        return (row for row in self.rows.values() if row.state is State.HERE)

    async def put(self, changes: Mapping[str, Row | None], came: Iterable[str] = ()) -> None:
        """Set rows by local path, or forget those that are None, and expect what `came` no more.
        Durable on return, if it can be.

        What a restart forgets of it is found again: by reading the files, or in the log.
        """
        before = dict(self.contents.superseded)
        for local, new in changes.items():
            old = self.rows.pop(local, None)
            if old is not None and self._local_of.get(old.entry.path) == local:
                del self._local_of[old.entry.path]
            if new is not None:
                self.rows[local] = new
                self._local_of[new.entry.path] = local
            self.contents.replace(old, new, self._clock())
        superseded = _difference(before, self.contents.superseded)
        no_more = {local: None for local in came if self.expected.pop(local, None) is not None}
        await self._save(superseded=superseded, rows=changes, expected=no_more)

    async def expect(self, entries: Mapping[str, DataEntry]) -> None:
        """Remember that entries will appear at their local paths.

        Durable on return; raises OSError where it can't be, for then no file must appear.
        """
        coming = {local: Expected(local, entry) for local, entry in entries.items()}
        self.expected |= coming
        await self._save(expected=coming)
        if coming and self.problem and not await self._write_anew():
            for local in coming:
                self.expected.pop(local, None)
            raise OSError(self.problem)

    async def mounted(self, disks: frozenset[str]) -> None:
        """Remember that disks are mounted within the root. Durable on return, if it can be."""
        before, self.disks = self.disks, disks
        gone: dict[str, Disk | None] = dict.fromkeys(before - disks)
        await self._save(disks=gone | {local: Disk(local) for local in disks - before})

    async def sweep(self) -> None:
        """Remove snapshots that nobody needs any more."""
        before = dict(self.contents.superseded)
        rows, now = dict(self.rows), self._clock()
        await self._in_thread(lambda: self.contents.sweep(rows, now))
        await self._save(superseded=_difference(before, self.contents.superseded))

    async def mend(self) -> None:
        """Write the index anew if somebody removed it, or if it could not be written lately."""
        index = self._index
        if index is not None and (self.problem or not await self._in_thread(index.exists)):
            await self._write_anew()

    def _open(self) -> Index:
        path = self._root / OWN_DIRECTORY / "inventory.sqlite"
        try:
            index = Index(path)
        except sqlite3.Error as error:
            # A node whose disk is full can still give away what it has, and delete.
            self.problem = f"the inventory's index can't be opened: {error}"
            logger.warning("%s; it is made anew once it can be", self.problem)
            index = Index(path, kept=False)
        self.rows = {row.local: self._to_be_read(row) for row in index.rows()}
        self._local_of = {row.entry.path: row.local for row in self.rows.values()}
        self.expected = {one.local: one for one in index.expected()}
        self.disks = frozenset(one.local for one in index.disks())
        remove_unfinished(self._root)
        put_back(self._root)
        self.contents.load(self.rows, index.superseded(), self._clock())
        return index

    def _to_be_read(self, row: Row) -> Row:
        """A row as it was; one to be read again where its snapshot is not what it was."""
        if row.holder == row.local or row.state is not State.HERE:
            return row
        with contextlib.suppress(OSError):
            if row.holder_print.same_file((self._root / row.holder).stat()):
                return row
        return msgspec.structs.replace(row, print=msgspec.structs.replace(row.print, inode=0))

    async def _save(self, **tables: Mapping[str, msgspec.Struct | None]) -> None:
        index = self._index
        # What could not be written lately is written anew as a whole, not with every change.
        if index is None or not any(tables.values()) or self.problem:
            return
        try:
            await self._in_thread(lambda: index.change(tables))
        except sqlite3.Error:
            await self._write_anew()

    async def _write_anew(self) -> bool:
        """Write all that is known; whether that was possible."""
        index = self._index
        assert index is not None
        tables: dict[str, dict[str, msgspec.Struct]] = {
            "rows": dict(self.rows),
            "superseded": dict(self.contents.superseded),
            "expected": dict(self.expected),
            "disks": {local: Disk(local) for local in self.disks},
        }
        try:
            await self._in_thread(lambda: index.recreate(tables))
        except (sqlite3.Error, OSError) as error:
            self.problem = f"the inventory's index can't be written: {error}"
            logger.warning("%s", self.problem)
            return False
        self.problem = ""
        return True

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await finish(function, executor=self._thread)


def _difference(
    before: Mapping[str, Superseded], after: Mapping[str, Superseded]
) -> dict[str, Superseded | None]:
    gone: dict[str, Superseded | None] = {name: None for name in before if name not in after}
    return gone | {name: one for name, one in after.items() if before.get(name) != one}
