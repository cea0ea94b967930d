"""A file that grows at its end, and the digest of what it holds. It never gets a final name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from adapters.errors import DiskFailed, DiskFull, InUse, TransportError
from adapters.files.digest import BLOCK_BYTES, feed, named
from adapters.files.durable import Flushing, set_mtime
from adapters.memory import room
from adapters.workers import DIGESTS, DISK, SOCKETS, finish

#: Smaller ones cost a third more. Larger ones make the kernel use pages so large that a virtual
#: machine may first have to ask its host for them: a third of the speed at 1 MiB.
PIECE_BYTES = 128 << 10
#: Blocks of one transfer: those being filled, written and digested.
BLOCKS = 4


class Partial:
    """The bytes of one transfer so far. One writer, on one event loop.

    Bytes pass through a few blocks of memory, which are given back once they are digested; so
    memory is flat, and a slow disk slows the writer down.
    """

    def __init__(
        self, path: Path, handle: int, offset: int, sha: hashlib._Hash, block_bytes: int
    ) -> None:
        self.path = path
        #: Bytes that were handed over so far.
        self.offset = offset
        self._handle = handle
        self._written = offset
        self._block_bytes = block_bytes
        self._blocks = _Blocks(block_bytes)
        self._digester = _Digester(sha, self._blocks)
        self._gathering: memoryview | None = None
        self._fill = 0
        self._job: Future[None] | None = None
        self._flushing = Flushing(handle)
        self._broken = False

    @classmethod
    def resume(cls, path: Path, handle: int, size_bytes: int) -> Partial:
        """Go on with an open file, digesting what is there; `handle` is its own from now on.
        Blocks; belongs in a thread.
        """
        with disk_errors():
            if os.fstat(handle).st_size > size_bytes:
                os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            with open(handle, "rb", buffering=0, closefd=False) as file:
                sha = feed(hashlib.sha256(), file)
                block_bytes = max(1, min(BLOCK_BYTES, size_bytes))
                return cls(path, handle, file.tell(), sha, block_bytes)

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. They may reach the disk only at the next `flush`."""
        view = memoryview(data).cast("B")
        while view:
            block = await self._block()
            taken = min(len(view), self._block_bytes - self._fill)
            block[self._fill : self._fill + taken] = view[:taken]
            self._fill += taken
            self.offset += taken
            view = view[taken:]
            if self._fill == self._block_bytes:
                await self._pass_on()

    async def fill(self, receive: Callable[[memoryview], int], most: int) -> int:
        """Let `receive` put up to `most` bytes into memory it is given, in a thread; return how
        many. It says how many it put, and may raise instead. On cancellation it is waited for.
        """
        await self._pass_on()
        await self._wait()
        with disk_errors():
            return await finish(lambda: self._take_in(receive, most), executor=SOCKETS)

    async def follow(self, most: int) -> int:
        """Take in up to `most` bytes that somebody else has appended; return how many."""
        await self._pass_on()
        await self._wait()
        with disk_errors():
            return await finish(lambda: self._take_over(most))

    async def trim(self) -> None:
        """Forget what somebody else has appended and was not taken in."""
        with disk_errors():
            await finish(lambda: os.ftruncate(self._handle, self._written))

    async def written(self) -> None:
        """Wait until all bytes were given to the file; begin to flush them."""
        await self._pass_on()
        await self._wait()
        self._flushing.rest()

    async def digested(self) -> None:
        """As `written`, and wait until they were given to the digest."""
        await self.written()
        await finish(self._digester.wait)

    async def flush(self) -> None:
        """As `digested`, and wait for what the disk says of it."""
        await self.digested()
        with disk_errors():
            await finish(self._flushing.wait)

    async def restart(self) -> None:
        """Forget all bytes."""
        await finish(self._quiet)
        await finish(lambda: os.ftruncate(self._handle, 0))
        self._digester = _Digester(hashlib.sha256(), self._blocks)
        self._flushing = Flushing(self._handle)
        self.offset = self._written = self._fill = 0
        self._broken = False

    async def close(self) -> None:
        """Let go of the file, with what was appended in it if the disk takes it."""
        if self._handle < 0:
            return

        def close() -> None:
            self._quiet()
            handle, self._handle = self._handle, -1
            _close(handle, memoryview(self._gathering or b"")[: self._fill], self._written)

        # In one go: whoever is cancelled meanwhile would leave the file open, and locked.
        await finish(close)

    def checksum(self) -> str:
        """The digest of what was flushed."""
        return named(self._digester.sha)

    def make_durable(self, mtime: float) -> None:
        """Give the file its mode and time, and flush it to the disk. Only once it is digested.
        Blocks.
        """
        self._flushing.wait()
        make_durable(self._handle, mtime)

    def let_go(self) -> int:
        """The open file, which is somebody else's from now on. Only once it is flushed."""
        handle, self._handle = self._handle, -1
        return handle

    async def _block(self) -> memoryview:
        """The block that bytes are gathered in; a new one once there is one."""
        if self._gathering is None:
            self._gathering = self._blocks.fresh()
        if self._gathering is None:
            self._gathering = await finish(self._blocks.take)
        return self._gathering

    async def _pass_on(self) -> None:
        """Give what was gathered to the disk, once it has taken what came before."""
        await self._wait()
        if self._fill and self._gathering is not None:
            block, count, at = self._gathering, self._fill, self._written
            self._gathering, self._fill = None, 0
            self._written += count
            self._job = DISK.submit(self._keep, block, count, at)

    async def _wait(self) -> None:
        if self._job is not None:
            with disk_errors():
                await asyncio.shield(asyncio.wrap_future(self._job))
            self._job = None

    def _quiet(self) -> None:
        """Let everything end that was begun, whatever comes of it. Blocks, also in a thread of
        `DISK`: what was submitted there before has begun by now.
        """
        if self._job is not None:
            self._job.exception()
            self._job = None
        self._digester.wait()
        self._flushing.settle()
        if self._broken:
            self._fill = 0

    def _take_in(self, receive: Callable[[memoryview], int], most: int) -> int:
        block = self._blocks.take()
        try:
            count = receive(block[:most])
        except BaseException:
            self._blocks.give_back(block)
            raise
        at, self._written = self._written, self._written + count
        self.offset = self._written
        self._keep(block, count, at)
        return count

    def _take_over(self, most: int) -> int:
        block = self._blocks.take()
        try:
            count = os.preadv(self._handle, [block[:most]], self._written)
            self._flushing.wrote(count)
        except BaseException:
            self._blocks.give_back(block)
            raise
        self.offset = self._written = self._written + count
        self._digester.put(block, count)
        return count

    def _keep(self, block: memoryview, count: int, at: int) -> None:
        try:
            write_all(self._handle, block[:count], at)
            self._flushing.wrote(count)
        except OSError:
            self._broken = True
            raise
        self._digester.put(block, count)


class _Blocks:
    """A few blocks of memory, made when first needed."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._made = 0

    def fresh(self) -> memoryview | None:
        """A free block, if there is one or one may be made."""
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        if self._made == BLOCKS:
            return None
        self._made += 1
        return room(self._block_bytes)

    def take(self) -> memoryview:
        """A free block, once there is one. Blocks."""
        return self.fresh() or self._free.get()

    def give_back(self, block: memoryview) -> None:
        """Let it be used again."""
        self._free.put(block)


class _Digester:
    """Digests blocks in the order in which they are put, behind whoever puts them."""

    def __init__(self, sha: hashlib._Hash, blocks: _Blocks) -> None:
        self.sha = sha
        self._blocks = blocks
        self._waiting: deque[tuple[memoryview, int]] = deque()
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()

    def put(self, block: memoryview, count: int) -> None:
        """Digest the first `count` bytes of a block, then give it back."""
        with self._lock:
            self._waiting.append((block, count))
            if self._idle.is_set():
                self._idle.clear()
                DIGESTS.submit(self._digest_one)

    def wait(self) -> None:
        """Wait until all that was put is digested. Blocks."""
        self._idle.wait()

    def _digest_one(self) -> None:
        block, count = self._waiting.popleft()
        self.sha.update(block[:count])
        self._blocks.give_back(block)
        with self._lock:
            # Queue up again behind the blocks of other transfers.
            if self._waiting:
                DIGESTS.submit(self._digest_one)
            else:
                self._idle.set()


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the system, or a database on it, says of a disk into the errors of a transport."""
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        raise disk_error(error) from error


def disk_error(error: OSError | sqlite3.DatabaseError) -> TransportError:
    """What `disk_errors` turns an error into."""
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return (DiskFull if full else DiskFailed)(str(error))


def open_locked(path: Path) -> int:
    """Open a file for writing, as nobody else does. Raises `InUse` if somebody has. Blocks."""
    with disk_errors():
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise InUse(f"{path.name} is being written") from error
            raise
        return handle


def make_durable(handle: int, mtime: float) -> None:
    """Give a file its mode and time, and flush it to the disk. Blocks."""
    os.fchmod(handle, 0o644)
    set_mtime(handle, mtime)
    os.fsync(handle)


def write_all(handle: int, data: memoryview, at: int) -> None:
    """Write all of `data` at an offset, in pieces that cost least. Blocks."""
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written : written + PIECE_BYTES], at + written)


def _close(handle: int, data: memoryview, at: int) -> None:
    try:
        # The attempt has ended already; what does not fit is fetched again.
        with contextlib.suppress(OSError):
            write_all(handle, data, at)
    finally:
        os.close(handle)
