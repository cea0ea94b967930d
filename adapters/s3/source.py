"""A local file as the object that it is to be: plain or sealed, and proven to be what was meant."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

from adapters.errors import DigestMismatch, EntryMissing
from adapters.files.digest import BLOCK_BYTES, named
from adapters.memory import room
from adapters.s3 import layout
from adapters.s3.layout import ManifestEntry
from adapters.s3.sealing import Sealer
from adapters.workers import DIGESTS, finish


def whole(file: Path, stored: ManifestEntry, sealer: Sealer | None) -> tuple[bytes, bytes]:
    """A small file as the object it is to be, and its SHA-256. Blocks; belongs in a thread.

    It is read once: what is proven is what is sent. Raises as `Source`.
    """
    source = Source(file, stored, sealer)
    try:
        return source.whole()
    finally:
        source.close()


class Source:
    """A local file as the object it is to be, plain or sealed. Blocks; belongs in a thread."""

    def __init__(self, file: Path, stored: ManifestEntry, sealer: Sealer | None) -> None:
        entry = stored.entry
        self.stored = stored
        self._sealed = sealer.sealing(entry.checksum, entry.size_bytes) if sealer else None
        try:
            self._handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EntryMissing(f"{entry.path}: {error.strerror}") from error
        self._state = self._look()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def whole(self) -> tuple[bytes, bytes]:
        """All of the object, and its SHA-256. Raises `DigestMismatch` if it is not the entry's."""
        entry = self.stored.entry
        plain = self.read_plain(0, entry.size_bytes)
        sha = hashlib.sha256(plain)
        self._expect_size()
        self._expect(sha)
        if self._sealed is None:
            return plain, sha.digest()
        pieces = self._sealed.read(
            lambda offset, length: plain[offset : offset + length], 0, self.stored.stored_bytes
        )
        sealed = b"".join(pieces)
        return sealed, hashlib.sha256(sealed).digest()

    def read(self, offset: int, into: memoryview) -> None:
        """Fill memory with the object from `offset` on. Raises `DigestMismatch` if the file has
        become shorter.
        """
        if self._sealed is None:
            self._read_plain(offset, into)
            return
        at = 0
        for piece in self._sealed.read(self.read_plain, offset, len(into)):
            into[at : at + len(piece)] = piece
            at += len(piece)

    def read_plain(self, offset: int, length: int) -> bytes:
        """A range of the file."""
        data = os.pread(self._handle, length, offset)
        self._expect_whole(len(data), offset, length)
        return data

    def _read_plain(self, offset: int, into: memoryview) -> None:
        self._expect_whole(os.preadv(self._handle, [into], offset), offset, len(into))

    def _expect_whole(self, count: int, offset: int, length: int) -> None:
        if count != min(length, self.stored.entry.size_bytes - offset):
            raise DigestMismatch(f"{self.stored.entry.path} has other bytes than its entry")

    async def prove(self) -> None:
        """Raise `DigestMismatch` unless the file holds exactly the entry."""
        entry, sha = self.stored.entry, hashlib.sha256()
        self._expect_size()
        block = room(BLOCK_BYTES)
        for at, length in layout.spans(0, entry.size_bytes, BLOCK_BYTES):
            await finish(partial(self._read_plain, at, block[:length]))
            await finish(partial(sha.update, block[:length]), executor=DIGESTS)
        self._expect(sha)

    def _expect_size(self) -> None:
        if self._state[0] != self.stored.entry.size_bytes:
            raise DigestMismatch(f"{self.stored.entry.path} has {self._state[0]} bytes")

    def _expect(self, sha: hashlib._Hash) -> None:
        if named(sha) != self.stored.entry.checksum:
            raise DigestMismatch(f"{self.stored.entry.path} has the digest {named(sha)}")

    def check_unchanged(self) -> None:
        """Raise `DigestMismatch` if somebody wrote to the file since it was opened."""
        if self._look() != self._state:
            raise DigestMismatch(f"{self.stored.entry.path} changed while it was read")

    def _look(self) -> tuple[int, int]:
        seen = os.fstat(self._handle)
        return seen.st_size, seen.st_mtime_ns
