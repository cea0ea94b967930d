"""A file that grows at its end, and the digest of what it holds. It never gets a final name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from adapters.digest import BLOCK_BYTES, feed, named
from adapters.transport import DiskFailed, DiskFull, InUse
from adapters.workers import finish, settled, start

#: Larger pieces make the kernel fetch large pages, which a virtual machine may have to zero first.
PIECE_BYTES = 256 << 10


class Partial:
    """The bytes of one transfer so far. One writer, on one event loop.

    Bytes are gathered in one of two blocks while a thread writes and digests the other, so memory
    is flat and a slow disk slows the writer down.
    """

    def __init__(self, path: Path, handle: int, offset: int, sha: hashlib._Hash) -> None:
        self.path = path
        self.offset = offset
        self._handle = handle
        self._written = offset
        self._sha = sha
        self._fill = 0
        self._blocks: list[bytearray] = []
        self._job: asyncio.Future[None] | None = None
        self._broken = False

    @classmethod
    def open(cls, path: Path, size_bytes: int) -> Partial:
        """Begin a file or go on with it, digesting what is there. Blocks; belongs in a thread.

        Raises `InUse` if someone else has it open for writing.
        """
        with disk_errors():
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _lock(handle, path)
                if os.fstat(handle).st_size > size_bytes:
                    os.ftruncate(handle, 0)
                with open(handle, "rb", buffering=0, closefd=False) as file:
                    sha = feed(hashlib.sha256(), file)
                    return cls(path, handle, file.tell(), sha)
            except BaseException:
                os.close(handle)
                raise

    async def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes at the end. They may reach the disk only at the next `flush`."""
        view = memoryview(data).cast("B")
        while view:
            block = self._block()
            taken = min(len(view), len(block) - self._fill)
            block[self._fill : self._fill + taken] = view[:taken]
            self._fill += taken
            self.offset += taken
            view = view[taken:]
            if self._fill == len(block):
                await self._pass_on()

    async def flush(self) -> None:
        """Wait until all bytes were given to the file and to the digest."""
        await self._pass_on()
        await self._wait()

    async def restart(self) -> None:
        """Forget all bytes."""
        await self._quiet()
        await finish(lambda: os.ftruncate(self._handle, 0))
        self._sha = hashlib.sha256()
        self.offset = self._written = self._fill = 0
        self._broken = False

    async def close(self) -> None:
        """Let go of the file, with what was appended in it if the disk takes it."""
        if self._handle < 0:
            return
        await self._quiet()
        handle, self._handle = self._handle, -1
        data, at = self._take_block(), self._written
        await finish(lambda: _close(handle, data, at))

    def checksum(self) -> str:
        """The digest of what was flushed."""
        return named(self._sha)

    def make_durable(self, mtime: float) -> None:
        """Give the file its mode and time, and flush it to the disk. Blocks."""
        os.fchmod(self._handle, 0o644)
        if mtime > 0:
            os.utime(self._handle, ns=(int(mtime * 1e9), int(mtime * 1e9)))
        os.fsync(self._handle)

    def _block(self) -> bytearray:
        if not self._blocks:
            self._blocks = [bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)]
        return self._blocks[0]

    def _take_block(self) -> memoryview:
        if not self._fill or self._broken:
            return memoryview(b"")
        data = memoryview(self._blocks[0])[: self._fill]
        self._blocks.reverse()
        self._fill = 0
        return data

    async def _pass_on(self) -> None:
        await self._wait()
        if data := self._take_block():
            self._job = start(self._write, data, self._written)
            self._written += len(data)

    async def _wait(self) -> None:
        if self._job is not None:
            with disk_errors():
                await asyncio.shield(self._job)
            self._job = None

    async def _quiet(self) -> None:
        if self._job is not None:
            await settled(self._job)
            self._job = None

    def _write(self, data: memoryview, at: int) -> None:
        try:
            _write_all(self._handle, data, at)
        except OSError:
            self._broken = True
            raise
        self._sha.update(data)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what the operating system says of a disk into the errors of a transport."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(str(error)) from error
        raise DiskFailed(str(error)) from error


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(f"{path.name} is being written") from error


def _write_all(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data[:PIECE_BYTES], at)
        data, at = data[count:], at + count


def _close(handle: int, data: memoryview, at: int) -> None:
    try:
        # The attempt has ended already; what does not fit is fetched again.
        with contextlib.suppress(OSError):
            _write_all(handle, data, at)
    finally:
        os.close(handle)
