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

from adapters.errors import EntryMissing
from adapters.s3.errors import Overtaken
from adapters.s3.flow import Flow
from adapters.s3.layout import under
from adapters.s3.store import Store


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


class S3Blobs:
    """Blobs as objects under a prefix of a bucket."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
    ) -> None:
        self._store = Store(bucket, endpoint_url, region, prefix.strip("/"))
        self.where = f"s3://{bucket}/{under(prefix.strip('/'), '')}"

    async def get(self, name: str) -> tuple[bytes, str]:
        """As `Blobs.get`."""
        async with self._store.got(name, Flow()) as (said, pieces):
            return b"".join([piece async for piece in pieces]), said.object.etag

    async def put(self, name: str, data: bytes, *, replaces: str = "") -> str:
        """As `Blobs.put`."""
        only = {"If-Match": replaces} if replaces else {"If-None-Match": "*"}
        sha256 = hashlib.sha256(data).digest()
        try:
            said = await self._store.send(name, data, sha256, Flow(), only)
        except Overtaken:
            # An earlier try of ours, whose answer was lost, is as good as this one.
            have, version = await self.get(name)
            if have != data:
                raise
            return version
        return said.etag

    async def close(self) -> None:
        """Let go of connections."""
        await self._store.close()


def blobs_at(place: str, *, endpoint_url: str = "", region: str = "") -> Blobs:
    """Blobs at ``s3://bucket/prefix`` or in a directory. Raises ValueError for no bucket."""
    if not place.startswith("s3://"):
        return DirectoryBlobs(Path(place).expanduser())
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{place!r} names no bucket; it should be like s3://bucket/prefix")
    return S3Blobs(bucket, prefix, endpoint_url=endpoint_url or None, region=region or None)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
