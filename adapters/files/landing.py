"""How a file appears in a data root: gathered aside, proven, then renamed.

A file under its final name is whole, has the digest of its entry, passed the check of its type and
is on the disk. There is no other way but `group`, which does the same for many small ones at once.
Nothing here opens a connection, and nothing retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, wait
from pathlib import Path

import msgspec

from adapters.errors import CheckFailed, DigestMismatch, Interrupted, NeverReplaced, Regression
from adapters.files import checks, sqlite
from adapters.files.blocks import BlockMap
from adapters.files.digest import BLOCK_BYTES, hex_of
from adapters.files.durable import fsync_directories
from adapters.files.maps import MapStore
from adapters.files.partial import Partial, disk_errors, open_locked
from adapters.files.places import Reservation, confined, same_disk_directory
from adapters.files.scattered import Scattered, notes_of
from adapters.workers import DISK, finish
from streams.identity import Ownership, PathRules
from streams.values import DataEntry, is_token

#: A training set smaller than this share of the one it would replace is refused.
SMALLEST_NPZ_SHARE = 0.8
#: Refers to a file without opening it: to let go of it takes no lock of SQLite's away.
_NAMED_ONLY = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC


class Landed(msgspec.Struct, frozen=True):
    """What lies under the final name, read from the file itself."""

    bytes: int
    games: int | None = None
    samples: int | None = None


class Landing:
    """One entry on its way into a data root. Open it, write to it, commit it or abort it."""

    def __init__(
        self,
        root: Path,
        entry: DataEntry,
        target: Path,
        partial: Partial | Scattered,
        reservation: Reservation,
        rules: PathRules,
    ) -> None:
        self.root = root
        self.entry = entry
        #: The final name, absolute.
        self.path = target
        self._partial = partial
        self._reservation = reservation
        self._rules = rules
        #: Bytes that came from elsewhere since it was opened.
        self.received = 0
        self._in_any_order = False
        #: What was found in the bytes, once they are proven.
        self._inside: checks.Inside | None = None

    @classmethod
    async def open(
        cls,
        root: Path,
        entry: DataEntry,
        transfer: str,
        local_path: str,
        *,
        rules: PathRules | None = None,
    ) -> Landing:
        """Begin or continue what `transfer` has of `entry`, to appear at `root`/`local_path`.

        Raises `PathEscapes`, `DiskFull`, `DiskFailed`, `InUse`, or what `commit` would refuse.
        """
        known = rules or PathRules()
        opened: list[Landing] = []
        try:
            await finish(lambda: opened.append(cls._open(root, entry, transfer, local_path, known)))
        except asyncio.CancelledError:
            for landing in opened:
                await landing.abort()
            raise
        return opened[0]

    @classmethod
    def _open(
        cls, root: Path, entry: DataEntry, transfer: str, local_path: str, rules: PathRules
    ) -> Landing:
        target = confined(root, local_path)
        refuse_replacement(target, entry, rules)
        with disk_errors():
            directory = same_disk_directory(root, target, "partial")
            path = directory / partial_name(transfer, entry)
            have = min(_taken(path), entry.size_bytes)
            reservation = Reservation(directory, entry.size_bytes, have)
        try:
            partial = _resumed(path, entry.size_bytes)
        except BaseException:
            reservation.release()
            raise
        return cls(root.resolve(), entry, target, partial, reservation, rules)

    @property
    def offset(self) -> int:
        """How many bytes from the beginning are there already; while they come in any order, how
        many there are in all.
        """
        if self._in_any_order and isinstance(self._partial, Scattered):
            return self._partial.held_bytes
        return self._partial.offset

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the next bytes of the entry. Raises `DiskFull`, `DiskFailed`, or
        `DigestMismatch` if there are more bytes than the entry has: then nothing is kept.
        """
        if self.offset + len(data) > self.entry.size_bytes:
            await self.reset()
            raise DigestMismatch(f"more than the entry's {self.entry.size_bytes} bytes came")
        await (await self._in_order()).append(data)
        self.came(len(data))

    async def fill(self, receive: Callable[[memoryview], int], most: int = BLOCK_BYTES) -> int:
        """Append what `receive` puts into memory that it is given, in a thread; return how many
        bytes. It is given room for at most `most` and what is lacking, says how many it put, 0 if
        none came yet, and raises what ends the attempt, but never an `OSError`. Nothing is copied:
        the fast way for large entries.
        """
        partial = await self._in_order()
        lacking = self.entry.size_bytes - self.offset
        count = await partial.fill(receive, min(most, lacking, BLOCK_BYTES))
        self.came(count)
        return count

    @contextlib.asynccontextmanager
    async def shared(self, name: Path) -> AsyncIterator[None]:
        """Let another program append to the bytes, in a file of this name: it is the same file.

        Meanwhile `follow` takes in what came. The program must have ended when this does; the name
        is gone then, and what was not taken in. Raises `DiskFailed` where a file has but one name.
        """
        partial = await self._in_order()
        await partial.flush()
        with disk_errors():
            await finish(lambda: os.link(partial.path, name))
        try:
            yield
        finally:
            await finish(lambda: _let_go_of(name))
            await partial.trim()

    async def follow(self) -> int:
        """Take in what another program has appended, up to the entry's size; return how much."""
        partial, came = await self._in_order(), 0
        while lacking := min(self.entry.size_bytes - self.offset, BLOCK_BYTES):
            count = await partial.follow(lacking)
            if not count:
                break
            self.came(count)
            came += count
        return came

    async def reset(self) -> None:
        """Forget all bytes; the next one written is the first."""
        await (await self._in_order()).restart()

    @property
    def block_map(self) -> BlockMap | None:
        """What the blocks that are there already were checked against, where they came in any
        order; None where they did not.
        """
        return self._partial.map if isinstance(self._partial, Scattered) else None

    async def scatter(self, block_map: BlockMap) -> Scattered:
        """Go on in any order, with blocks that fit `block_map`; those that are there stay."""
        scattered = self._partial
        if not isinstance(scattered, Scattered) or scattered.map != block_map:
            sequential = await self._in_order()
            await sequential.flush()
            scattered = await finish(lambda: self._begin_scattered(sequential, block_map))
        self._in_any_order = True
        return scattered

    def came(self, nbytes: int) -> None:
        """So many bytes came from elsewhere for blocks that were put."""
        self.received += nbytes
        self._reservation.used(nbytes)

    def _begin_scattered(self, sequential: Partial, block_map: BlockMap) -> Scattered:
        # Ours at once: nobody else may be left to close it.
        begun = self._partial = _begun(sequential.path, sequential.let_go(), block_map)
        return begun

    async def _in_order(self) -> Partial:
        """The partial file for writing at its end."""
        if isinstance(self._partial, Scattered):
            scattered = self._partial
            return await finish(lambda: self._begin_in_order(scattered))
        return self._partial

    def _begin_in_order(self, scattered: Scattered) -> Partial:
        begun = self._partial = scattered.in_order()
        self._in_any_order = False
        return begun

    async def abort(self) -> None:
        """Stop without a file; the bytes are kept for the next attempt. May be called twice."""
        try:
            await self._partial.close()
        finally:
            self._reservation.release()

    async def commit(self) -> Landed:
        """`prove` the bytes and `publish` them, where nothing else comes to the same path."""
        try:
            await self.prove()
            return await self.publish()
        finally:
            await self.abort()

    async def prove(self) -> None:
        """Prove the bytes, and see that they are on the disk. May take long.

        Raises `Interrupted` if some are missing (they are kept), `DigestMismatch` (nothing is kept)
        or `CheckFailed` (they go to quarantine). If it is cancelled, it ends first.
        """
        await self._partial.written()
        if self.offset != self.entry.size_bytes:
            raise Interrupted(f"{self.offset} of {self.entry.size_bytes} bytes are there")
        # Beside the digest, which is far behind where blocks came in any order.
        looked = DISK.submit(self._look_inside)
        await self._partial.digested()
        self._inside = await finish(lambda: self._prove(looked))

    async def publish(self) -> Landed:
        """Give the bytes their final name. Only once they are proven.

        Raises `Regression` or `NeverReplaced` if what stands there may not be replaced: it stands
        untouched then, and the bytes are kept. If it is cancelled, it ends first, one way or the
        other.
        """
        inside = self._inside
        assert inside is not None
        with disk_errors():
            await finish(self._publish)
        size_bytes = self.entry.size_bytes
        return Landed(bytes=size_bytes, games=inside.games, samples=inside.samples)

    def _look_inside(self) -> checks.Inside:
        return checks.look_inside(self._partial.path, self.entry.path)

    def _prove(self, looked: Future[checks.Inside]) -> checks.Inside:
        partial = self._partial
        try:
            with disk_errors():
                partial.make_durable(self.entry.mtime)
        finally:
            # Nothing that reads the file may outlast us; what came of it counts if the digest is
            # right.
            wait([looked])
        with disk_errors():
            if partial.checksum() != self.entry.checksum:
                partial.path.unlink()
                self._forget_notes()
                raise DigestMismatch(f"{self.entry.path}: got {partial.checksum()}")
            inside = looked.result()
            if inside.problem:
                raise CheckFailed(f"{self.entry.path} {inside.problem}; see {self._quarantine()}")
            return inside

    def _publish(self) -> None:
        # Somebody may have moved directories or written files since the landing was opened.
        target = confined(self.root, self.path.relative_to(self.root).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_replacement(target, self.entry, self._rules)
        if checks.is_database(self.entry.path):
            # First these: a crash in between must not leave a new database with an old journal.
            sqlite.remove_side_files(target)
        if self._rules.ownership(self.entry.path) is Ownership.MERGED:
            appear(self._partial.path, target)
        else:
            _replace(self._partial.path, target)
        fsync_directories(target.parent, self.root)
        if isinstance(self._partial, Scattered):
            MapStore(self.root).put(self.entry.checksum, self._partial.map)
        self._forget_notes()

    def _forget_notes(self) -> None:
        notes_of(self._partial.path).unlink(missing_ok=True)

    def _quarantine(self) -> Path:
        directory = same_disk_directory(self.root, self.path, "quarantine")
        name = f"{hex_of(self.entry.checksum)}{self.path.suffix[:32]}"
        self._forget_notes()
        return self._partial.path.replace(directory / name)


def partial_name(transfer: str, entry: DataEntry) -> str:
    """What an unfinished file is called: bound to transfer and digest, and short enough."""
    short = transfer if is_token(transfer) else hashlib.sha256(transfer.encode()).hexdigest()
    return f"{short}.{hex_of(entry.checksum)}.partial"


def _resumed(path: Path, size_bytes: int) -> Partial | Scattered:
    """What is there of a partial file, however it came."""
    handle = open_locked(path)
    try:
        with disk_errors():
            scattered = Scattered.resume(path, handle, size_bytes)
            if scattered is not None:
                return scattered
            if notes_of(path).exists():
                # Which of its blocks are there, nobody knows.
                notes_of(path).unlink()
                os.ftruncate(handle, 0)
        return Partial.resume(path, handle, size_bytes)
    except BaseException:
        os.close(handle)
        raise


def _begun(path: Path, handle: int, block_map: BlockMap) -> Scattered:
    try:
        with disk_errors():
            return Scattered.begin(path, handle, block_map)
    except BaseException:
        os.close(handle)
        raise


def _let_go_of(name: Path) -> None:
    """Remove a name, whatever another program has made of it."""
    try:
        name.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(name)


def _taken(path: Path) -> int:
    """How much of the disk a file has, holes left out."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def may_be_refused(name: str, ownership: Ownership) -> bool:
    """Whether an entry of this name may have to yield to a file that has its final name already.

    Where not, nothing but a directory stands in its way.
    """
    return ownership is Ownership.MERGED or name.lower().endswith(".npz")


def refuse_replacement(target: Path, entry: DataEntry, rules: PathRules) -> None:
    """Raise if `entry` may not take the place of what stands at `target`."""
    if not os.path.lexists(target):
        return
    if target.is_dir():
        raise NeverReplaced(f"{target.name} is a directory")
    if rules.ownership(entry.path) is Ownership.MERGED:
        raise NeverReplaced(f"{entry.path} is only ever merged, and there is one already")
    with contextlib.suppress(OSError):
        old = target.stat().st_size
        if target.suffix.lower() == ".npz" and entry.size_bytes < old * SMALLEST_NPZ_SHARE:
            raise Regression(f"{entry.path}: {entry.size_bytes} bytes would replace {old}")


def _replace(partial: Path, target: Path) -> None:
    """Give a file its final name. What had it is let go of behind us: it takes a file system most
    of a second to free a large file.
    """
    former = -1
    with contextlib.suppress(OSError):
        former = os.open(target, _NAMED_ONLY)
    try:
        partial.replace(target)
    finally:
        if former >= 0:
            DISK.submit(os.close, former)


def appear(partial: Path, target: Path) -> None:
    """Give a file its final name only if nothing has that name."""
    try:
        os.link(partial, target)
    except FileExistsError as error:
        raise NeverReplaced(f"{target.name} appeared meanwhile") from error
    partial.unlink()
