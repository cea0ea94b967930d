"""A file whose blocks come in any order, from anywhere, and the digest of the whole.

Each block is checked against the block map before it is written. Which blocks are there is written
down beside the file as it happens, with the map they were checked against, so that whoever dies
loses nothing; whether the whole is right is still for its SHA-256 to say. It never gets a final
name.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path

from adapters.files.blocks import BlockMap, MalformedMap, block_count_of, blocks_in, encoded_bytes
from adapters.files.digest import BLOCK_BYTES, named
from adapters.files.durable import Flushing
from adapters.files.partial import Partial, disk_errors, make_durable, write_all
from adapters.memory import room
from adapters.workers import DIGESTS, finish

#: Files under way, by checksum: what of them is there can be given to others already.
Underway = MutableMapping[str, "Scattered"]
NOTES_SUFFIX = ".blocks"


class Scattered:
    """The blocks of one transfer so far. `put` may be called from several threads."""

    def __init__(self, path: Path, handle: int, block_map: BlockMap, notes: mmap.mmap) -> None:
        self.path = path
        self.map = block_map
        self._handle = handle
        self._notes = notes
        self._at = encoded_bytes(block_map.size_bytes)
        self._lock = threading.Lock()
        self._behind = _Behind(handle)
        self._flushing = Flushing(handle)
        #: Called once the file is let go of.
        self.on_close: Callable[[], None] = lambda: None
        self._have = bytearray(notes[self._at :])
        self._prefix = 0
        self._lacking = self._have.count(0)
        self._last_lacks = bool(self._have) and not self._have[-1]

    @classmethod
    def resume(cls, path: Path, handle: int, size_bytes: int) -> Scattered | None:
        """Go on with what is there by its notes; None if there are none that fit. Blocks."""
        notes = _open_notes(notes_of(path), size_bytes)
        if notes is None:
            return None
        try:
            block_map = BlockMap.decode(notes[: encoded_bytes(size_bytes)], size_bytes)
        except MalformedMap:
            notes.close()
            return None
        if os.fstat(handle).st_size != size_bytes:
            notes.close()
            return None
        return cls(path, handle, block_map, notes)

    @classmethod
    def begin(cls, path: Path, handle: int, block_map: BlockMap) -> Scattered:
        """Begin with those blocks that are in the file already, by what they hold. Blocks."""
        have = bytearray(block_map.count)
        for index, data in blocks_in(
            handle, min(os.fstat(handle).st_size, block_map.size_bytes), block_map.block_bytes
        ):
            have[index] = block_map.fits(index, data)
        file = notes_of(path)
        file.unlink(missing_ok=True)
        fresh = file.with_suffix(".tmp")
        fresh.write_bytes(block_map.encode() + have)
        fresh.replace(file)
        # In this order: a hole without notes would be taken for bytes.
        os.ftruncate(handle, block_map.size_bytes)
        notes = _open_notes(file, block_map.size_bytes)
        if notes is None:
            raise OSError(f"{file.name} is not what was just written")
        return cls(path, handle, block_map, notes)

    def have(self) -> bytes:
        """A byte for each block: 1 if it is there."""
        return bytes(self._have)

    def holds(self, first: int, count: int) -> bool:
        """Whether all these blocks are there."""
        return 0 not in self._have[first : first + count]

    @property
    def whole(self) -> bool:
        """Whether no block is lacking."""
        return not self._lacking

    @property
    def offset(self) -> int:
        """How many bytes from the beginning are there without a gap."""
        return min(self._prefix_blocks() * self.map.block_bytes, self.map.size_bytes)

    @property
    def held_bytes(self) -> int:
        """How many bytes are there in all."""
        size, block = self.map.size_bytes, self.map.block_bytes
        if not self.map.count:
            return 0
        last = self.map.span(self.map.count - 1)[1]
        return size - self._lacking * block + (block - last if self._last_lacks else 0)

    def put(self, first: int, data: memoryview) -> list[int]:
        """Write blocks in a row, from block `first` on: those that are these blocks. Return the
        numbers of those that are not. Blocks. Raises the disk's errors.
        """
        block, wrong = self.map.block_bytes, list[int]()
        right: list[range] = []
        for index, at in enumerate(range(0, len(data), block), first):
            if self._have[index]:
                continue
            if not self.map.fits(index, data[at : at + block]):
                wrong.append(index)
            elif right and right[-1].stop == index:
                right[-1] = range(right[-1].start, index + 1)
            else:
                right.append(range(index, index + 1))
        for run in right:
            self._write(run, data[(run.start - first) * block : (run.stop - first) * block])
        return wrong

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the file as they are now. Blocks."""
        return os.pread(self._handle, count, offset)

    def reader(self) -> int:
        """A file descriptor of its own to read it with."""
        return os.dup(self._handle)

    def in_order(self) -> Partial:
        """The same file for writing at its end, without what stands behind the first gap; this
        object is of no more use. Blocks.
        """
        with disk_errors():
            os.ftruncate(self._handle, self.offset)
            self._let_go()
            notes_of(self.path).unlink(missing_ok=True)
            return Partial.resume(self.path, self._handle, self.map.size_bytes)

    async def written(self) -> None:
        """All blocks that were put were given to the file; begin to flush them."""
        with self._lock:
            self._flushing.rest()

    async def digested(self) -> None:
        """Wait until those without a gap were given to the digest."""
        await finish(lambda: self._behind.finish(self.offset))

    def checksum(self) -> str:
        """The digest of what was flushed."""
        return named(self._behind.sha)

    def make_durable(self, mtime: float) -> None:
        """Give the file its mode and time, and flush it to the disk. Only once it is digested.
        Blocks.
        """
        self._flushing.wait()
        make_durable(self._handle, mtime)

    async def close(self) -> None:
        """Let go of the file."""
        if self._handle < 0:
            return

        def close() -> None:
            self._let_go()
            handle, self._handle = self._handle, -1
            os.close(handle)

        # In one go: whoever is cancelled meanwhile would leave the file open, and locked.
        await finish(close)

    def _write(self, run: range, data: memoryview) -> None:
        with disk_errors():
            write_all(self._handle, data, run.start * self.map.block_bytes)
            with self._lock:
                self._lacking -= self._have.count(0, run.start, run.stop)
                there = b"\1" * len(run)
                self._have[run.start : run.stop] = there
                self._notes[self._at + run.start : self._at + run.stop] = there
                self._last_lacks = not self._have[-1]
                self._flushing.wrote(len(data))
        self._behind.reach(self.offset)

    def _let_go(self) -> None:
        self.on_close()
        self._behind.stop()
        self._flushing.settle()
        self._notes.close()

    def _prefix_blocks(self) -> int:
        gap = self._have.find(0, self._prefix)
        self._prefix = len(self._have) if gap < 0 else gap
        return self._prefix


class _Behind:
    """Digests the beginning of a file as it becomes whole, behind those who write it."""

    def __init__(self, handle: int) -> None:
        self.sha = hashlib.sha256()
        self._handle = handle
        self._done = self._end = 0
        self._least = BLOCK_BYTES
        self._block: memoryview | None = None
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()

    def reach(self, end: int) -> None:
        """The bytes up to `end` are there."""
        with self._lock:
            self._end = max(self._end, end)
            if self._idle.is_set() and self._end - self._done >= self._least:
                self._idle.clear()
                DIGESTS.submit(self._digest_one)

    def finish(self, end: int) -> None:
        """Wait until all up to `end` is digested. Blocks."""
        self._least = 1
        self.reach(end)
        self._idle.wait()

    def stop(self) -> None:
        """Digest no more, and wait for what is being digested. Blocks."""
        with self._lock:
            self._end = self._done
        self._idle.wait()

    def _digest_one(self) -> None:
        if self._block is None:
            self._block = room(BLOCK_BYTES)
        try:
            most = min(BLOCK_BYTES, max(0, self._end - self._done))
            count = os.preadv(self._handle, [self._block[:most]], self._done) if most else 0
            self.sha.update(self._block[:count])
        except OSError:
            # The digest will be wrong, as is the disk.
            count = 0
        with self._lock:
            self._done += count
            # Queue up again behind the blocks of other transfers.
            if count and self._end - self._done >= self._least:
                DIGESTS.submit(self._digest_one)
            else:
                self._idle.set()


def notes_of(path: Path) -> Path:
    """Where it is written which blocks of a partial file are there."""
    return path.with_name(path.name + NOTES_SUFFIX)


def _open_notes(file: Path, size_bytes: int) -> mmap.mmap | None:
    """Notes for a content of this size; None if they are none. Writing to them outlives us."""
    try:
        with file.open("r+b") as opened:
            notes = mmap.mmap(opened.fileno(), 0)
    except (OSError, ValueError):
        return None
    head = encoded_bytes(size_bytes)
    if len(notes) != head + block_count_of(size_bytes) or set(notes[head:]) - {0, 1}:
        notes.close()
        return None
    return notes
