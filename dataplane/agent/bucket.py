"""The bucket as one node uses it: objects first, then the manifest that names them.

It must never name an object that is not stored, and never take out of the bucket, or out of a
manifest, what a node no longer has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from adapters.errors import TransportError
from adapters.s3.bucket import S3Bucket
from adapters.s3.layout import ManifestEntry, manifest_of
from adapters.s3.sealing import Sealer
from adapters.s3.transport import S3Transport
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from dataplane.config import DataPlaneConfig
from dataplane.crashpoints import reach

logger = logging.getLogger(__name__)

#: The consolidated manifest follows the node's own by so much: it is for people and for restores,
#: and all nodes write it.
CONSOLIDATE_S = 20.0
#: How often it is looked for uploads that were given up: all nodes look.
TIDY_S = 24 * 3600.0


class Backups:
    """What this node stores in the bucket. Several pushes may run at once."""

    def __init__(
        self, node: str, transport: S3Transport, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.transport = transport
        self.bucket = S3Bucket(transport, clock=clock)
        self._node = node
        self._clock = clock
        self._writing = asyncio.Lock()
        self._unnamed: list[tuple[ManifestEntry, asyncio.Future[TransportError | None]]] = []
        self._grown = asyncio.Event()

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """Store an entry's content, then name it in this node's manifest; bytes that moved.

        Raises a `TransportError`; then the bucket may hold the object, but nothing names it.
        """
        moved = await self.transport.push(request, file, throttle, progress)
        reach("agent.stored")
        await self._name(self.transport.stored(request.entry))
        return moved

    async def consolidate(self) -> None:
        """Bring what this node's manifest names into the consolidated one, for ever."""
        while True:
            await self._grown.wait()
            await asyncio.sleep(CONSOLIDATE_S)
            self._grown.clear()
            try:
                await self.bucket.consolidate([self._node])
            except TransportError as error:
                # Nothing is lost: each node's manifest names its own, and the next time does it.
                logger.info("the consolidated manifest waits: %s", error)
                self._grown.set()

    async def tidy(self) -> None:
        """Give up uploads that nobody has gone on with for long, for ever: they never became
        objects, and are paid for.
        """
        while True:
            with contextlib.suppress(TransportError):
                await self.transport.abort_stale()
            await asyncio.sleep(TIDY_S)

    async def _name(self, stored: ManifestEntry) -> None:
        """One manifest is written for all that were stored while the last one was written."""
        named: asyncio.Future[TransportError | None] = asyncio.Future()
        self._unnamed.append((stored, named))
        async with self._writing:
            if not named.done():
                await self._write_manifest()
        if (error := await named) is not None:
            raise error

    async def _write_manifest(self) -> None:
        batch, self._unnamed = self._unnamed, []
        outcome: TransportError | None = None
        try:
            entries = [stored for stored, _ in batch]
            manifest = manifest_of(self._node, entries, self._clock())
            pushed = {stored.key for stored in entries}
            await self.bucket.write_manifest(self._node, manifest, pushed)
            self._grown.set()
        except TransportError as error:
            outcome = error
        except asyncio.CancelledError:
            # Whoever else waits writes it himself.
            self._unnamed = batch + self._unnamed
            raise
        for _, named in batch:
            if not named.done():
                named.set_result(outcome)


def make_s3(config: DataPlaneConfig) -> S3Transport:
    """The transport to the configured bucket. Credentials come from the standard chains only.

    Raises `KeyUnusable` if the encryption key can't be used.
    """
    key_file = config.s3_encryption_key_file
    return S3Transport(
        config.s3_bucket,
        endpoint_url=config.s3_endpoint or None,
        region=config.s3_region or None,
        prefix=config.s3_prefix,
        storage_class=config.policy().s3.storage_class,
        sealer=None if key_file == Path() else Sealer.from_file(key_file),
    )
