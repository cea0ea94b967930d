"""Where an archive's files lie: a directory, or a prefix of a bucket.

Small named blobs, each written whole or not at all. Nothing here deletes one. A blob that is
written again names the version it replaces, so that of two writers one is told.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Protocol

from adapters.errors import EntryMissing, Overtaken


class Blobs(Protocol):
    """Named blobs. Raises `TransportError`s, for a directory OSError."""

    #: For people: where they lie.
    where: str

    async def get(self, name: str) -> tuple[bytes, str]:
        """A blob and its version. Raises `EntryMissing`."""

    async def put(self, name: str, data: bytes, *, replaces: str = "") -> str:
        """Store a blob; the version it has now. Durable once this returns.

        It replaces only the version it names, or none. Raises `Overtaken` if there is another.
        """

    async def close(self) -> None:
        """Let go of connections."""


class DirectoryBlobs:
    """Blobs as files of one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = str(root)

    async def get(self, name: str) -> tuple[bytes, str]:
        """As `Blobs.get`."""
        try:
            data = await asyncio.to_thread((self._root / name).read_bytes)
        except FileNotFoundError:
            raise EntryMissing(f"{self._root / name} is not there") from None
        return data, _version(data)

    async def put(self, name: str, data: bytes, *, replaces: str = "") -> str:
        """As `Blobs.put`."""
        await asyncio.to_thread(self._put, name, data, replaces)
        return _version(data)

    async def close(self) -> None:
        """Nothing is held open."""

    def _put(self, name: str, data: bytes, replaces: str) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        directory = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            final, partial = self._root / name, self._root / f".{name}.partial"
            have = _version(final.read_bytes()) if final.exists() else ""
            if have != replaces and have != _version(data):
                raise Overtaken(f"{final} has been written by somebody else")
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(final)
            os.fsync(directory)
        finally:
            os.close(directory)


def blobs_at(place: str, *, endpoint_url: str = "", region: str = "") -> Blobs:
    """Blobs at ``s3://bucket/prefix`` or in a directory. Raises ValueError for no bucket."""
    if not place.startswith("s3://"):
        return DirectoryBlobs(Path(place).expanduser())
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{place!r} names no bucket; it should be like s3://bucket/prefix")
    # Its libraries take longer to load than most commands take.
    from adapters.s3.blobs import S3Blobs

    return S3Blobs(bucket, prefix, endpoint_url=endpoint_url or None, region=region or None)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
