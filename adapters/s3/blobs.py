"""An archive's files under a prefix of a bucket. Nothing here deletes one."""

from __future__ import annotations

import hashlib

from adapters.errors import Overtaken
from adapters.s3.flow import Flow
from adapters.s3.layout import under
from adapters.s3.store import Store


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
