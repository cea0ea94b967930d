"""What this node holds: found by scanning, remembered across restarts, served by digest.

It only reads data and removes none but what it is told to, and its own snapshots. What was not
looked at is never said to be gone, and what was never marked as reported is reported again.
"""

from __future__ import annotations

import asyncio
import math
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from adapters.files.contents import KEEP_S
from adapters.files.digest import Stopped, checksum_on_disk
from adapters.files.index import Row, State
from adapters.files.known import Known
from adapters.files.reading import Reader, Reading
from adapters.files.removal import IDLE_S, Kept, remove
from adapters.files.rot import Rot, reread, set_aside
from adapters.files.turns import Turns
from adapters.files.walk import Walk, is_disk, not_mounted, print_of, shown, walk
from adapters.files.watching import changes_under
from adapters.workers import finish, settled
from streams.identity import PathRules, escapes
from streams.values import DataEntry, Proof, config_key_in

T = TypeVar("T")

RESCAN_S = 60.0
#: A database that takes long to copy is copied again only after so many times as long.
_REST_FACTOR = 10.0
_LONG_READ_S = 0.5
#: What a directory is that is not there.
_NOWHERE = (0, 0)
#: Small files are read in batches of about this long, so that others get their turn.
_BATCH_S = 0.1


class Scan(msgspec.Struct, frozen=True):
    """What a scan found that was not yet reported."""

    changed: tuple[DataEntry, ...] = ()
    #: Logical paths that were reported or received and are no longer here as they were.
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    #: Those of them that hide what was asked for: a disk that is not there, or a directory that
    #: can't be read and had some of it.
    blind: tuple[str, ...] = ()
    #: What could not be read yet, and why: somebody writes it.
    waiting: tuple[str, ...] = ()


class Counts(msgspec.Struct, frozen=True):
    """The inventory in numbers, for health."""

    files: int = 0
    bytes: int = 0
    received: int = 0
    #: Old snapshots of databases that may still be asked for.
    superseded_snapshots: int = 0
    #: Files of suffixes the data plane has no word for, by suffix.
    unknown: Mapping[str, int] = {}
    problems: int = 0
    waiting: int = 0
    scanned_at: float = 0.0
    scan_s: float = 0.0
    #: Why a restart would forget what is known; "" if it would not.
    forgetful: str = ""
    #: Which disk is not there, so that nothing is said of what lies on it; "" if all are.
    missing: str = ""


class Inventory:
    """The files of one data root. One instance per root and process, on one event loop."""

    def __init__(
        self,
        root: Path,
        node: str,
        rules: PathRules | None = None,
        *,
        keep_snapshots_s: float = KEEP_S,
        rescan_s: float = RESCAN_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root.resolve()
        self._node = node
        self._rules = rules or PathRules()
        self._rescan_s = rescan_s
        self._clock = clock
        self._halt = threading.Event()
        #: How often reading has gone a little further: where it stands still, nothing is read.
        self.steps = 0
        self._reader = Reader(self._root, node, self._rules, self._stepped)
        self._known = Known(self._root, keep_snapshots_s, clock)
        #: Files that could not be understood, as they looked then.
        self._failed: dict[str, Reading] = {}
        self._counts = Counts()
        self._missing = ""
        self._root_id: tuple[int, int] | None = None
        self._scanning = asyncio.Lock()
        self._turns = Turns()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="scan")
        #: Apart from scans: who waits for a proof must not wait for all that a scan reads.
        self._proofs = ThreadPoolExecutor(1, thread_name_prefix="proof")
        #: Apart from both: it reads slowly, all day, what nobody waits for.
        self._scrubs = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        #: And apart from that: what somebody found to be wrong is looked at at once.
        self._looks = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._closed = threading.Event()

    # What a node says

    async def scan(self, config_key: str | None = None) -> Scan:
        """Look at everything, read what changed, and tell what was not yet reported.

        With `config_key` only files of that configuration are read and told, at once even if they
        were read a moment ago. Scans wait for each other.
        """
        async with self._scanning:
            await self._known.ready()
            if problem := await self._check_root():
                self._missing = problem
                return Scan(problems=(problem,), blind=(problem,))
            try:
                return await self._scan(config_key)
            except Stopped:
                return Scan(waiting=("the inventory is being closed",))

    async def reported(
        self, entries: Iterable[DataEntry], removed: Iterable[str] = (), sequence: int = 0
    ) -> None:
        """Remember that these were said, at this sequence of the log, so that scans don't say them
        again. Durable on return.
        """
        await self._known.ready()
        changes: dict[str, Row | None] = {}
        for entry in entries:
            if (row := self._known.row_of(entry.path)) is not None:
                said_at = row.said_at if row.said == entry.checksum else sequence
                changes[row.local] = msgspec.structs.replace(
                    row, said=entry.checksum, said_at=said_at
                )
        for path in removed:
            if (row := self._known.row_of(path)) is not None:
                gone = row.state is State.GONE
                changes[row.local] = None if gone else msgspec.structs.replace(row, said="")
        await self._known.put(changes)

    # What comes in

    def alone(self, local_paths: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """As long as this lasts, nobody else lets anything appear at these paths.

        Whoever has it must not ask for it again: it would wait for itself.
        """
        return self._turns.at(local_paths)

    async def expect(self, entries: Mapping[str, DataEntry]) -> None:
        """Remember, before they are committed, what will appear, by local path.

        If the process dies between commit and `landed`, a later scan still knows the files for
        received ones. Durable on return; raises OSError where it can't be, or where the disk that
        they belong on is not mounted, for then no file must appear.
        """
        await self._known.ready()
        if problem := self._missing_disk(entries):
            raise OSError(problem)
        await self._known.expect(entries)

    async def landed(self, entries: Mapping[str, DataEntry]) -> set[str]:
        """Record received replicas that were committed, by local path; return those that are gone
        again. Durable on return.
        """
        await self._known.ready()
        rows = await finish(lambda: self._landed(entries))
        await self._known.put(rows, came=entries)
        return entries.keys() - rows.keys()

    def _local(self, path: str) -> str:
        """Where this node keeps a logical path."""
        return self._rules.local(path, self._node)

    def _landed(self, entries: Mapping[str, DataEntry]) -> dict[str, Row | None]:
        found: dict[str, Row | None] = {}
        root = str(self._root)
        for local, entry in entries.items():
            with suppress(FileNotFoundError):
                seen = print_of(f"{root}/{local}")
                found[local] = self._reader.received(local, entry, seen)
        return found

    async def adopt(self, entries: Iterable[DataEntry]) -> tuple[DataEntry, ...]:
        """Learn again what was received, from the log, after the index was lost.

        Files are read again. One that is not what the log says is told by the next scan as
        removed if it is another node's; one that can't be read is still expected, so that it is
        never taken for ours. Returns what is here as the log says.
        """
        await self._known.ready()
        adopted, unread = [], {}
        async with self._scanning:
            for entry in entries:
                local = self._local(entry.path)
                row = self._known.rows.get(local)
                if row is None or not row.received or row.entry.checksum != entry.checksum:
                    try:
                        row = await self._on_disk(partial(self._reader.adopted, local, entry))
                    except OSError:
                        unread[local] = entry
                        continue
                if row is not None:
                    row = msgspec.structs.replace(row, entry=entry)
                    await self._known.put({local: row})
                    adopted += [entry] if row.state is State.HERE else []
            await self._known.expect(unread)
        return tuple(adopted)

    # What is here

    async def held(self) -> list[DataEntry]:
        """All that this node holds, own and received."""
        await self._known.ready()
        return [row.entry for row in self._known.here()]

    async def told(self) -> list[DataEntry]:
        """Of what this node holds, what the log knows of: it was said, or came by a transfer."""
        await self._known.ready()
        return [row.entry for row in self._known.here() if row.said == row.entry.checksum]

    async def arrived(self, paths: Sequence[str]) -> list[DataEntry | None]:
        """What was received under each logical path and is here unchanged; None if nothing was.

        A file that got its name just before the process died is read first.
        """
        await self._known.ready()
        expected = [local for local in map(self._local, paths) if local in self._known.expected]
        if there := [local for local in expected if (self._root / local).exists()]:
            async with self._scanning:
                await self._read_all(there)
        rows = map(self._known.row_of, paths)
        return [
            row.entry if row is not None and row.received and row.state is State.HERE else None
            for row in rows
        ]

    async def unread(self, paths: Iterable[str]) -> set[str]:
        """Those of these logical paths under which a file may be here that could not be read: it
        is busy, being written, out of reach or on a disk that fails or is full. Nobody can say
        that it is gone. What was read and is damaged is not among them.
        """
        await self._known.ready()
        unknown = [path for path in paths if self._known.row_of(path) is None]
        return await self._on_disk(lambda: {path for path in unknown if self._may_be_here(path)})

    def _may_be_here(self, path: str) -> bool:
        local = self._local(path)
        failed = self._failed.get(local)
        if escapes(local) or (failed is not None and failed.print is not None):
            return False
        if self._missing_disk([local]):
            return True
        try:
            return not stat.S_ISDIR((self._root / local).lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def keeps_own(self, path: str) -> bool:
        """Whether a file of this node's own stands where a received one would have to."""
        local = self._local(path)
        row = self._known.rows.get(local)
        if row is not None:
            return not row.received
        return local not in self._known.expected and (self._root / local).exists()

    def written_at(self, path: str) -> float | None:
        """Where in the log a file of this node's own was said that stands where a received one
        would have to; infinity if it has changed since it was looked at, or was not said yet. None
        if none stands there, only what can't be read, or what was never looked at.
        """
        local = self._local(path)
        row = self._known.rows.get(local)
        if row is None or row.state is not State.HERE or local in self._known.expected:
            return None
        try:
            seen = os.stat(f"{self._root}/{local}")  # noqa: PTH116 - of each that comes
        except FileNotFoundError:
            return None
        failed = self._failed.get(local)
        if failed is not None and failed.print is not None and failed.print.same_file(seen):
            return None
        if not row.print.same_file(seen):
            return math.inf
        if row.received:
            return None
        return row.said_at if row.said == row.entry.checksum else math.inf

    async def forget_where(self) -> None:
        """Where in the log anything was said is not true of another log. Durable on return."""
        await self._known.ready()
        rows = [row for row in self._known.rows.values() if row.said_at]
        await self._known.put({r.local: msgspec.structs.replace(r, said_at=0) for r in rows})

    def locate(self, checksum: str) -> Path | None:
        """A file that holds exactly this content, as far as its size, time and inode tell.

        From any thread. What is found may be replaced at any time: open it and keep it open.
        """
        return self._known.contents.locate(checksum)

    async def prove(self, path: str, checksum: str) -> Proof:
        """Read what is here under a logical path again, now, and say whether it is `checksum`.

        Of a live database that is the snapshot its entry means, and the database must still be
        there. Nothing that was read before counts.
        """
        await self._known.ready()
        row = self._known.row_of(path)
        if row is None or row.state is not State.HERE:
            return Proof(node=self._node, proven=False, reason=f"nothing is known here of {path}")
        if row.entry.checksum != checksum:
            return Proof(
                node=self._node,
                proven=False,
                checksum=row.entry.checksum,
                size_bytes=row.entry.size_bytes,
                reason="another content is here under this path",
            )
        return await finish(lambda: self._prove(row), executor=self._proofs)

    async def remove(self, path: str, checksum: str, *, idle_s: float = IDLE_S) -> int:
        """Delete what is here under a logical path, if it is `checksum`; bytes that became free.

        0 if nothing is here. Raises `removal.Kept`, and then it is untouched. The caller says
        that it is gone and marks that as `reported`.
        """
        await self._known.ready()
        async with self._scanning:
            row = self._known.row_of(path)
            if row is None or row.state is State.GONE:
                return 0
            if row.state is not State.HERE or row.entry.checksum != checksum:
                raise Kept(f"{row.local} is not {checksum}")
            freed = await finish(lambda: remove(self._root, row, now=self._clock(), idle_s=idle_s))
            await self._went(row)
            return freed

    def _prove(self, row: Row) -> Proof:
        holder = self._root / row.holder
        try:
            if not (self._root / row.local).is_file():
                raise FileNotFoundError(f"{row.local} is gone")
            found = checksum_on_disk(holder, self._closed.is_set)
            size_bytes = holder.stat().st_size
        except OSError as error:
            return Proof(node=self._node, proven=False, reason=f"it can't be read: {error}")
        except Stopped:
            return Proof(node=self._node, proven=False, reason="the inventory is being closed")
        proven = found == row.entry.checksum
        return Proof(
            node=self._node,
            proven=proven,
            checksum=found,
            size_bytes=size_bytes,
            reason="" if proven else f"the disk holds {found}",
        )

    def at_rest(self) -> list[tuple[float, DataEntry]]:
        """Files that can be read again as they are, and when each was last read; 0 if never.

        Not among them are live databases: what is served of those is a snapshot.
        """
        rows = [row for row in self._known.here() if row.holder == row.local]
        return [(row.read_at, row.entry) for row in rows if not row.print.wal_size]

    def spoiled(self) -> list[DataEntry]:
        """Copies of other nodes' files that were changed in place, as they should be."""
        rows = self._known.rows.values()
        return [row.entry for row in rows if row.state is State.SPOILED and row.received]

    async def scrub(self, path: str, *, pause: Callable[[int], float] | None = None) -> Rot | None:
        """Read what is here under a logical path again; what is wrong with it, None if nothing.

        `pause` says after each block, of so many bytes, how many seconds the disk is to rest. What
        is read without any does not wait for what takes its time.

        A received file that rotted is set aside, durably: it is `removed` in scans from then on,
        until that is marked as `reported`. One of this node's own stays where it is. Scans and
        proofs need not wait while it reads.
        """
        await self._known.ready()
        row = self._known.row_of(path)
        if row is None or row.state is State.GONE or row.holder != row.local:
            return None

        def rest(nbytes: int) -> None:
            if pause is not None:
                self._closed.wait(pause(nbytes))

        try:
            found = await finish(
                lambda: reread(self._root, row, self._closed.is_set, rest),
                executor=self._looks if pause is None else self._scrubs,
            )
        except Stopped:
            return None
        if found is None or not row.received or found.seen is None:
            return found
        async with self._scanning:
            now = self._known.row_of(path)
            # While it was read, it may have become another file; what was said of it is no matter.
            if now is None or not _same_but_said(now, row):
                return None
            try:
                if not await finish(partial(set_aside, self._root, row, found)):
                    return None
            except OSError:
                # Such a disk may not let it be moved either: it is said, and stays.
                return found
            await self._went(row)
            return msgspec.structs.replace(found, set_aside=True)

    async def _went(self, row: Row) -> None:
        """Note that a row's file is gone, unless another has landed there meanwhile."""
        now = self._known.rows.get(row.local)
        if now is not None and _same_but_said(now, row):
            await self._known.put({row.local: _gone(now)})

    def counts(self) -> Counts:
        """The inventory as of the last scan, in numbers."""
        return msgspec.structs.replace(
            self._counts, forgetful=self._known.problem, missing=self._missing
        )

    async def watch(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Yield whenever something changed, and at least every `rescan_s`, until `stop` is set."""
        async for _ in changes_under(self._root, stop, self._rescan_s):
            yield

    async def close(self) -> None:
        """Stop reading and let go of the index."""
        self._halt.set()
        self._closed.set()
        await self._known.close()
        self._disk.shutdown(wait=False)
        self._proofs.shutdown(wait=False)
        self._scrubs.shutdown(wait=False)
        self._looks.shutdown(wait=False)

    # Reading

    async def _scan(self, config_key: str | None) -> Scan:
        began, now = time.monotonic(), self._clock()
        before = dict(self._known.rows)
        seen = await self._on_disk(lambda: walk(self._root, now, self._known.disks))
        await self._on_disk(lambda: self._call_by_known_names(seen, before))
        # It may have gone while it was walked, and then what is not there is not gone.
        if problem := await self._root_problem():
            self._missing = problem
            return Scan(problems=(problem,), blind=(problem,))
        missing = frozenset(one for one in self._known.disks if seen.was_unseen(one))
        await self._known.mounted(missing | seen.disks)
        self._missing = "; ".join(not_mounted(one) for one in sorted(missing))
        due = await self._on_disk(
            lambda: [one for one in seen.files if self._is_due(one, seen, config_key)]
        )
        waiting = [f"{shown(one)} is being written" for one in sorted(seen.writing)]
        waiting += await self._read_all(due)
        await self._miss(seen, before)
        await self._known.sweep()
        found = self._outcome(seen, waiting, config_key)
        self._count(seen, found, now, time.monotonic() - began)
        return found

    def _call_by_known_names(self, seen: Walk, before: Mapping[str, Row]) -> None:
        """Let what landed through a symlinked directory be seen there, not only where it leads."""
        known = {local for local, row in before.items() if row.state is not State.GONE}
        for local in (known | self._known.expected.keys()) - seen.files.keys():
            above, _, name = local.rpartition("/")
            there = os.path.realpath(self._root / above)
            real = os.path.relpath(f"{there}/{name}", self._root)
            if real == local or real not in seen.files:
                continue
            seen.files[local] = seen.files[real]
            if real in seen.writing:
                seen.writing.add(local)
            if real not in before:
                del seen.files[real]

    def _is_due(self, local: str, seen: Walk, config_key: str | None) -> bool:
        if local in seen.writing or (config_key and config_key_in(local) != config_key):
            return False
        now_print, row = seen.files[local], self._known.rows.get(local)
        if (failed := self._failed.get(local)) and failed.print == now_print:
            return False
        if row is None or row.state is State.GONE:
            return True
        rests = row.read_s > _LONG_READ_S and config_key is None
        # A clock that was set back says nothing of how long ago it was.
        if rests and 0 <= self._clock() - row.read_at < _REST_FACTOR * row.read_s:
            return False
        return row.print != now_print

    async def _read_all(self, due: list[str]) -> list[str]:
        """Read files and record what they are; return why some must wait."""
        waiting: list[str] = []
        at = 0
        while at < len(due):
            batch = await self._on_disk(partial(self._read_batch, due, at))
            at += len(batch)
            changes: dict[str, Row | None] = {}
            for one in batch:
                waiting += [one.waiting] if one.waiting else []
                # What landed while it was read is newer than the reading.
                if self._known.rows.get(one.local) is one.old:
                    changes |= self._consequences(one)
            received = [one.local for one in batch if one.row is not None and one.row.received]
            await self._known.put(changes, came=received)
        return waiting

    def _read_batch(self, due: list[str], first: int) -> list[Reading]:
        began, batch = time.monotonic(), []
        for local in due[first:]:
            expected = self._known.expected.get(local)
            old = self._known.rows.get(local)
            batch.append(self._reader.read(local, old, expected.entry if expected else None))
            if time.monotonic() - began > _BATCH_S:
                break
        return batch

    def _consequences(self, one: Reading) -> dict[str, Row | None]:
        if one.row is not None:
            self._failed.pop(one.local, None)
            return {one.local: one.row}
        if not one.problem:
            return {}
        self._failed[one.local] = one
        damaged = one.print is not None and one.old is not None and one.old.holder == one.local
        return {one.local: _gone(one.old)} if damaged and one.old is not None else {}

    async def _miss(self, seen: Walk, before: Mapping[str, Row]) -> None:
        """Note which files are no longer there. What could not be looked at is not among them."""
        self._failed = {k: v for k, v in self._failed.items() if k in seen.files}
        there = seen.files.keys() | seen.writing
        changes = {
            local: _gone(row)
            for local, row in before.items()
            if local not in there
            and row.state is not State.GONE
            # A row that changed since then is of a file that landed after the walk.
            and self._known.rows.get(local) is row
            and not seen.was_unseen(local)
        }
        await self._known.put(changes)

    def _outcome(self, seen: Walk, waiting: list[str], config_key: str | None) -> Scan:
        changed, removed, spoiled = [], [], []
        for row in self._known.rows.values():
            if row.state is State.SPOILED:
                spoiled.append(f"{row.local} was received and is no longer {row.entry.checksum}")
            if config_key and config_key_in(row.local) != config_key:
                continue
            if row.state is not State.HERE:
                removed += [row.entry.path] if row.said else []
            elif row.said != row.entry.checksum and row.local not in seen.writing:
                changed.append(row.entry)
        failed = [one.problem for one in self._failed.values()]
        return Scan(
            changed=tuple(changed),
            removed=tuple(removed),
            problems=(*seen.problems, *failed, *spoiled),
            blind=tuple(self._hides(seen, config_key)),
            waiting=tuple(waiting),
        )

    def _hides(self, seen: Walk, config_key: str | None) -> Iterator[str]:
        for directory, problem in seen.blind.items():
            hidden = (
                config_key in (None, config_key_in(row.local))
                for row in self._known.rows.values()
                if not directory or row.local.startswith(f"{directory}/")
            )
            if directory in self._known.disks or any(hidden):
                yield problem

    def _count(self, seen: Walk, found: Scan, now: float, took_s: float) -> None:
        here = list(self._known.here())
        self._counts = Counts(
            files=len(here),
            bytes=sum(row.entry.size_bytes for row in here),
            received=sum(row.received for row in here),
            superseded_snapshots=len(self._known.contents.superseded),
            unknown=dict(seen.unknown),
            problems=len(found.problems),
            waiting=len(found.waiting),
            scanned_at=now,
            scan_s=took_s,
        )

    def _stepped(self) -> bool:
        """Whether reading has to stop; asked for every few megabytes, however large a file is."""
        self.steps += 1
        return self._halt.is_set()

    async def _check_root(self) -> str:
        """Why nothing can be said of the root; "" if all is well."""
        problem = await self._root_problem()
        if not problem:
            await self._known.mend()
        return problem

    async def _root_problem(self) -> str:
        return await self._on_disk(self._look_at_root)

    def _look_at_root(self) -> str:
        found = _identity(self._root)
        if self._root_id is None and found != _NOWHERE:
            self._root_id = found
        if found != self._root_id:
            return f"{self._root} is not the directory it was: is its disk mounted?"
        return ""

    def _missing_disk(self, local_paths: Iterable[str]) -> str:
        """Why what is to appear would appear on another disk than it belongs on; "" if it would
        not.
        """
        if self._root_id is not None and (problem := self._look_at_root()):
            return problem
        for disk in self._known.disks:
            if any(local.startswith(f"{disk}/") for local in local_paths):
                directory = self._root / disk
                if directory.is_dir() and not is_disk(directory):
                    return not_mounted(disk)
        return ""

    async def _on_disk(self, function: Callable[[], T]) -> T:
        """Run something long; stop it early if the caller is cancelled."""
        job = asyncio.wrap_future(self._disk.submit(function))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            self._halt.set()
            await settled(job)
            self._halt.clear()
            raise


def _gone(row: Row) -> Row | None:
    """What remains of a file that is no longer there: nothing, if nobody was told of it."""
    return msgspec.structs.replace(row, state=State.GONE) if row.said else None


def _same_but_said(now: Row, row: Row) -> bool:
    return msgspec.structs.replace(now, said=row.said) == row


def _identity(root: Path) -> tuple[int, int]:
    try:
        found = root.stat()
    except OSError:
        return _NOWHERE
    return found.st_dev, found.st_ino
